"""What tests ask methods with, and what they compare the answers to: explicit backward passes, correlation, fingerprints."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import GapHead, TinyViT, TwoConvs
from visx import Model, VisxError
from visx.engine.batch import Answer, explain_batch
from visx.engine.jobs import plan
from visx.methods import get_method
from visx.methods.contract import Attribution, Method, Request
from visx.models import wrap
from visx.network.memory import BatchSize
from visx.network.network import Network
from visx.network.outputs import LOGITS
from visx.network.scorer import Scorer, Scores
from visx.params import parse
from visx.targets.classes import Column, parse_target
from visx.targets.contract import Objectives, Target, Targets

# Parameters that make a method quick in the tests that run every registered method; the others run with their defaults.
CHEAP: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 8},
    "smoothgrad": {"samples": 6},
    "occlusion": {"patch": 4, "stride": 3},
    "rise": {"masks": 64, "cells": 3},
    "tis": {"masks": 20},
    "lime": {"samples": 100, "segments": 9},
    "meaningful_perturbation": {"iterations": 6, "mask_size": 6},
}

OF_TRANSFORMERS = {"droppable", "attention", "tokens"}  # needs that a transformer alone meets


def of_transformers(method: Method) -> bool:
    """Whether a method fits transformers alone."""
    return bool(method.needs & OF_TRANSFORMERS)


def net_for(method: Method) -> type[nn.Module]:
    """A small network that a method fits; its classifier is `fc`."""
    return TinyViT if of_transformers(method) else GapHead


ANY_CLASS = {"attention", "rollout"}  # methods whose maps no target and no score changes
PRODUCTS = {"transformer_attribution"}  # methods that multiply gradients of several blocks: maps are not linear in them


def column_scores(ids: Tensor, kind: Any = "logit") -> Scores:
    """What makes the scores (B, T) of class columns (B, K), given the classes (B, T); of copies of one image, (1, T)."""
    return lambda columns: LOGITS.scores(columns, ids.to(columns.device).expand(len(columns), -1), kind)


def class_targets(ids: Tensor) -> Targets:
    """Resolved targets: the classes (B, T)."""
    rows = [[Column.of(index, LOGITS, None) for index in row] for row in ids.tolist()]
    own = [list(range(len(row))) for row in rows]
    return Targets([None] * len(rows), LOGITS, None, Objectives(rows, LOGITS), torch.zeros(len(rows), 1), own)  # type: ignore[list-item]


def columns_of(specs: Sequence[Target], columns: Tensor) -> list[list[int | None]]:
    """The classes that targets are, given the class columns (B, K) of their images."""
    rows = Targets(specs, LOGITS).resolve(columns).rows
    return [[objective.column for objective in row] for row in rows]


def ask(
    name: str,
    net: nn.Module,
    x: Tensor,
    targets: Sequence[int] = (0,),
    *,
    layer: str | None = None,
    kind: str = "logit",
    seeds: Sequence[int] | None = None,
    copies: int = 16,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    **params: Any,
) -> Attribution:
    """The bare method's answer, before the engine upsamples it or casts it to float32."""
    method, network = get_method(name), Network(net)
    fixed = class_targets(torch.tensor(list(targets)).expand(len(x), -1))
    with network.session():
        scorer = Scorer(network.scores_of, BatchSize(copies), tokens=network.tokens)
        request = Request(
            x, fixed, tuple(seeds or range(len(x))), scorer, kind, network, layer, mean, std  # type: ignore[arg-type]
        )  # fmt: skip
        return method.run(request, parse(method.params, params, name))


def model_of(net: nn.Module, size: int = 12) -> Model:
    """A `Model` around a toy network; pixels are only centred, so that inputs keep their scale."""
    return wrap(net, size=size, mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))


def answers(
    model: Model,
    name: str,
    x: Tensor,
    target: str = "top1",
    *,
    seeds: Sequence[int] | None = None,
    layer: str | None = None,
    copies: int = 16,
    score: Any = None,
    precision: str = "fp32",
    device: torch.device | None = None,
    **params: Any,
) -> list[list[Answer] | VisxError]:
    """The engine's answers for a batch: one list an image, one answer a target."""
    (job,) = plan(model, [get_method(name)], [layer] if layer else [], {name: params}, score)
    network = model.network(precision, device)
    spec = parse_target(target, model.names, model.classes)
    with network.session():
        return explain_batch(
            model, network, job, x, [spec] * len(x), list(seeds or range(len(x))), copies=BatchSize(copies)
        )  # fmt: skip


def maps_of(found: Sequence[list[Answer] | VisxError]) -> np.ndarray:
    """(B, T, H, W) float32; an image's error is raised."""
    rows = []
    for image in found:
        if isinstance(image, VisxError):
            raise image
        rows.append(np.stack([answer.map for answer in image]))
    return np.stack(rows)


def pearson(a: Any, b: Any) -> float:
    """The correlation of two arrays of one size; an array without variance correlates with nothing (0)."""
    a, b = (np.asarray(v, dtype=np.float64).ravel() for v in (a, b))
    assert a.shape == b.shape, (a.shape, b.shape)
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norm if norm else 0.0


def same(a: Any, b: Any, within: float = 1e-9) -> bool:
    """Whether two arrays differ nowhere by more than `within` of the second one's largest absolute value (not 0)."""
    a, b = (v.detach().cpu().numpy() if isinstance(v, Tensor) else np.asarray(v) for v in (a, b))
    scale = float(np.abs(b).max())
    return a.shape == b.shape and scale > 0 and float(np.abs(a - b).max()) <= within * scale


Rule = Callable[[Tensor, Tensor, float], Tensor]


def plain(g: Tensor, z: Tensor, top: float) -> Tensor:
    """A ReLU's derivative: the gradient passes where the input lay between 0 and `top`."""
    return torch.where((z > 0) & (z < top), g, torch.zeros_like(g))


def deconv(g: Tensor, z: Tensor, top: float) -> Tensor:
    """arXiv:1412.6806, figure 1: the gradient passes where it is positive."""
    return torch.where(g > 0, g, torch.zeros_like(g))


def guided(g: Tensor, z: Tensor, top: float) -> Tensor:
    """arXiv:1412.6806, figure 1: the gradient passes where both it and the input are positive (and below `top`)."""
    return torch.where((g > 0) & (z > 0) & (z < top), g, torch.zeros_like(g))


def backward_by_hand(net: TwoConvs, x: Tensor, target: int, rule: Rule, top: float = math.inf) -> Tensor:
    """The gradient (B, 3, H, W) of a logit of `TwoConvs` with ReLUs, layer by layer, without autograd."""
    with torch.no_grad():
        z1 = F.conv2d(x, net.conv1.weight, net.conv1.bias, padding=1)
        z2 = F.conv2d(z1.clamp(0, top), net.conv2.weight, net.conv2.bias, padding=1)
        g2 = net.fc.weight[target].view(1, -1, 1, 1).expand_as(z2) / (z2.shape[2] * z2.shape[3])
        g1 = F.conv_transpose2d(rule(g2, z2, top), net.conv2.weight, padding=1)
        return F.conv_transpose2d(rule(g1, z1, top), net.conv1.weight, padding=1)


_HOOKS = sorted(name for name in vars(nn.Module()) if "hooks" in name)


def fingerprint(net: nn.Module) -> dict[str, Any]:
    """All that explaining a model may not change: the module, inside and out, random states and numeric settings."""
    state: dict[str, Any] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        kept = {k: v for k, v in vars(module).items() if isinstance(v, (bool, int, float, str)) or v is None}
        state[f"{name}: type, flags"] = (type(module).__name__, id(module), kept)
        state[f"{name}: names"] = sorted(vars(module)), "forward" in vars(module)
        for hooks in _HOOKS:
            held = getattr(module, hooks)
            state[f"{name}: {hooks}"] = list(held.items()) if isinstance(held, dict) else held
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        state[f"{name}: tensor"] = (
            id(tensor), tensor.data_ptr(), tensor.dtype, str(tensor.device), tensor.shape, tensor.stride(),
            tensor.requires_grad, tensor.is_leaf, tensor._version, tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes(),
        )  # fmt: skip
        grad = tensor.grad
        state[f"{name}: grad"] = None if grad is None else (id(grad), grad.detach().cpu().numpy().tobytes())
    numpy_state = np.random.get_state()
    state["random"] = (
        random.getstate(),
        torch.get_rng_state().numpy().tobytes(),
        numpy_state[1].tobytes(),
        numpy_state[2:],
    )
    cudnn = torch.backends.cudnn
    state["settings"] = (
        torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark, cudnn.enabled,
        torch.is_grad_enabled(), torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
        torch.overrides._get_current_function_mode(), F.relu, torch.relu, torch.get_default_dtype(),
    )  # fmt: skip
    return state


def assert_unchanged(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Compare fingerprints and name what differs."""
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    changed = [key for key in before if before[key] != after[key]]
    assert not changed, f"changed: {changed}"


def plain_gradcam(net: nn.Module, layer: str, x: Tensor, target: int, read: Callable[[Tensor], Tensor]) -> Tensor:
    """Grad-CAM before its ReLU by PyTorch alone; `read` makes (B, K, h, w) of the layer's output."""
    kept: list[Tensor] = []

    def hook(_: nn.Module, args: object, output: Tensor) -> Tensor:
        kept.append(output.detach().clone().requires_grad_())
        return kept[-1].clone()

    handle = net.get_submodule(layer).register_forward_hook(hook)
    score = net(x)[:, target].sum()
    handle.remove()
    (grad,) = torch.autograd.grad(score, kept[-1])
    return (read(kept[-1].detach()) * read(grad).mean((2, 3), keepdim=True)).sum(1, keepdim=True)
