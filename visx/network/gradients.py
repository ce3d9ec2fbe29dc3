"""Gradients of a network's scores: with respect to its input, to a layer's output, and from a layer's output to the input.

The functions are methods of `Network` (visx/network/network.py) and are called inside its session. ReLU rules
(visx/network/rules/) act in one pass only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import wraps
from itertools import count
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from visx.errors import unsupported
from visx.network.behaviour import Behaviour
from visx.network.fast import Accelerated, Passes
from visx.network.forms import scripted
from visx.network.grid import Layer
from visx.network.isolation import StopForward, hooked
from visx.network.norms import align_norms
from visx.network.outputs import Outputs, in_full, require_graph
from visx.network.rules import Activations, Rule, Rules, complete, custom_functions, guide
from visx.network.scorer import Scores

R = TypeVar("R")
P = ParamSpec("P")


class Differentiable(Passes, Protocol):
    """A network whose scores are differentiated (`visx.network.network.Network`)."""

    @property
    def fast(self) -> Accelerated:
        """The faster ways to its scores and gradients."""

    @property
    def outputs(self) -> Outputs:
        """What the module's raw output means."""

    @property
    def behaviour(self) -> Behaviour:
        """What the module's output for a picture depends on besides the picture."""

    def run(self, x: Tensor) -> Any:
        """The module's raw output for prepared pictures (B, C, H, W)."""

    @property
    def recorded(self) -> Mapping[torch.Size, Mapping[str, Layer]]:
        """The layers by input shape and path, in the order of the pass."""

    def layer(self, name: str) -> nn.Module:
        """The module at a path."""

    def feature_layer(self, name: str, shape: torch.Size) -> Layer:
        """The layer at a path, whose output for inputs of this shape (C, H, W) is a feature map."""


@dataclass
class InputGradients:
    """`grads` (B, T, C, H, W) float32 (float64 for a float64 network); `scores` (B, T); `other_activations`: those that a
    ReLU rule left alone."""

    grads: Tensor
    scores: Tensor
    other_activations: Counter[str]


@dataclass
class LayerGradients:
    """`activation` (B, K, h, w) and `grads` (B, T, K, h, w) of one and the same tensor, float32 (float64 for
    a float64 network); `layer` says how they were read."""

    activation: Tensor
    grads: Tensor
    scores: Tensor
    layer: Layer


def recomputed(
    gradients: Callable[Concatenate[Differentiable, P], R],
) -> Callable[Concatenate[Differentiable, P], R]:
    """`gradients`, and once more where non-reentrant checkpointing has run parts of forward again in the backward pass:
    neither faster ways nor a rule on calls are in force there, so both are done without from then on."""

    @wraps(gradients)
    def run(network: Differentiable, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with suppress(CheckpointError):
            return gradients(network, *args, **kwargs)
        network.recomputing = True
        with suppress(CheckpointError):
            return gradients(network, *args, **kwargs)
        raise unsupported(*_CHECKPOINTED)

    return run


_CHECKPOINTED = (
    "its forward uses checkpointing, and what that runs again for the backward pass is not what ran before",
    "switch checkpointing off: it saves memory in training, which explaining does not need",
)


@recomputed
def input_gradients(
    network: Differentiable,
    x: Tensor,
    scores: Scores,
    rule: Rule | None = None,
    *,
    one_of_many: bool = False,
) -> InputGradients:
    """Gradients of scores with respect to the input: one forward pass, one backward pass a column of `scores`, which maps
    the network's values (B, ...) to scalars (B, T), each row by itself.

    For a plain gradient, each ReLU passes what it passes in the network's own forward pass, to the last bit. A caller
    that sums many gradients, or takes many steps along them, may set `one_of_many`: then rounding may move a ReLU's input
    across zero, which is faster. It always may under the guided rule, whose maps hardly change (r above 0.99998 on 24
    photographs). The deconvnet's do (r is 0.9999).
    """

    def run() -> tuple[Tensor, Tensor, Activations]:
        return _differentiable(network, x, network.logits, rule)

    with torch.enable_grad():
        leaf, logits, activations = network.fast.gradients(x.shape[1:], run, summed=one_of_many or rule == "guided")
        if rule is not None and not activations.relus:
            others = f" (it uses {', '.join(activations.others)})" if activations.others else ""
            raise unsupported(
                f"the model has no ReLU for the {rule} rule{others}: the result would be the plain gradient",
                "use backprop, smoothgrad or integrated_gradients",
            )
        scored = scores(logits)
        (grads,) = score_gradients(scored, [leaf])
    return InputGradients(grads, scored.detach(), activations.others)


def layer_gradients(network: Differentiable, x: Tensor, name: str, scores: Scores) -> LayerGradients:
    """Gradients of scores (see `input_gradients`) with respect to a layer's output. Only what lies behind the layer is
    differentiated."""
    return layers_gradients(network, x, [name], scores)[0]


@recomputed
def layers_gradients(network: Differentiable, x: Tensor, names: Sequence[str], scores: Scores) -> list[LayerGradients]:
    """As `layer_gradients`, of several layers, which may lie behind or within each other: one forward pass, one backward
    pass a column of `scores`. Only what lies behind the first of the layers is differentiated."""
    if len(x) > 1 and network.behaviour.one_row:
        return _row_by_row(network, x, names, scores)
    shape = x.shape[1:]
    layers = [network.feature_layer(name, shape) for name in names]
    order = list(network.recorded[shape]) if len(layers) > 1 else [layers[0].name]
    first = min((layer.name for layer in layers), key=order.index)
    return network.fast.until(first, shape, lambda arrived: _layers_gradients(network, x, layers, scores, arrived))


def _row_by_row(network: Differentiable, x: Tensor, names: Sequence[str], scores: Scores) -> list[LayerGradients]:
    """Layer gradients of copies of one picture, each in a pass of its own."""
    rows = [layers_gradients(network, row, names, scores) for row in x.split(1)]
    return [
        LayerGradients(
            torch.cat([r.activation for r in same]),
            torch.cat([r.grads for r in same]),
            torch.cat([r.scores for r in same]),
            same[0].layer,
        )
        for same in zip(*rows, strict=True)
    ]


def _layers_gradients(
    network: Differentiable, x: Tensor, layers: Sequence[Layer], scores: Scores, arrived: Callable[[], None]
) -> list[LayerGradients]:
    """One pass, its part behind the layers differentiated; `arrived` is called when the first one's output is there."""
    outputs: dict[str, Tensor] = {}

    def cut(layer: Layer) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        calls = count()

        def hook(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if next(calls) % layer.runs != layer.call:  # checkpointing runs it again for the backward pass
                return None
            kept = layer.output(output, len(x))
            if not outputs:
                arrived()
            if not outputs or not kept.requires_grad:  # else it was made from an earlier one of the layers
                kept = kept.detach().requires_grad_()
            outputs.setdefault(layer.name, kept)
            with torch.enable_grad():  # the layer may be the last under a no_grad of forward's own
                return kept.clone()  # what follows may work in place: the layer's own output is kept

        return hook

    # Nothing before the layers wants a gradient, so nothing is recorded there; behind them forward decides.
    with torch.enable_grad(), ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(hooked(network.layer(layer.name), cut(layer)))
        logits = network.logits(x)
        for layer in layers:
            if layer.name not in outputs:
                raise unsupported(f"layer {layer.name} ran in one forward pass and not in the next")
        require_graph(logits, f"layer {' or '.join(layer.name for layer in layers)}")
        scored = scores(logits)
        kept = [outputs[layer.name] for layer in layers]
        grads = score_gradients(scored, kept)
    result = []
    for layer, output, of_layer in zip(layers, kept, grads, strict=True):
        assert layer.grid is not None
        maps = torch.stack([layer.grid.maps(g) for g in of_layer.unbind(1)], 1)
        result.append(LayerGradients(layer.grid.maps(in_full(output.detach())), maps, scored.detach(), layer))
    return result


@recomputed
def project(
    network: Differentiable, x: Tensor, name: str, seed: Callable[[Tensor], Tensor], rule: Rule
) -> tuple[Tensor, Tensor]:
    """The projection of a layer's output back to the input: `seed` maps the activation (B, K, h, w) to what is sent
    back. Returns (gradient (B, C, H, W), activation). Nothing behind the layer is computed."""
    layer = network.feature_layer(name, x.shape[1:])
    grid = layer.grid
    assert grid is not None
    outputs: list[Tensor] = []

    def run(x: Tensor) -> Tensor:
        calls = count()

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            if next(calls) == layer.call:
                outputs.append(layer.output(output, len(x)))
                raise StopForward

        with suppress(StopForward), hooked(network.layer(name), stop):
            network.run(x)
            raise unsupported(f"layer {name} ran in one forward pass and not in the next")
        return outputs[-1]

    with torch.enable_grad():
        leaf, output, _ = _differentiable(network, x, run, rule, f"layer {name}")
        maps = grid.maps(output.detach())
        align_norms(output)
        (grad,) = torch.autograd.grad(output, leaf, grid.output(seed(maps), output))
    return in_full(grad), in_full(maps)


def _differentiable(
    network: Differentiable, x: Tensor, run: Callable[[Tensor], Tensor], rule: Rule | None, what: str = "the input"
) -> tuple[Tensor, Tensor, Activations]:
    """A leaf of `x`, what `run` makes of it, with every ReLU between them under `rule`, and the
    activations between them."""
    if rule is not None and (inside := scripted(network.module)):
        raise unsupported(
            f"a ReLU rule cannot reach into the scripted module {inside}",
            "use the eager module, or backprop",
        )
    leaf = network.prepare(x).requires_grad_()
    if rule != "deconv" or network.recomputing:
        output = run(leaf.clone())  # a network may work in place on its input
        require_graph(output, what)
        activations = guide(output, rule) if rule else Activations()
        if activations is not None:
            return leaf, output, activations
    with Rules(rule or "guided") as rules:
        output = run(leaf.clone())
    require_graph(output, what)
    rules.activations.relus += complete(output, rules.rule)
    rules.activations.others += custom_functions(output)
    return leaf, output, rules.activations


def score_gradients(scores: Tensor, wrt: Sequence[Tensor]) -> list[Tensor]:
    """d scores[b, t] / d wrt[b] -> (B, T, ...) float32 for each of the tensors `wrt`; images are independent of each other in
    eval mode."""
    align_norms(scores)
    targets = scores.shape[1]
    rows = []
    for t in range(targets):
        grads = torch.autograd.grad(scores[:, t].sum(), wrt, retain_graph=t + 1 < targets, allow_unused=True)
        rows.append([torch.zeros_like(to) if grad is None else grad for grad, to in zip(grads, wrt, strict=True)])
    return [in_full(torch.stack(row, 1) if targets > 1 else row[0].unsqueeze(1)) for row in zip(*rows, strict=True)]
