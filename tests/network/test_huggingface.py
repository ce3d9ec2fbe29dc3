"""Layers of transformers' networks: the default layer, and its Grad-CAM beside a program of plain PyTorch."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("transformers", reason="the extra hf is not installed")

import visx
from oracles import CHEAP, answers, assert_unchanged, fingerprint, maps_of, pearson, same
from transformers_folders import FAMILIES, network, size_of
from visx.engine.jobs import missing
from visx.methods import NAMES, get_method

# What is last on the way to the score; of a transformer that reads its class token, the input of the last attention
DEFAULT = {
    "vit": r"\.1\.layernorm_before",
    "deit": r"\.1\.layernorm_before",
    "beit": r"\.1",
    "dinov2": r"\.layernorm",
    "dinov2_with_registers": r"\.layernorm",
    "swin": r"\.layernorm",
    "convnext": r"\.stages\.1",
    "resnet": r"\.stages\.1",
    "mobilevitv2": r"\.layer\.4",  # behind patches that are unfolded and folded again
    "pvt": r"\.3\.0\.layer_norm_1",
}
TEACHER = "ForImageClassificationWithTeacher"
CASES = [*((family, "ForImageClassification") for family in FAMILIES), ("deit", TEACHER), ("levit", TEACHER)]


def wrapped(family: str, head: str = "ForImageClassification", **settings: Any) -> visx.Model:
    module = network(family, head, **settings).double()
    return visx.wrap(module, size=size_of(module), head="logits")


def picture(model: visx.Model) -> Tensor:
    return torch.randn(1, *model.input_shape, generator=torch.Generator().manual_seed(0)).double()


def plain(module: nn.Module, layer: str, x: Tensor, grid: tuple[int, int], target: int) -> np.ndarray:
    """Grad-CAM before its ReLU: the layer's output times the mean of its gradient, over the last positions of a grid."""
    kept: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda m, a, out: kept.append(out))
    logits = module(x.requires_grad_()).logits
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, target], kept[-1])
    maps = []
    for values in (kept[-1].detach()[0], gradient[0]):
        first = values.dim() == 3 and tuple(values.shape[1:]) == grid
        tokens = values.flatten(1).t() if first else values.reshape(-1, values.shape[-1])
        maps.append(tokens[-grid[0] * grid[1] :])  # class, distillation and register tokens come before
    return (maps[0] * maps[1].mean(0)).sum(1).reshape(grid).numpy()


@pytest.mark.parametrize(("family", "head"), CASES)
def test_gradcam_at_the_default_layer_is_that_of_plain_pytorch(family: str, head: str) -> None:
    model = wrapped(family, head)
    layer = next(one for one in model.anatomy.layers if one.name == model.anatomy.default_layer)
    assert layer.grid is not None and re.search(DEFAULT.get(family, "") + "$", layer.name)
    height, width = layer.grid.shape[1:]
    assert height > 1 and width > 1
    x = picture(model)
    ((answer,),) = answers(model, "gradcam", x, "3", relu=False)  # type: ignore[misc]
    expected = plain(model.module, layer.name, x, (height, width), 3)
    assert answer.native is not None and pearson(answer.native, expected) >= 0.9999
    assert same(answer.native, expected, 1e-5)


@pytest.mark.parametrize("family", ["vit", "deit", "beit", "dinov2_with_registers", "segformer"])
def test_fused_attention_gives_the_maps_of_attention_written_out(family: str) -> None:
    fused, written = (wrapped(family, attn_implementation=name) for name in ("sdpa", "eager"))
    x = picture(fused)
    assert fused.module.config._attn_implementation != written.module.config._attn_implementation
    for name in ("backprop", "gradcam", "occlusion"):
        params = {"relu": False} if name == "gradcam" else CHEAP.get(name, {})
        maps = [maps_of(answers(model, name, x, "1", **params)) for model in (fused, written)]
        assert same(*maps, 1e-3), name  # what is written out takes its softmax in float32


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_every_method_that_fits_leaves_the_network_as_it_was(family: str) -> None:
    model = wrapped(family)
    x = torch.cat([picture(model), picture(model).flip(-1)])
    methods = [m for m in map(get_method, NAMES) if not missing(model, m, m.params())]
    assert {"gradcam", "backprop", "occlusion", "rise"} <= {m.name for m in methods}
    before = fingerprint(model.module)
    for method in methods:
        together = maps_of(answers(model, method.name, x, "1", **CHEAP.get(method.name, {})))
        alone = [
            maps_of(answers(model, method.name, x[i : i + 1], "1", seeds=[i], **CHEAP.get(method.name, {})))[0]
            for i in range(2)
        ]
        assert np.allclose(together, np.stack(alone), rtol=1e-4, atol=1e-5 * np.abs(together).max()), method.name
        assert_unchanged(before, fingerprint(model.module))


def test_a_width_that_is_not_the_height() -> None:
    for family, size in (("swin", (32, 64)), ("convnext", (32, 48)), ("resnet", (40, 72)), ("segformer", (64, 96))):
        module = network(family, **({"image_size": size} if family == "swin" else {})).double()
        model = visx.wrap(module, size=size, head="logits")
        layer = next(one for one in model.anatomy.layers if one.name == model.anatomy.default_layer)
        assert layer.grid is not None
        height, width = layer.grid.shape[1:]
        assert height * size[1] == width * size[0]
        ((answer,),) = answers(model, "gradcam", picture(model), "3", relu=False)  # type: ignore[misc]
        expected = plain(module, layer.name, picture(model), (height, width), 3)
        assert answer.native is not None and same(answer.native, expected, 1e-5), family
