"""Tensors that only one function may read, because a faster pass put other values into them than the network as written.

A convolution with the normalisation behind it folded in returns what that normalisation would return. That is right only
if the very tensor arrives there and nobody else reads it. A pass over other data may take another branch, so this is not
assumed from the pass that was learnt from: every call is checked, and a pass in which somebody else reads such a tensor
is made again without folding (`Astray`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

# Of a tensor's form, not its values. `__get__`: attributes such as `shape`; those that are tensors (`data`) show values.
ASKING = {"__get__", "dim", "ndimension", "size", "numel", "stride", "is_contiguous"}


class Astray(BaseException):
    """A tensor was read by another function than the one it was meant for. Not an `Exception`: a network's own `except
    Exception` shall not catch it."""


class Pending:
    """Tensors that wait for one function, and those that it has already read. Tensors are held weakly: most die at once."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[weakref.ref[Tensor], Any]] = {}  # None: nobody may read it any more

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, tensor: Tensor, purpose: Any) -> None:
        """From now on only what knows `purpose` may read `tensor`."""
        key = id(tensor)
        self._waiting[key] = weakref.ref(tensor, partial(self._forget, key)), purpose

    def spend(self, tensor: Tensor) -> None:
        """From now on nobody may read `tensor`."""
        self._waiting[id(tensor)] = self._waiting[id(tensor)][0], None

    def drop(self, tensor: Tensor) -> None:
        """`tensor` is what it should be."""
        self._waiting.pop(id(tensor), None)

    def purpose(self, tensor: Any) -> Any:
        """What `tensor` waits for; None for any other."""
        reference, purpose = self._waiting.get(id(tensor), (None, None))
        return purpose if reference is not None and reference() is tensor else None

    def has(self, tensor: Any) -> bool:
        """Whether `tensor` is one of them."""
        reference, _ = self._waiting.get(id(tensor), (None, None))
        return reference is not None and reference() is tensor

    def read_by(self, func: Any, args: Any, kwargs: Any) -> list[Tensor]:
        """Those that a call reads the values of."""
        read = [t for t in tensors((args, kwargs)) if self.has(t)]
        return [] if read and getattr(func, "__name__", "") in ASKING and not _shows(func, read[0]) else read

    def alive(self) -> list[Tensor]:
        """Those that somebody still holds."""
        return [t for reference, _ in list(self._waiting.values()) if (t := reference()) is not None]

    def clear(self) -> None:
        self._waiting.clear()

    def _forget(self, key: int, reference: Any) -> None:
        if key in self._waiting and self._waiting[key][0] is reference:
            del self._waiting[key]


def _shows(func: Any, tensor: Tensor) -> bool:
    """Whether an attribute of a tensor is a tensor of its values."""
    return isinstance(func(tensor), Tensor) if func.__name__ == "__get__" else False


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested arguments, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
