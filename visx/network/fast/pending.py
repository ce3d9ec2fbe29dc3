"""Tensors that only one function may read, because a faster pass put other values into them than the network as written.

A convolution with the normalisation behind it folded in returns what that normalisation would return. That is right only
if the very tensor arrives there and nobody else reads it. A pass over other data may take another branch, so this is not
assumed from the pass that was learnt from: every call is checked, and a pass in which somebody else reads such a tensor
is made again without folding (`Astray`).
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor

from visx.network.tensors import tensors

# Of a tensor's form, not its values. `__get__`: attributes such as `shape`; those that are tensors (`data`) show values.
ASKING = {"__get__", "dim", "ndimension", "size", "numel", "stride", "is_contiguous"}


class Astray(BaseException):
    """A tensor was read by another function than the one it was meant for. Not an `Exception`: a network's own `except
    Exception` shall not catch it."""


class Pending:
    """Tensors that wait for one function, and those that it has already read.

    What a tensor waits for is an attribute of the tensor itself: it ends with the tensor, and costs a pass of one small
    picture less than a table of weak references with a callback each.
    """

    def __init__(self) -> None:
        self._pass = object()  # what an earlier pass has left on a tensor says nothing
        self._marked: list[weakref.ref[Tensor]] = []

    def __bool__(self) -> bool:
        return bool(self._marked)

    def add(self, tensor: Any, purpose: Any) -> None:
        """From now on only what knows `purpose` may read `tensor`."""
        tensor._visx_pending = self._pass, purpose
        self._marked.append(weakref.ref(tensor))

    def spend(self, tensor: Any) -> None:
        """From now on nobody may read `tensor`."""
        tensor._visx_pending = self._pass, None

    def drop(self, tensor: Any) -> None:
        """`tensor` is what it should be."""
        tensor._visx_pending = None

    def purpose(self, tensor: Any) -> Any:
        """What `tensor` waits for; None for any other."""
        mark = getattr(tensor, "_visx_pending", None)
        return mark[1] if mark is not None and mark[0] is self._pass else None

    def has(self, tensor: Any) -> bool:
        """Whether `tensor` is one of them."""
        mark = getattr(tensor, "_visx_pending", None)
        return mark is not None and mark[0] is self._pass

    def read_by(self, func: Any, args: Any, kwargs: Any) -> list[Tensor]:
        """Those that a call reads the values of."""
        read = [t for t in tensors((args, kwargs)) if self.has(t)]
        return [] if read and getattr(func, "__name__", "") in ASKING and not _shows(func, read[0]) else read

    def alive(self) -> list[Tensor]:
        """Those that somebody still holds."""
        return [t for reference in self._marked if (t := reference()) is not None and self.has(t)]

    def clear(self) -> None:
        self._pass = object()
        self._marked.clear()


def _shows(func: Any, tensor: Tensor) -> bool:
    """Whether an attribute of a tensor is a tensor of its values."""
    return isinstance(func(tensor), Tensor) if func.__name__ == "__get__" else False
