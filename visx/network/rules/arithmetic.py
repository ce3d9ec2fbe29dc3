"""ReLUs that are written as arithmetic: `maximum(x, 0)`, `where(x > 0, x, 0)`, `x * (x > 0)`, `(x + x.abs()) / 2`, ...

A call counts as a ReLU of x where its values say so: what it keeps is x where x > 0, all else is 0. That alone does not
settle it where x has one sign only (positive weights under an attention mask that hides nothing): there the mask must
have been made by comparing x itself with 0. Masks, gates and position tables that have nothing to do with x's sign are
therefore left alone. Switches on x that are no ReLU (a threshold, a leaky slope, a maxout) are named.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Written(NamedTuple):
    """A call that computes `gain` times the ReLU of `input`, in place or not."""

    input: Tensor
    gain: float = 1.0
    in_place: bool = False


class _Compared(NamedTuple):
    """A mask, the tensor that was compared for it, and the number it was compared with (NaN: another tensor)."""

    mask: Tensor
    source: Tensor
    bound: float

    def of(self, x: Tensor) -> bool:
        """Whether the very values of `x` were compared, detached or not."""
        return self.source is x or (self.source.data_ptr() == x.data_ptr() and self.source.shape == x.shape)


def _named(*names: str) -> set[Any]:
    return {getattr(home, name) for name in names for home in (torch, Tensor) if hasattr(home, name)}


_IN_PLACE = _named("mul_", "multiply_", "masked_fill_", "clamp_", "clip_", "clamp_min_") | {F.elu_, F.leaky_relu_}
_MUL = _named("mul", "multiply", "mul_", "multiply_")
_FILL = _named("masked_fill", "masked_fill_") | {Tensor.__setitem__}
_CLAMP = _named("clamp", "clip", "clamp_min", "clamp_", "clip_", "clamp_min_")
_SLOPED = {F.leaky_relu, F.leaky_relu_, F.elu, F.elu_, F.prelu, torch.prelu, Tensor.prelu}
_ADD, _SUB = _named("add"), _named("sub", "subtract")
_COMPARE = _named("gt", "ge", "lt", "le", "greater", "greater_equal", "less", "less_equal")
_CONVERT = _named("logical_not") | {
    Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.to, Tensor.type, Tensor.type_as, Tensor.__invert__,
}  # fmt: skip
_ABS = _named("abs", "absolute")
_LOWER = _named("minimum", "fmin", "clamp", "clip", "clamp_max") | {torch.min, Tensor.min}
_REMEMBERED = _COMPARE | _CONVERT | _ABS | _LOWER


class Arithmetic:
    """Looks at the calls of one pass in order. `others` counts the switches on a tensor's own values that are no ReLU."""

    def __init__(self, others: Counter[str] | None = None) -> None:
        self.others = others if others is not None else Counter()
        self._masks: dict[int, _Compared] = {}
        self._parts: dict[
            int, tuple[Tensor, Tensor, set[Any], float]
        ] = {}  # |x| or min(x, 0), x, what makes a ReLU, gain

    @staticmethod
    def knows(func: Any) -> bool:
        """Whether calls of a function can be a ReLU at all."""
        return func in _RULES

    def relu(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Written | None:
        """The ReLU that a call about to be made is, else None."""
        rule = _RULES.get(func)
        if rule is None:
            return None
        with torch.no_grad():
            x, name = rule(self, func, args, kwargs)
        if x is None:
            if name:
                self.others[name] += 1
            return None
        return x if x.input.is_floating_point() else None

    def remember(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Take note of a call that was made, if a ReLU may be made of its output."""
        if func not in _REMEMBERED or not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        x = args[0]
        if func in _COMPARE:
            bound = args[1] if len(args) > 1 else kwargs.get("other")
            if not isinstance(bound, (int, float)):
                bound = 0.0 if _zero(bound) else math.nan
            self._masks[id(output)] = _Compared(output, x, float(bound))
        elif func in _CONVERT:
            before = self._masks.get(id(x))
            if before is not None and before.mask is x:
                self._masks[id(output)] = _Compared(output, before.source, before.bound)
        elif func in _ABS:
            self._parts[id(output)] = output, x, _ADD, 2.0
        elif _zero(_ceiling(func, args, kwargs)):
            self._parts[id(output)] = output, x, _SUB, 1.0

    def _maximum(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Verdict:
        x, other = _operands(args, kwargs)
        if not isinstance(x, Tensor) or not isinstance(other, Tensor):  # a maximum over a dimension
            return None, ""
        for one, zero in ((x, other), (other, x)):
            if _zero(zero) and _same_shape(one, zero):
                return Written(one), ""
        return None, "maximum" if x.requires_grad and other.requires_grad else ""

    def _clamp(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Verdict:
        x, low, high = (*args, None, None)[:3]
        low, high = kwargs.get("min", low), kwargs.get("max", high)
        result = isinstance(low, Tensor) and high is None and _zero(low) and _same_shape(x, low)
        return (Written(x, in_place=func in _IN_PLACE) if result else None), ""

    def _sloped(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Verdict:
        slope: Any = kwargs.get("negative_slope", kwargs.get("alpha", kwargs.get("weight")))
        slope = args[1] if len(args) > 1 else slope
        flat = _zero(slope) if isinstance(slope, Tensor) else slope == 0
        return (Written(args[0], in_place=func in _IN_PLACE or bool(kwargs.get("inplace"))) if flat else None), ""

    def _where(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Verdict:
        if len(args) < 3:
            return None, ""
        mask, a, b = (
            args[:3] if isinstance(args[0], Tensor) and args[0].dtype == torch.bool else (args[1], args[0], args[2])
        )
        if not isinstance(mask, Tensor):
            return None, ""
        for x, other, keep in ((a, b, mask), (b, a, ~mask)):
            fits = not isinstance(other, Tensor) or (isinstance(x, Tensor) and _same_shape(x, other))
            if isinstance(x, Tensor) and _zero(other) and fits and self._keeps(x, keep, mask):
                return Written(x), ""
        return None, "where" if self._switches(mask, a, b) else ""

    def _mul(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Verdict:
        a, b = _operands(args, kwargs)
        if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
            return None, ""
        for x, mask in ((a, b), (b, a)):
            if mask.requires_grad or not x.is_floating_point() or (func in _IN_PLACE and x is not a):
                continue
            if _binary(mask):
                if self._keeps(x, mask.bool(), mask):
                    return Written(x, in_place=func in _IN_PLACE), ""
                return None, "mul" if self._switches(mask, x) else ""
        return None, ""

    def _fill(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Verdict:
        x, mask, value = (*args, None, None)[:3]
        mask, value = kwargs.get("mask", mask), kwargs.get("value", value)
        if not isinstance(x, Tensor) or not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            return None, ""
        in_place = func in _IN_PLACE or func is Tensor.__setitem__
        if _zero(value) and self._keeps(x, ~mask, mask):
            return Written(x, in_place=in_place), ""
        finite = (
            math.isfinite(value) if isinstance(value, (int, float)) else bool(torch.as_tensor(value).isfinite().all())
        )
        return None, "masked_fill" if finite and self._switches(mask, x) else ""

    def _sum(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Verdict:
        a, b = _operands(args, kwargs)
        if kwargs.get("alpha", 1) == 1:
            for x, part in ((a, b), (b, a)):
                known = self._parts.get(id(part))
                if known is not None and known[0] is part and known[1] is x and func in known[2]:
                    return (Written(x, known[3]) if func in _ADD or x is a else None), ""
        return None, ""

    def _keeps(self, x: Tensor, keep: Tensor, mask: Tensor) -> bool:
        """Whether `keep` (of x's shape) is where x is positive; `mask` is the tensor that the call was given for it."""
        if keep.shape != x.shape or not x.is_floating_point():
            return False
        positive = x > 0
        if not bool(((keep == positive) | (x == 0)).all()):
            return False
        known = self._masks.get(id(mask))
        made = known is not None and known.mask is mask and known.bound == 0 and known.of(x)
        return made or 0 < int(positive.sum()) < x.numel()

    def _switches(self, mask: Tensor, *values: Any) -> bool:
        """Whether a mask was made by comparing one of these differentiable values."""
        known = self._masks.get(id(mask))
        return known is not None and any(isinstance(v, Tensor) and v.requires_grad and known.of(v) for v in values)


_Verdict = tuple[Written | None, str]  # the ReLU, or the name of a switch that is none ("": neither)


def _rules(*pairs: tuple[Iterable[Any], Callable[..., _Verdict]]) -> dict[Any, Callable[..., _Verdict]]:
    return {func: rule for funcs, rule in pairs for func in funcs}


_RULES = _rules(
    (_named("maximum", "fmax", "max"), Arithmetic._maximum),
    (_CLAMP, Arithmetic._clamp),
    (_SLOPED, Arithmetic._sloped),
    (_named("where"), Arithmetic._where),
    (_MUL, Arithmetic._mul),
    (_FILL, Arithmetic._fill),
    (_ADD | _SUB, Arithmetic._sum),
)


def _operands(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    a, b = (*args, None, None)[:2]
    return kwargs.get("input", a), kwargs.get("other", b)


def _zero(value: Any) -> bool:
    """Whether a number, or a constant tensor, is zero everywhere."""
    if isinstance(value, Tensor):
        return not value.requires_grad and not bool(value.any())
    return isinstance(value, (int, float)) and value == 0


def _binary(mask: Tensor) -> bool:
    """Whether a tensor holds zeros and ones alone. A corner of it tells most others apart at no cost."""
    if mask.dtype == torch.bool:
        return True
    corner = mask[(slice(0, 4),) * mask.dim()]
    return all(bool(((part == 0) | (part == 1)).all()) for part in (corner, mask))


def _same_shape(x: Tensor, zero: Tensor) -> bool:
    """Whether the operation with a zero leaves shape and type of `x` as they are."""
    fits = torch.broadcast_shapes(x.shape, zero.shape) == x.shape
    return fits and torch.result_type(x, zero) == x.dtype


def _ceiling(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `minimum` or `clamp` cuts off above; None where it cuts off below too."""
    if func not in _CLAMP:
        return args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("max"))
    low, high = (*args[1:], None, None)[:2]
    return kwargs.get("max", high) if kwargs.get("min", low) is None else None
