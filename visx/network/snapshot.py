"""Snapshots of a module: whether its owner has changed it since something was learnt from it.

A snapshot holds what the module is made of: its submodules, their types, attributes and hooks, its tensors and their values.
Version counters are no use, because edits through `.data` move none. Values are compared exactly where a tensor is small
(normalisations, biases). Of a larger one the sums of its rows of 128 are compared. That is one pass over memory, some 5 %
of a forward pass of one image, and only a change that keeps each of these sums to the last bit is missed.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import is_lazy

_EXACT = 4096  # elements; larger tensors are summed
_ROW = 128
_DEPTH = 4  # of containers in attributes
_HALF = {torch.float16, torch.bfloat16}
_SIMPLE = frozenset((bool, int, float, str, type(None)))
GLOBAL_HOOKS = (
    "_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks",
)  # fmt: skip


class Snapshot:
    """A module as it is now; `holds` says later whether it is still the same. Training mode and `requires_grad`, which
    explaining sets itself, do not count. The snapshot keeps the module's present tensors alive."""

    def __init__(self, module: nn.Module) -> None:
        self._modules: list[nn.Module] = []
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []  # of each module, and a copy of them
        self._empty: list[Any] = []  # containers
        self._containers: list[Any] = []
        self._copies: list[Any] = []
        self._tensors: list[Tensor] = []
        self.parts: set[int] = set()  # ids of all that was looked at: modules, tensors and containers
        self._look(module)
        for name in GLOBAL_HOOKS:
            self._look(getattr(torch_module, name, None))
        self._types = list(map(type, self._modules))
        self._memory = Memory(self._tensors)
        self._values: Values | None = None
        self._matrices: Values | None = None
        try:
            self._values = Values([t for t in self._tensors if t.dim() > 2 or t.numel() <= _EXACT])
        except (RuntimeError, NotImplementedError, TypeError):  # a tensor of a kind whose values cannot be read
            self._values = None

    def holds(self, *, matrices: bool = False) -> bool:
        """Whether nothing was changed since; False, too, where the values of some tensor cannot be read.

        `matrices`: large ones (of linear layers, embeddings) are compared from now on, too. Nothing is remembered of their
        values unless a copy of the module is made.
        """
        if any(self._empty) or list(map(type, self._modules)) != self._types:  # a parametrisation is another class
            return False
        return (self._contains_the_same() or self._contains_the_same(modes=True)) and self.values_hold(
            matrices=matrices
        )

    def _contains_the_same(self, modes: bool = False) -> bool:
        """Whether all containers hold what they held; with `modes`, whatever training mode modules are in now."""
        for attributes, copy in self._attributes if modes else ():
            if "training" in attributes:  # a compiled part has only its module's
                copy["training"] = attributes["training"]
        try:
            return self._containers == self._copies
        except (RuntimeError, ValueError, TypeError):  # an array in another's place
            return False

    def values_hold(self, *, matrices: bool = False) -> bool:
        """The same of the tensors that the module had, whatever became of its attributes and hooks."""
        if not self._memory.holds() or self._values is None or not self._values.hold():
            return False
        if matrices and self._matrices is None:
            self._matrices = Values([t for t in self._tensors if t.dim() <= 2 and t.numel() > _EXACT])
        return self._matrices is None or self._matrices.hold()

    def _look(self, value: Any, depth: int = 0) -> None:
        """Record what `value` holds. A container is equal to its shallow copy as long as nothing in it was replaced."""
        if isinstance(value, Tensor):
            if id(value) not in self.parts and not is_lazy(value):
                self.parts.add(id(value))
                self._tensors.append(value)
        elif isinstance(value, nn.Module):
            if id(value) not in self.parts:
                self.parts.add(id(value))
                self._modules.append(value)
                attributes = vars(value)
                self._attributes.append((attributes, self._contained(attributes, attributes, 0)))
        elif isinstance(value, dict):
            self._contained(value, value, depth)
        elif isinstance(value, (tuple, list, set, frozenset)):
            self._contained(value, dict(enumerate(value)), depth)
        elif depth <= 1 and hasattr(value, "__dict__") and not callable(value) and not isinstance(value, ModuleType):
            self._contained(vars(value), vars(value), depth + 1)  # a configuration

    def _contained(self, container: Any, items: dict[Any, Any], depth: int) -> Any:
        """Record a container and, one deeper, what its items hold; returns a shallow copy of it."""
        fixed = isinstance(container, (tuple, frozenset))
        copy = container if fixed else container.copy()
        if id(container) in self.parts or depth > _DEPTH:
            return copy
        self.parts.add(id(container))
        if not fixed and not items:
            self._empty.append(container)
        elif not fixed:
            self._containers.append(container)
            self._copies.append(copy)
        for item in items.values():
            if type(item) not in _SIMPLE:
                self._look(item, depth + 1)
        return copy


class Memory:
    """Where tensors lie: their storages, shapes and strides."""

    def __init__(self, tensors: list[Tensor]) -> None:
        plain = [t.layout is torch.strided and not t.is_meta and not t.is_quantized for t in tensors]
        self._tensors = [t for t, strided in zip(tensors, plain, strict=True) if strided]
        self._others = [t for t, strided in zip(tensors, plain, strict=True) if not strided]
        self._views = [t.detach() for t in self._tensors]  # what becomes of a tensor does not change a view of it
        self._forms = self._formed()

    def holds(self) -> bool:
        """Whether all tensors lie where they were."""
        try:
            return all(map(Tensor.is_set_to, self._tensors, self._views)) and self._formed() == self._forms
        except RuntimeError:  # one is of another layout or device now
            return False

    def _formed(self) -> list[Any]:
        return [
            *map(Tensor.data_ptr, self._tensors),  # which moves where a storage is made smaller
            *((t.dtype, t.shape) for t in self._others),
        ]


class Values:
    """The values of tensors that stay where they are: those of small ones, and sums of large ones."""

    def __init__(self, tensors: list[Tensor]) -> None:
        small: dict[Any, list[Tensor]] = {}
        rows: dict[Any, list[Tensor]] = {}
        self._odd: list[Tensor] = []  # those that no view shows in one dimension
        for tensor in tensors:
            if tensor.is_meta:
                continue
            flat = _flat(tensor.detach())
            if flat is None:
                self._odd.append(tensor)
                continue
            whole = len(flat) // _ROW * _ROW if len(flat) > _EXACT else 0
            if whole:
                rows.setdefault((flat.dtype, flat.device), []).append(flat[:whole].view(-1, _ROW))
            if whole < len(flat):
                small.setdefault((flat.dtype, flat.device), []).append(flat[whole:])
        self._small, self._rows = list(small.values()), list(rows.values())
        self._were = self._now()

    def hold(self) -> bool:
        """Whether they are what they were."""
        return all(map(torch.equal, self._now(), self._were))

    @torch.no_grad()
    def _now(self) -> list[Tensor]:
        parts = list(map(torch.cat, self._small))
        for rows in self._rows:
            dtype = torch.float32 if rows[0].dtype in _HALF else None
            parts.append(torch.cat([matrix.sum(1, dtype=dtype) for matrix in rows]))
        for tensor in self._odd:
            values = tensor.int_repr() if tensor.is_quantized else tensor.to_dense()
            parts.append(values.reshape(-1).clone())
        return list(map(_integers, parts))


def _flat(tensor: Tensor) -> Tensor | None:
    """A tensor's values in one dimension, as a view of its memory, in whatever order they lie there."""
    if tensor.is_quantized or tensor.layout is not torch.strided:
        return None
    if tensor.untyped_storage().nbytes() == tensor.element_size() * tensor.numel():
        return tensor.as_strided((tensor.numel(),), (1,), 0)
    return tensor.view(-1) if tensor.is_contiguous() else None


def _integers(values: Tensor) -> Tensor:
    """The same bits as integers: so NaN equals itself, and 0 is not -0."""
    if not values.is_floating_point() and not values.is_complex():
        return values
    return values.view(
        torch.uint8 if values.element_size() == 1 else torch.int16 if values.element_size() == 2 else torch.int32
    )
