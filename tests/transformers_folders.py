"""Small image classifiers of transformers with seeded random weights, and folders of them as users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

# Two blocks over 4 x 4 patches
_PLAIN = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 8,
}  # fmt: skip
_WINDOWS = {
    "image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4,
}  # fmt: skip
_STAGES = {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "embedding_size": 16}
_PYRAMID = {
    "image_size": 64, "hidden_sizes": [16, 32, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2],
    "mlp_ratios": [2, 2, 2, 2], "sequence_reduction_ratios": [4, 2, 2, 1], "sr_ratios": [4, 2, 2, 1],
}  # fmt: skip
_THREE = {"hidden_sizes": [16, 24, 32], "depths": [1, 1, 1], "image_size": 64}
# name -> (how its classes begin, settings of its configuration)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViT", _PLAIN),
    "deit": ("DeiT", _PLAIN),
    "beit": ("Beit", {**_PLAIN, "use_relative_position_bias": True}),
    "dinov2": ("Dinov2", _PLAIN),
    "dinov2_with_registers": ("Dinov2WithRegisters", {**_PLAIN, "num_register_tokens": 2}),
    "swin": ("Swin", _WINDOWS),
    "swinv2": ("Swinv2", _WINDOWS),
    "convnext": ("ConvNext", {**_STAGES, "image_size": 32}),
    "convnextv2": ("ConvNextV2", {**_STAGES, "image_size": 32}),
    "resnet": ("ResNet", _STAGES),
    "regnet": ("RegNet", {**_STAGES, "groups_width": 8}),
    "mobilevit": ("MobileViT", {**_THREE, "neck_hidden_sizes": [8, 8, 16, 16, 24, 32, 32]}),
    "mobilevitv2": (
        "MobileViTV2",
        {"image_size": 64, "width_multiplier": 0.25, "base_attn_unit_dims": [32, 48, 64], "n_attn_blocks": [1, 1, 1]},
    ),
    "mobilenet_v1": ("MobileNetV1", {"image_size": 64, "depth_multiplier": 0.25}),
    "mobilenet_v2": ("MobileNetV2", {"image_size": 64, "depth_multiplier": 0.25}),
    "pvt": ("Pvt", _PYRAMID),
    "pvt_v2": ("PvtV2", _PYRAMID),
    "poolformer": ("PoolFormer", {"image_size": 64, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1]}),
    "levit": ("Levit", {**_THREE, "num_attention_heads": [2, 2, 2], "key_dim": [8, 8, 8]}),
    "focalnet": ("FocalNet", {**_WINDOWS, "depths": [1, 1], "focal_levels": [1, 1], "focal_windows": [3, 3]}),
    "efficientnet": (
        "EfficientNet",
        {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
    ),
    "cvt": ("Cvt", {"image_size": 64, "embed_dim": [16, 24, 32], "num_heads": [1, 2, 2], "depth": [1, 2, 3]}),
    "bit": ("Bit", {**_STAGES, "num_groups": 4}),
    "segformer": (
        "Segformer",
        {"image_size": 64, "hidden_sizes": [8, 16, 16, 32], "depths": [1] * 4, "num_attention_heads": [1, 2, 2, 2]},
    ),
    "hiera": ("Hiera", {"embed_dim": 16, "image_size": [64, 64], "depths": [1, 1, 1, 2], "masked_unit_size": [8, 8]}),
}


def network(
    family: str, head: str = "ForImageClassification", classes: int = 5, seed: int = 0, **settings: Any
) -> nn.Module:
    """The classifier of a family with seeded random weights, none of which are zero: layer scales and biases count."""
    import transformers

    prefix, own = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**own, "num_labels": classes, **settings})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        module = getattr(transformers, f"{prefix}{head}")(config).eval()
        for value in module.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return module


def size_of(module: nn.Module) -> int:
    """The side of a classifier's input: that of its configuration, else 32 pixels."""
    size: Any = getattr(module.config, "image_size", 32)
    return int(size if isinstance(size, int) else size[0])


def save(module: nn.Module, folder: Path, **settings: Any) -> Path:
    """A folder of a classifier, and of an image processor that stretches pictures to its input and takes `settings`."""
    from transformers import ViTImageProcessor

    size = size_of(module)
    module.save_pretrained(folder)
    ViTImageProcessor(**{"size": {"height": size, "width": size}, **settings}).save_pretrained(folder)
    return folder
