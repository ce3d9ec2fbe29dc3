"""Passes with every batch normalisation, and without gradients the ReLU behind it, folded into the convolution before it.

In eval mode BN(conv(x)) is itself a convolution, with weight w * s and bias (b - mean) * s + beta, where s = gamma /
sqrt(var + eps) for each channel. That is exact but for rounding and saves a pass over memory for each layer. On a CPU
oneDNN's convolution can also apply the ReLU to what it writes, which saves another, and takes weights that are already in
its own layout (the operators are those that torch's own compiler uses): a quarter less time for a single image.

No part of the module is replaced. The record of one pass tells which convolution feeds which normalisation and ReLU
(visx/network/fast/chains.py). From then on, inside its `with`, a `TorchFunctionMode` hands the folded weights to those
convolutions and lets the normalisations and ReLUs return their input. Every pass is checked for whether a convolution's
output is read by its normalisation and by nothing else (visx/network/fast/pending.py), because the branch that a pass takes
may depend on the data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visx.network.fast.chains import Chain, chains
from visx.network.fast.onednn import CONVOLUTIONS, Convolution, Geometry, packed, pointwise
from visx.network.fast.pending import Astray, Pending
from visx.network.isolation import hooked_globally
from visx.network.record import Record
from visx.network.rules import RELUS, relu_call
from visx.network.trace import glance

# What rounding alone may move logits by, as a part of their range. More means that the structure was misread.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}
_FUSIBLE = {torch.float32, torch.bfloat16}


# Questions about a tensor's form. They read no values, so they need no check; they come several times a layer.
_FORMS = {Tensor.dim, Tensor.size, Tensor.numel, Tensor.stride, Tensor.is_contiguous}


class Step:
    """A convolution that runs folded: `chain`, and `weight` and `bias` of the convolution that does all of it."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self.weight, self.bias = chain.folded()
        self._packed: Tensor | None = None  # in the layout that is best for the input it first met
        self._behind: tuple[Any, ...] = ()  # the last call's arguments behind the bias
        self._geometry: Geometry | None = None  # and what they are for oneDNN

    def bias_given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call of the convolution has the bias that was folded."""
        return (args[2] if len(args) > 2 else kwargs.get("bias")) is self.chain.bias

    def fused(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """The convolution by oneDNN, and rectified; None where oneDNN's operator does not take such a call."""
        x = args[0]
        if x.dim() != 4:
            return None
        if kwargs or self._packed is None or args[3:] != self._behind:
            call = Convolution.called(func, args, kwargs)
            self._geometry, self._behind = call.geometry(), args[3:]
            if self._geometry is None:
                return None
            if self._packed is None:
                self._packed = packed(self.weight, call)
        if self._geometry is None:
            return None
        return pointwise(x, self._packed, self.bias, self._geometry, self.chain.ceiling)

    def plain(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The convolution as it is called, with the folded weight and bias."""
        return Convolution.called(func, args, kwargs).run(weight=self.weight, bias=self.bias)


class _Result(NamedTuple):
    """The output of a folded convolution, to be read by the normalisation or the ReLU of its chain."""

    output: Tensor
    chain: Chain
    rectified: bool  # the ReLU is done already
    at_relu: bool = False  # the normalisation has come


class Folded(TorchFunctionMode):
    """Inside it, the module that was watched runs folded. Empty (falsy) where there is nothing to fold. Raises `Astray`
    where a pass goes another way than the one that was watched.

    `fusing`: whether convolutions may be oneDNN's, which rectify what they write (only where no gradient is recorded).

    A convolution returns an alias of its result, and so does a normalisation whose ReLU is done already. So each step of a
    chain has a tensor of its own, and a late read of an earlier step's tensor can be told from a read of the next one's."""

    def __init__(self, chains: list[Chain], fusing: bool = False) -> None:
        super().__init__()
        self.chains = chains
        self._versions = [(t, t._version, t.data_ptr()) for chain in chains for t in chain.tensors()]
        self.steps = {id(chain.weight): Step(chain) for chain in chains}
        self._pending = Pending()  # purpose: _Result
        self.fusing = fusing
        self.active = True  # off: calls pass as they are
        self.passed = 0  # convolutions that could be folded, but came while that was off

    def __bool__(self) -> bool:
        return bool(self.chains)

    def current(self) -> bool:
        """Whether the module's values are still those that were folded, as far as version counters tell."""
        return all(t._version == version and t.data_ptr() == place for t, version, place in self._versions)

    def __enter__(self) -> Folded:
        self.active, self.passed = True, 0
        self._pending.clear()  # what a pass that failed left
        return super().__enter__()  # type: ignore[no-any-return]

    def check(self) -> None:
        """To be called at the end of a pass. Raises `Astray` where a tensor of an unfinished chain is still held."""
        if self.active and self._pending.alive():
            raise Astray

    def in_chain(self) -> bool:
        """Whether the pass is inside a chain at the moment, so that folding cannot end here."""
        return any(self.cuts(tensor) for tensor in self._pending.alive())

    def cuts(self, output: Tensor) -> bool:
        """Whether a tensor lies inside a folded chain, so that it is not what it seems."""
        return self._pending.purpose(output) is not None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FORMS:
            return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        if func in CONVOLUTIONS and len(args) > 1:
            step = self.steps.get(id(args[1]))
            if step is not None and not self.active:
                self.passed += 1
            elif step is not None and step.bias_given(args, kwargs) and not self._pending.has(args[0]):
                return self._convolve(step, func, args, kwargs)
        if self._pending:
            done = self._done(func, args, kwargs) if self.active else None
            if done is not None:
                return done
            if self._pending.read_by(func, args, kwargs):
                raise Astray
        return func(*args, **kwargs)

    def _done(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        """The output of a normalisation or ReLU that the convolution before it has done already; None for other calls."""
        if func is F.batch_norm and args:
            result = self._pending.purpose(args[0])
            if result is None or result.at_relu or not result.chain.ends_in(args, kwargs):
                return None
            self._pending.spend(args[0])
            if not result.rectified:
                return result.output
            return self._handed(_Result(result.output, result.chain, rectified=True, at_relu=True))
        if func not in RELUS:
            return None
        relu = relu_call(func, args, kwargs)
        result = self._pending.purpose(relu.input) if relu is not None else None
        if relu is None or result is None or not result.at_relu or result.chain.ceiling != relu.ceiling:
            return None
        if relu.in_place:
            self._pending.drop(relu.input)
            return relu.input
        self._pending.spend(relu.input)
        return result.output

    def _convolve(self, step: Step, func: Any, args: Any, kwargs: Any) -> Tensor:
        if self.fusing and not (args[0].requires_grad and torch.is_grad_enabled()):
            output = step.fused(func, args, kwargs)
            if output is not None:
                return self._handed(_Result(output, step.chain, rectified=step.chain.ceiling is not None))
        return self._handed(_Result(step.plain(func, args, kwargs), step.chain, rectified=False))

    def _handed(self, result: _Result) -> Tensor:
        """An alias of a result, for the next step of its chain alone."""
        alias = result.output.data
        self._pending.add(alias, result)
        return alias


@torch.no_grad()
def fold(module: nn.Module, x: Tensor, recorded: Callable[[], Record] | None = None) -> Folded:
    """What can be folded in a module in eval mode, learnt from a recorded pass over `x` and checked on it. Empty where folding
    changes the logits by more than rounding, or where memory does not hold every tensor of the recorded pass. `recorded`
    returns the record, which is made here where none is given."""
    if next(module.buffers(), None) is None:  # no statistics, no normalisation: a transformer need not be watched
        return Folded([])
    if hooked_globally():  # they see every tensor
        return Folded([])
    try:
        record = recorded() if recorded is not None else glance(module, x)
    except torch.OutOfMemoryError:
        return Folded([])
    plain, links = record.output, chains(record)
    if not links or plain is None:
        return Folded([])
    for fusing in [True, False] if x.device.type == "cpu" and x.dtype in _FUSIBLE else [False]:
        folded = Folded(links, fusing)
        try:
            with folded:
                other = module(x.clone())
                folded.check()
        except Astray:  # somebody keeps a tensor that lies between, or the next pass goes another way
            continue
        except (RuntimeError, AttributeError):  # this processor, or this torch, has no such operator
            if not fusing:
                raise
            continue
        if agree(plain, other, plain.dtype):
            return folded
    return Folded([])


def agree(plain: Tensor, other: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits computed in this precision in another way are what they were, but for rounding."""
    scale = plain.max() - plain.min() if plain.numel() > 1 else plain.abs().max()
    return bool((other - plain).abs().max() <= _TOLERANCE[dtype] * scale)
