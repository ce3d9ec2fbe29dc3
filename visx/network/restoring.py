"""The state of a module, saved so that what a forward pass changes of it can be undone: buffers, attributes, the content of
lists and dictionaries among them, random generators of its own, and parameters.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module()))  # what every module has: flags, hooks, and the tables of its tensors and children
_TABLES = ("_buffers", "_parameters", "_modules")


class SavedState:
    """The state of a module and its submodules when this is made. `restore` brings it back, with every object in its old
    place; hooks and flags stay as they are. Values of parameters are saved, and restored, only with `parameters`."""

    def __init__(self, module: nn.Module, *, parameters: bool = False) -> None:
        self._tables: list[tuple[dict[str, Any], frozenset[str], dict[str, tuple[Any, Any]]]] = []
        self._parameters = [(p, p.detach(), _content(p) if parameters else None) for p in module.parameters()]
        for child in module.modules():
            own = vars(child)
            for table, ignored in ((own, _OWN), *((own.get(name), frozenset()) for name in _TABLES)):
                if isinstance(table, dict):
                    held = {k: v for k, v in table.items() if k not in ignored}
                    copied = table is not own.get("_parameters")
                    kept = {k: (v, _content(v) if copied else None) for k, v in held.items()}
                    self._tables.append((table, ignored, kept))

    def unchanged(self) -> bool:
        """Whether every object is in its place and has the content that it had; values of parameters do not count."""
        return all(
            table.keys() - ignored == kept.keys()
            and all(table[k] is value and _is(value, content) for k, (value, content) in kept.items())
            for table, ignored, kept in self._tables
        )

    def restore(self) -> None:
        """Bring the saved state back."""
        for table, ignored, kept in self._tables:
            for name in table.keys() - ignored - kept.keys():
                del table[name]
            for name, (value, content) in kept.items():
                table[name] = value
                if not _is(value, content):
                    _put(value, content)
        for parameter, old, content in self._parameters:
            if not parameter.is_set_to(old):
                parameter.data = old
            if not _is(parameter, content):
                _put(parameter, content)


def _content(value: Any) -> Any:
    """A copy of an object's content; None for an object that cannot change, and for one of an unknown kind."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (list, dict, set, deque, np.ndarray)):
        return value.copy()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    return None


def _is(value: Any, content: Any) -> bool:
    """Whether an object still has the content that was copied; True where none was."""
    if content is None:
        return True
    now = value if isinstance(value, (Tensor, list, dict, set, deque, np.ndarray)) else _content(value)
    return _same(now, content)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return same_values(a, b)
    if isinstance(a, np.ndarray):
        return _same_numbers(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(a[k] is b[k] or _same_numbers(a[k], b[k]) for k in a)
    if isinstance(a, (list, deque)):
        return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _same_numbers(a: Any, b: Any) -> bool:
    """Whether two states of generators are equal: nested objects that are made anew each time a state is read."""
    if isinstance(a, dict):
        return _same(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b, equal_nan=a.dtype.kind in "fc")
    return isinstance(a, (int, str)) and type(a) is type(b) and bool(a == b)


def same_values(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same numbers, NaN like NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    try:
        return bool(((a == b) | ((a != a) & (b != b))).all())
    except (RuntimeError, NotImplementedError):  # sparse and quantised tensors do not compare
        a, b = (t.dequantize() if t.is_quantized else t.to_dense() for t in (a, b))
        return torch.equal(a, b)


@torch.no_grad()
def _put(value: Any, content: Any) -> None:
    """Give an object the content that was copied of it."""
    if isinstance(value, Tensor):
        if value.shape != content.shape or value.layout != torch.strided:
            value.data = content.clone()
        else:
            with torch.inference_mode(value.is_inference()):
                value.copy_(content)
    elif isinstance(value, np.ndarray):
        value[...] = content
    elif isinstance(value, (list, deque)):
        value.clear()
        value.extend(content)
    elif isinstance(value, (dict, set)):
        value.clear()
        value.update(content)
    elif isinstance(value, torch.Generator):
        value.set_state(content)
    elif isinstance(value, random.Random):
        value.setstate(content)
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = content
    elif isinstance(value, np.random.RandomState):
        value.set_state(content)
