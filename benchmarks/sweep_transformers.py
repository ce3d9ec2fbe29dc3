"""The families of transformers that `sweep.py` runs: a configuration of each, mostly that of its smallest published network.

Weights are random. The networks come from folders of a configuration and an image processor alone, as `-M hf/FOLDER -w random`.
"""

from __future__ import annotations

import tempfile
from typing import Any

import visx

_TINY = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_hidden_layers": 12}
_VISION = {"vision_config": {**_TINY, "projection_dim": 64}, "text_config": {"num_hidden_layers": 1}}
# family -> (what its classes' names begin with, settings of its configuration, the input's side)
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "hf/beit": ("Beit", {**_TINY, "use_relative_position_bias": True}, 224),
    "hf/bit": ("Bit", {}, 224),
    "hf/clip": ("CLIP", _VISION, 224),
    "hf/convnext": ("ConvNext", {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]}, 224),
    "hf/convnextv2": ("ConvNextV2", {"hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 6, 2]}, 224),
    "hf/cvt": ("Cvt", {}, 224),
    "hf/data2vec-vision": ("Data2VecVision", _TINY, 224),
    "hf/deit": ("DeiT", _TINY, 224),
    "hf/dinov2": ("Dinov2", {**_TINY, "image_size": 224}, 224),
    "hf/dinov2_with_registers": ("Dinov2WithRegisters", {**_TINY, "image_size": 224}, 224),
    "hf/donut-swin": ("DonutSwin", {"depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]}, 224),
    "hf/efficientnet": (
        "EfficientNet",
        {
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
            "image_size": 224,
            "hidden_dim": 1280,
            "initializer_range": 0.1,
        },  # with the default range the values vanish on the way
        224,
    ),
    "hf/focalnet": ("FocalNet", {}, 224),
    "hf/hgnet_v2": ("HGNetV2", {}, 224),
    "hf/hiera": ("Hiera", {"depths": [1, 2, 7, 2]}, 224),
    "hf/ijepa": ("IJepa", _TINY, 224),
    "hf/levit": ("Levit", {"num_attention_heads": [4, 6, 8], "depths": [2, 3, 4]}, 224),
    "hf/mobilenet_v1": ("MobileNetV1", {}, 224),
    "hf/mobilenet_v2": ("MobileNetV2", {}, 224),
    "hf/mobilevit": (
        "MobileViT",
        {"hidden_sizes": [64, 80, 96], "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320], "expand_ratio": 2.0},
        256,
    ),
    "hf/mobilevitv2": ("MobileViTV2", {"initializer_range": 0.1}, 256),
    "hf/poolformer": ("PoolFormer", {}, 224),
    "hf/pp_lcnet": ("PPLCNet", {}, 224),
    "hf/pvt": ("Pvt", {}, 224),
    "hf/pvt_v2": ("PvtV2", {}, 224),
    "hf/regnet": ("RegNet", {"hidden_sizes": [48, 104, 208, 440], "depths": [1, 3, 6, 6], "groups_width": 8}, 224),
    "hf/resnet": (
        "ResNet",
        {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"},
        224,
    ),
    "hf/segformer": ("Segformer", {}, 224),
    "hf/siglip": ("Siglip", _VISION, 224),
    "hf/swiftformer": ("SwiftFormer", {}, 224),
    "hf/swin": ("Swin", {}, 224),
    "hf/swinv2": ("Swinv2", {"image_size": 256, "window_size": 8}, 256),
    "hf/textnet": ("TextNet", {}, 224),
    "hf/vit": ("ViT", _TINY, 224),
    "hf/vit_msn": ("ViTMSN", _TINY, 224),
}


def load(family: str) -> visx.Model:
    """The network of a family, with random weights and ten classes."""
    import transformers

    prefix, settings, size = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**settings, num_labels=10)
    config.architectures = [f"{prefix}ForImageClassification"]
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        transformers.ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(folder)
        return visx.load_model(f"hf/{folder}", "random")


def shown(family: str) -> str:
    """What the table calls the network of a family."""
    return f"{FAMILIES[family][0]}ForImageClassification"
