"""Passes over one picture that compute only what lies behind a layer.

The module's own code runs from the start each time, so nothing of it is rewritten. In the first pass the result of every
call of one of torch's functions is kept until the layer is reached; in a later pass the same calls get these results, in
their order, without computing. What lies behind the layer is computed each time. A pass that makes another call than the
first one did goes `Astray`. Where something behind the layer wrote to a kept tensor, `usable` is False.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from visx.network.fast.pending import Astray
from visx.network.tensors import tensors


class Replay(TorchFunctionMode):
    """A `with` around each pass; call `arrived` in it as soon as the layer's output is there."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any]] = []  # before the layer, in order: the function, its result
        self._versions: list[tuple[Tensor, int]] = []
        self._learnt = False
        self._next = 0
        self._before = True

    @property
    def usable(self) -> bool:
        """Whether the kept tensors are what they were when the layer was reached."""
        return all(tensor._version == version for tensor, version in self._versions)

    def __enter__(self) -> Replay:
        self._next, self._before = 0, True
        super().__enter__()
        return self

    def arrived(self) -> None:
        """The layer is reached: from here on everything is computed."""
        if not self._before:
            return
        self._before = False
        if not self._learnt:
            self._learnt = True
            kept = {id(tensor): tensor for _, result in self._calls for tensor in tensors(result)}
            self._versions = [(tensor, tensor._version) for tensor in kept.values() if not tensor.is_inference()]
        elif self._next != len(self._calls):
            raise Astray

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._before:
            return func(*args, **(kwargs or {}))
        if not self._learnt:
            result = func(*args, **(kwargs or {}))
            self._calls.append((func, result))
            return result
        if self._next == len(self._calls) or self._calls[self._next][0] != func:
            raise Astray
        self._next += 1
        return self._calls[self._next - 1][1]
