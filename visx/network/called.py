"""A black box around a Python callable, which takes numpy arrays or tensors and returns scores as either, or as lists."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from visx.errors import ExitCode, VisxError, said_by, unsupported
from visx.network.function import Function
from visx.network.memory import out_of_memory

Takes = Literal["numpy", "torch"]
TAKES: tuple[Takes, ...] = ("numpy", "torch")  # in the order in which they are tried
WANTED = "scores of shape (N, classes), as an array, a tensor or nested lists"


class Called(Function):
    """Scores of a callable that is given one batch, float32. `takes` says as what; None: what it bears, numpy first. A batch
    that it writes to is a copy."""

    def __init__(
        self,
        name: str,
        call: Callable[[Any], Any],
        *,
        takes: Takes | None = None,
        nhwc: bool = False,
        most: int | None = None,
    ) -> None:
        super().__init__(name, nhwc=nhwc, most=most)
        self.call, self.takes = call, takes
        self._writes = True  # whether it works in place on its input; not known before the first call

    @property
    def about(self) -> str:  # type: ignore[override]
        """How it computes, in words."""
        kind = {"numpy": "numpy arrays", "torch": "tensors", None: "batches"}[self.takes]
        return f"a Python callable of {kind} (N, {'H, W, C' if self.nhwc else 'C, H, W'})"

    def answer(self, x: Tensor) -> Any:
        if self.takes is None:
            return self._first(x)
        given = x.clone() if self._writes else x
        output = self.call(given.numpy() if self.takes == "numpy" else given)
        if self._writes and torch.equal(given, x):
            self._writes = False
        return raw_of(output, len(x))

    def _first(self, x: Tensor) -> Any:
        """The raw output of the first call, which shows what is taken. Raises `VisxError` where nothing is."""
        reasons: dict[str, str] = {}
        for takes in TAKES:
            self.takes = takes
            try:
                return self.answer(x)
            except (Exception, SystemExit) as error:
                self.takes = None
                if out_of_memory(error):
                    raise
                said = error.message if isinstance(error, VisxError) else said_by(error)
                reasons.setdefault(said, f"given {'an array' if takes == 'numpy' else 'a tensor'}: {said}")
                last = error
        size = "x".join(map(str, x.shape))
        why = "; ".join(reasons.values()) if len(reasons) > 1 else next(iter(reasons))
        code = last.code if isinstance(last, VisxError) else ExitCode.FAILURE
        raise VisxError(f"{self.name} fails on an input of {size}: {why}", hint=self.hint(last), code=code)

    def hint(self, error: BaseException) -> str:
        if isinstance(error, VisxError):
            return error.hint
        wanted = _wanted(self.call)
        if wanted is not None:
            return f"it is called with one batch alone, and takes {wanted}"
        return 'size, mean, std, layout and takes ("numpy" or "torch") of visx.wrap say what it is given; VISX_DEBUG=1 shows the traceback'


def raw_of(output: Any, rows: int) -> Any:
    """What a callable returned for so many pictures, with tensors for its arrays and lists of numbers. Raises `VisxError`
    (exit 4) where it is no output of that kind."""
    result = _converted(output, rows)
    if result is None or (isinstance(result, (dict, list)) and not result):
        raise unsupported(f"it returned a {type(output).__name__}", f"return {WANTED}")
    return result


def _converted(value: Any, rows: int) -> Any:
    """Tensors in the place of arrays, numbers and lists of them; None for what is none of these."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (str, bytes, type)) or value is None:
        return None
    if isinstance(value, Mapping):
        parts = {str(key): _converted(part, rows) for key, part in value.items()}
        return {key: part for key, part in parts.items() if part is not None}
    if hasattr(value, "_fields"):  # a named tuple
        return _converted(dict(zip(value._fields, value, strict=True)), rows)
    if isinstance(value, (list, tuple)):
        return _of_list(value, rows)
    return _of_array(value)


def _of_list(value: list[Any] | tuple[Any, ...], rows: int) -> Any:
    """A list of numbers at any depth as one tensor; one of a vector or number a picture, too; else a list of members."""
    if not any(isinstance(v, (Tensor, Mapping)) or (hasattr(v, "__array__") and np.ndim(v)) for v in value):
        whole = _of_array(value)
        if whole is not None:
            return whole
    parts = [part for part in (_converted(v, rows) for v in value) if part is not None]
    vectors = [part for part in parts if isinstance(part, Tensor) and part.dim() < 2]
    if len(vectors) == len(value) == rows and len({part.shape for part in vectors}) == 1:
        return torch.stack(vectors)
    return parts


def _of_array(value: Any) -> Tensor | None:
    """A tensor of what numpy takes for an array of numbers; None where it does not."""
    try:
        array = np.asarray(value)
        return None if array.dtype.kind not in "biuf" else torch.from_numpy(np.array(array))
    except (TypeError, ValueError, RuntimeError):  # ragged, or a type that torch does not know
        return None


def _wanted(call: Callable[..., Any]) -> str | None:
    """The arguments of a callable that cannot be called with one; None where it can."""
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):  # no Python function
        return None
    try:
        signature.bind(None)
    except TypeError:
        return str(signature)
    return None
