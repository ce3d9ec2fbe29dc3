"""ReLU rules on calls: every ReLU, by whichever name it is called, records the rule's backward pass instead of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from visx.network.rules.activations import Activations, Rule
from visx.network.rules.arithmetic import Arithmetic

_RELU = {F.relu, torch.relu, Tensor.relu, torch.ops.aten.relu, torch.ops.aten.relu.default}
_RELU_ = {torch.relu_, Tensor.relu_}
_CLAMP = {torch.clamp, Tensor.clamp, torch.clip, Tensor.clip}
_CLAMP_ = {torch.clamp_, Tensor.clamp_, torch.clip_, Tensor.clip_}
_CLAMP_MIN = {torch.clamp_min, Tensor.clamp_min}
_CLAMP_MIN_ = {torch.clamp_min_, Tensor.clamp_min_}
_THRESHOLD = {F.threshold, torch.threshold}
_THRESHOLD_ = {torch.threshold_}  # which is F.threshold_ too
RELUS = frozenset().union(  # what may be one; its arguments decide
    _RELU, _RELU_, _CLAMP, _CLAMP_, _CLAMP_MIN, _CLAMP_MIN_, _THRESHOLD, _THRESHOLD_, {F.relu6, F.hardtanh, F.hardtanh_}
)
OTHER_ACTIVATIONS = {
    F.gelu, F.silu, F.hardswish, F.hardsigmoid, F.elu, F.celu, F.selu, F.rrelu, F.leaky_relu, F.mish, F.softplus, F.prelu,
    torch.sigmoid, torch.tanh, Tensor.sigmoid, Tensor.tanh, F.sigmoid, F.tanh, torch.prelu, torch.celu, torch.selu,
}  # fmt: skip


class ReluCall(NamedTuple):
    """A ReLU by any of its names. `keeps_input`: plain autograd keeps its input for the backward pass, not its output,
    so that a network may go on to work in place on the output (the hard sigmoid `relu6(x + 3).div_(6)`)."""

    input: Tensor
    ceiling: float = math.inf
    in_place: bool = False
    keeps_input: bool = False


def relu_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> ReluCall | None:
    """The ReLU that this call is, else None."""

    def argument(position: int, name: str, default: Any) -> Any:
        return args[position] if len(args) > position else kwargs.get(name, default)

    x = argument(0, "input", None)
    if func in _RELU:
        return ReluCall(x, in_place=bool(argument(1, "inplace", False)))
    if func in _RELU_:
        return ReluCall(x, in_place=True)
    if func is F.relu6:
        in_place = bool(argument(1, "inplace", False))
        return ReluCall(x, 6.0, in_place, keeps_input=not in_place)
    if func is F.hardtanh or func is F.hardtanh_:
        low, high = argument(1, "min_val", -1.0), argument(2, "max_val", 1.0)
        in_place = func is F.hardtanh_ or bool(argument(3, "inplace", False))
        return ReluCall(x, float(high), in_place, keeps_input=not in_place) if low == 0 else None
    if func in _CLAMP or func in _CLAMP_:
        low, high = argument(1, "min", None), argument(2, "max", None)
        number = isinstance(low, (int, float)) and low == 0 and (high is None or isinstance(high, (int, float)))
        return ReluCall(x, math.inf if high is None else float(high), func in _CLAMP_, True) if number else None
    if func in _CLAMP_MIN or func in _CLAMP_MIN_:
        low = argument(1, "min", None)
        return ReluCall(x, math.inf, func in _CLAMP_MIN_, True) if isinstance(low, (int, float)) and low == 0 else None
    if func in _THRESHOLD or func in _THRESHOLD_:
        in_place = func in _THRESHOLD_ or bool(argument(3, "inplace", False))
        zeros = argument(1, "threshold", None) == argument(2, "value", None) == 0
        return ReluCall(x, math.inf, in_place, True) if zeros else None
    return None


class Rules(TorchFunctionMode):
    """Every ReLU called within its `with` differentiates by `rule`; `activations` counts them."""

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule
        self.activations = Activations()
        self._arithmetic = Arithmetic(self.activations.others)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():  # inside autograd functions
            return func(*args, **kwargs)
        call = relu_call(func, args, kwargs)
        if call is not None:
            self.activations.relus += 1
            return _Rectify.apply(*call, self.rule == "guided")
        written = self._arithmetic.relu(func, args, kwargs)
        if written is not None and written.input.requires_grad:
            self.activations.relus += 1
            return self._rectified(*written)
        if func in OTHER_ACTIVATIONS and written is None:
            self.activations.others[func.__name__] += 1
        output = func(*args, **kwargs)
        self._arithmetic.remember(func, args, kwargs, output)
        return output

    def _rectified(self, x: Tensor, gain: float, in_place: bool) -> Tensor:
        """A ReLU written as arithmetic. The network may go on to work in place on its input or output."""
        x = x if in_place else x.clone()
        output: Tensor = _Rectify.apply(x, math.inf, in_place, True, self.rule == "guided")
        return output if gain == 1 else output * gain


class _Rectify(torch.autograd.Function):
    """min(max(x, 0), ceiling) with a rule's backward pass."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, ceiling: float, in_place: bool, keeps_input: bool, guided: bool
    ) -> Tensor:
        kept = x.clone() if guided and in_place and keeps_input else x
        if in_place:
            ctx.mark_dirty(x)
        if ceiling == math.inf:
            out = x.relu_() if in_place else x.relu()
        else:
            out = x.clamp_(0, ceiling) if in_place else x.clamp(0, ceiling)
        ctx.guided, ctx.ceiling = guided, ceiling
        if guided:
            ctx.save_for_backward(kept if keeps_input else out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.guided:
            (kept,) = ctx.saved_tensors
            if ctx.ceiling == math.inf:
                grad = torch.ops.aten.threshold_backward(grad, kept, 0).relu_()
            else:
                grad = torch.ops.aten.hardtanh_backward(grad, kept, 0, ctx.ceiling).relu_()
        else:
            grad = grad.relu()
        return grad, None, None, None, None
