"""Chains of a recorded pass: a convolution, the normalisation that alone reads it, and perhaps the ReLU behind that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from visx.network.fast.onednn import CONVOLUTIONS
from visx.network.fast.pending import ASKING
from visx.network.isolation import has_hooks
from visx.network.record import Record, Value, values
from visx.network.rules import RELUS, ReluCall, relu_call

_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


@dataclass(frozen=True)
class Chain:
    """A convolution's weight and the normalisation behind it, both as the functions receive them, and the ceiling of the
    ReLU behind that, if there is one."""

    weight: Tensor
    bias: Tensor | None
    norm: dict[str, Any]
    ceiling: float | None

    def tensors(self) -> Iterator[Tensor]:
        for tensor in (self.weight, self.bias, *self.norm.values()):
            if isinstance(tensor, Tensor):
                yield tensor

    def ends_in(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether these are the arguments of this chain's normalisation: the same tensors, the same numbers."""
        if not kwargs and len(args) == 1 + len(self.norm) and all(map(is_, args[1:], self.norm.values())):
            return True  # as `nn.BatchNorm2d` calls it
        given = {**dict(zip(_NORM_ARGUMENTS, args, strict=False)), **kwargs}
        given.pop("input", None)
        if given.keys() != self.norm.keys():
            return False
        return all(
            value is self.norm[name] or (not isinstance(value, Tensor) and value == self.norm[name])
            for name, value in given.items()
        )

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (in its own layout) and bias of the one convolution that does both, computed in float64."""
        gamma, beta, mean = self.norm.get("weight"), self.norm.get("bias"), self.norm["running_mean"].double()
        scale = (self.norm["running_var"].double() + self.norm.get("eps", 1e-5)).rsqrt()
        scale = scale if gamma is None else scale * gamma.double()
        bias = ((self.bias.double() if self.bias is not None else 0.0) - mean) * scale
        bias = bias if beta is None else bias + beta.double()
        weight = self.weight.double() * scale.view(-1, *[1] * (self.weight.dim() - 1))
        return torch.empty_like(self.weight).copy_(weight), bias.to(self.weight.dtype)


def chains(record: Record) -> list[Chain]:
    """The chains of a closed record that can be folded: each is used once, no other function reads its tensors, its
    statistics are fixed. What hooks of the module's own are given counts as read: they shall see what the network computes."""
    reading = _Reading(record)
    result = []
    for norm, output in reading.norms:
        weight, bias = reading.convolutions.get(norm["input"], (None, None))
        mean = norm.get("running_mean")
        if weight is None or mean is None or norm.get("training", False):
            continue
        if reading.uses[norm["input"]] == reading.uses[weight] == reading.uses[mean] == 1:
            relu = reading.relus.get(output)
            alone = relu is not None and (relu.in_place or reading.uses[output] == 1)
            ceiling = relu.ceiling if relu is not None and alone else None
            rest = {name: value for name, value in norm.items() if name != "input"}
            if all(
                value.tensor is not None for value in values((weight, bias, rest))
            ):  # none is made in the pass itself
                result.append(
                    Chain(_constant(weight), _constant(bias), {k: _constant(v) for k, v in rest.items()}, ceiling)
                )
    return result


class _Reading:
    """The convolutions, normalisations and ReLUs of a record, and how often each tensor is read."""

    def __init__(self, record: Record) -> None:
        self.uses: Counter[Value] = Counter()  # as an argument of any function or hook
        self.convolutions: dict[Value, tuple[Value, Value | None]] = {}  # weight and bias, by the output
        self.norms: list[tuple[dict[str, Any], Value]] = []
        self.relus: dict[Value, ReluCall] = {}  # by their input, if nothing has read that before
        hooked = _seen_by_hooks(record)
        for place, call in enumerate(record.calls):
            self.uses.update(hooked.get(place, ()))
            relu = relu_call(call.func, call.args, call.kwargs) if call.func in RELUS else None
            rectified: Any = None if relu is None else relu.input
            if relu is not None and not self.uses[rectified]:
                self.relus[rectified] = relu
            if call.name in ASKING and not isinstance(call.output, Value):
                continue
            self.uses.update(values((call.args, call.kwargs)))
            if not isinstance(call.output, Value):
                continue
            if call.func in CONVOLUTIONS and len(call.args) > 1:
                bias = call.args[2] if len(call.args) > 2 else call.kwargs.get("bias")
                self.convolutions[call.output] = call.args[1], bias
            elif call.func is F.batch_norm:
                given = {**dict(zip(_NORM_ARGUMENTS, call.args, strict=False)), **call.kwargs}
                self.norms.append((given, call.output))
        self.uses.update(hooked.get(len(record.calls), ()))


def _seen_by_hooks(record: Record) -> dict[int, list[Value]]:
    """The tensors that hooks of the module's own are given, by the number of calls before them."""
    seen: dict[int, list[Value]] = {}
    for run in record.runs:
        if has_hooks(run.module):
            seen.setdefault(run.began, []).extend(run.inputs)
            seen.setdefault(run.ended, []).extend([*run.inputs, *run.outputs])
    return seen


def _constant(value: Any) -> Any:
    return value.tensor if isinstance(value, Value) else value
