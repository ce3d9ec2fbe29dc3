"""Grad-CAM on the architectures in use, by their libraries' own classes made small: at the default layer and at another one,
against PyTorch alone. Which axes are the picture is written down here, not asked of visx."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nets import CLASSES, seeded
from oracles import answers, ask, pearson, plain_gradcam, same
from visx import Model, VisxError, wrap

Size = tuple[int, int]
WIDE = (32, 48)
VIT: dict[str, Any] = {"img_size": WIDE, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2}


@dataclass
class Case:
    """A network; its default layer, and another one, each with its form: "first" or "last" (where the channels are), or how many
    tokens come before the patches; and the size (h, w) of both maps."""

    build: Callable[[Any], nn.Module]  # given timm's models
    layers: tuple[str, str]
    forms: tuple[str | int, str | int]
    grids: tuple[Size, Size]
    size: Size = WIDE


def _maxxvit(timm: Any, **options: Any) -> nn.Module:
    maxxvit = timm.maxxvit
    size = options.pop("img_size")
    return maxxvit.MaxxVit(maxxvit.MaxxVitCfg(stem_width=16, **options), img_size=size, num_classes=CLASSES)


def _mvit(timm: Any, **options: Any) -> nn.Module:
    config = timm.mvitv2.MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=16, num_heads=1, **options)
    return timm.MultiScaleVit(config, img_size=64, num_classes=CLASSES)


def _swin(timm: Any, kind: str) -> nn.Module:
    return getattr(timm, kind)(
        img_size=WIDE, patch_size=2, window_size=(4, 6), embed_dim=16, depths=(2, 2), num_heads=(2, 2), num_classes=CLASSES
    )  # fmt: skip


def _torchvision(kind: str) -> nn.Module:
    from torchvision import models

    if kind == "swin_v2":
        module = models.swin_transformer
        return models.SwinTransformer(
            [2, 2], 12, [2, 2], [2, 4], [4, 4], num_classes=CLASSES, stochastic_depth_prob=0.0,
            block=module.SwinTransformerBlockV2, downsample_layer=module.PatchMergingV2,
        )  # fmt: skip
    if kind == "maxvit":
        return models.MaxVit((64, 64), 8, 4, [8, 16], [1, 1], 4, 0.0, num_classes=CLASSES)
    config = models.convnext.CNBlockConfig
    return models.ConvNeXt([config(8, 16, 1), config(16, None, 1)], num_classes=CLASSES)


PATCHES = (4, 6)
CASES = {
    "ViT": Case(lambda t: t.VisionTransformer(**VIT, num_classes=CLASSES), ("blocks.2.norm1", "blocks.0"), (1, 1), (PATCHES, PATCHES)),
    "ViT of any size": Case(
        lambda t: t.VisionTransformer(**VIT | {"img_size": 32}, num_classes=CLASSES, dynamic_img_size=True),
        ("blocks.2.norm1", "patch_embed"), (1, "last"), ((5, 7), (5, 7)), (40, 56),
    ),
    "ViT that averages its patches": Case(
        lambda t: t.VisionTransformer(**VIT, num_classes=CLASSES, global_pool="avg"),
        ("blocks", "blocks.1.norm2"), (1, 1), (PATCHES, PATCHES),
    ),
    "DeiT, distilled": Case(
        lambda t: t.VisionTransformerDistilled(**VIT, num_classes=CLASSES), ("blocks.2.norm1", "blocks.1"), (2, 2), (PATCHES, PATCHES)
    ),
    "BEiT": Case(lambda t: t.Beit(**VIT, num_classes=CLASSES), ("blocks.2", "blocks.0.norm2"), (1, 1), (PATCHES, PATCHES)),
    "EVA": Case(
        lambda t: t.Eva(**VIT, num_classes=CLASSES, use_rot_pos_emb=True), ("blocks.2", "blocks.1"), (1, 1), (PATCHES, PATCHES)
    ),
    "DINOv2 with registers": Case(
        lambda t: t.VisionTransformer(**VIT, num_classes=CLASSES, reg_tokens=4, no_embed_class=True, init_values=1.0),
        ("blocks.2.norm1", "blocks.1"), (5, 5), (PATCHES, PATCHES),
    ),
    "CaiT": Case(
        lambda t: t.Cait(**VIT | {"depth": 2}, num_classes=CLASSES), ("blocks_token_only.1.norm1", "blocks.1"), (1, 0), (PATCHES, PATCHES)
    ),
    "Swin": Case(lambda t: _swin(t, "SwinTransformer"), ("norm", "layers.0.blocks.1"), ("last", "last"), ((8, 12), (16, 24))),
    "SwinV2": Case(lambda t: _swin(t, "SwinTransformerV2"), ("norm", "layers.0.blocks.1"), ("last", "last"), ((8, 12), (16, 24))),
    "SwinV2 of torchvision": Case(
        lambda t: _torchvision("swin_v2"), ("permute", "features.1"), ("first", "last"), ((8, 12), (16, 24))
    ),
    "MaxViT": Case(
        lambda t: _maxxvit(t, embed_dim=(32, 64), depths=(1, 1), block_type=("M", "M"), head_hidden_size=64, img_size=(64, 128)),
        ("stages", "stages.0"), ("first", "first"), ((8, 16), (16, 32)), (64, 128),
    ),
    "MaxViT of torchvision": Case(
        lambda t: _torchvision("maxvit"), ("blocks.1", "blocks.0"), ("first", "first"), ((8, 8), (16, 16)), (64, 64)
    ),
    "CoAtNet": Case(
        lambda t: _maxxvit(t, embed_dim=(16, 32), depths=(1, 2), block_type=("C", "T"), img_size=(64, 96)),
        ("norm", "stages.1.blocks.0"), ("first", "first"), ((8, 12), (8, 12)), (64, 96),
    ),
    "MViT": Case(_mvit, ("norm", "stages.2.blocks.0.norm2"), (0, 0), ((2, 2), (4, 4)), (64, 64)),
    "MViT with class token": Case(  # it adds its queries to what its attention returns
        lambda t: _mvit(t, use_cls_token=True), ("stages.3.blocks.0.attn.qkv", "stages.1.blocks.0.norm2"), (1, 1), ((4, 4), (8, 8)), (64, 64)
    ),
    "PVT": Case(
        lambda t: t.PyramidVisionTransformerV2(depths=(1,) * 4, embed_dims=(8, 8, 16, 16), num_heads=(1, 1, 2, 2), num_classes=CLASSES),
        ("stages", "stages.1"), ("first", "first"), ((2, 3), (8, 12)), (64, 96),
    ),
    "XCiT": Case(
        lambda t: t.Xcit(**VIT | {"embed_dim": 32, "depth": 2}, cls_attn_layers=2, num_classes=CLASSES),
        ("cls_attn_blocks.1.norm1", "blocks.1"), (1, 0), (PATCHES, PATCHES),
    ),
    "MobileViT": Case(
        lambda t: t.create_model("mobilevit_xxs", num_classes=CLASSES), ("final_conv", "stages.3"), ("first", "first"), ((2, 3), (4, 6)), (64, 96)
    ),
    "ConvNeXt": Case(
        lambda t: t.ConvNeXt(depths=(1,) * 4, dims=(8, 8, 16, 16), num_classes=CLASSES), ("stages", "stages.1"), ("first", "first"), ((2, 3), (8, 12)), (64, 96)
    ),
    "ConvNeXt of torchvision": Case(
        lambda t: _torchvision("convnext"), ("features", "features.1"), ("first", "first"), (PATCHES, (8, 12))
    ),
    "MLP-Mixer": Case(
        lambda t: t.MlpMixer(img_size=WIDE, patch_size=8, embed_dim=16, num_blocks=2, num_classes=CLASSES),
        ("norm", "blocks.0"), (0, 0), (PATCHES, PATCHES),
    ),
    "MambaOut": Case(
        lambda t: t.create_model("mambaout_femto", depths=(1, 1), dims=(8, 16), num_classes=CLASSES),
        ("stages", "stages.0"), ("last", "last"), ((8, 12), (16, 24)), (64, 96),
    ),
}  # fmt: skip


def network(case: Case) -> nn.Module:
    """In float64, no parameter zero (some heads and scales are at first)."""
    timm = pytest.importorskip("timm", reason="timm is an extra")
    timm.models.create_model = timm.create_model
    net = seeded(lambda: case.build(timm.models))
    for n, parameter in enumerate(net.parameters()):
        noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        parameter.data += 0.05 * noise
    return net


def pictures(size: Size) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def read(output: Tensor, form: str | int, grid: Size) -> Tensor:
    """A layer's output, or its gradient, as (B, K, h, w)."""
    if form == "first":
        return output
    if form == "last":
        return output.permute(0, 3, 1, 2)
    assert isinstance(form, int) and output.shape[1] == form + grid[0] * grid[1]
    return output[:, form:].transpose(1, 2).unflatten(2, grid)


def model(net: nn.Module, size: Size) -> Model:
    return wrap(net, size=size, mean=(0.5,) * 3, std=(1.0,) * 3)


@pytest.mark.parametrize("name", CASES)
def test_grad_cam_at_the_default_layer_and_at_another(name: str) -> None:
    case = CASES[name]
    net, x = network(case), pictures(case.size)
    assert model(net, case.size).anatomy.default_layer == case.layers[0]
    for layer, form, grid in zip(case.layers, case.forms, case.grids, strict=True):
        expected = plain_gradcam(net, layer, x, 3, partial(read, form=form, grid=grid))
        found = ask("gradcam", net, x, (3,), layer=layer, relu=False).map
        assert found.shape == (2, 1, *grid) and expected.std() > 0
        assert same(found, expected, 1e-8) and pearson(found, expected) >= 0.9999
    both = ask("gradcam", net, x, (3,), layer="+".join(case.layers))
    assert both.map.shape[2:] == max(case.grids) and both.map.max() > 0.1


@pytest.mark.parametrize("name", ["ViT", "SwinV2", "ConvNeXt", "MLP-Mixer"])
def test_without_a_relu_on_the_way_guided_gradcam_is_refused(name: str) -> None:
    """SwinV2 has ReLUs, but only in the network that makes its bias of positions."""
    case = CASES[name]
    with pytest.raises(VisxError, match="no ReLU") as caught:
        answers(model(network(case), case.size), "guided_gradcam", pictures(case.size))
    assert caught.value.code == 4 and "gelu" in str(caught.value)
