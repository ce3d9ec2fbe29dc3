"""The record of a pass: the calls, operations and runs of modules that visx/network/trace.py saw, for others to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from visx.network.grid import FeatureGrid, read


@dataclass(eq=False, repr=False)  # it would show everything before it, many times over
class Node:
    """One result of one operation. `inputs` are the nodes that it was made from and that depend on the picture. `places`
    (complex, of its shape) has the place of the picture that each value stands for, None where that is not known."""

    index: int  # in the order of the pass
    op: str
    inputs: tuple[Node, ...]
    shape: tuple[int, ...]
    places: Tensor | None = None
    paired: bool = False  # every value belongs to two places
    attends: bool = False  # a product of two tensors that depend on the picture
    weighs: bool = False  # a linear layer or a convolution: a product with parameters
    picks: bool = False  # takes the values without a place (a class token) out of a tensor that has places


@dataclass(eq=False, slots=True)
class Value:
    """One tensor of a pass, as Python sees it; after work in place it is still the same one. `memory` is the address of its
    storage. `tensor` is None once the record is closed, but for constants (parameters, buffers)."""

    tensor: Tensor | None
    shape: torch.Size
    memory: int
    made: bool = False  # a call returned it
    node: Node | None = None  # known once the record is closed; None where it does not depend on the picture


State = tuple[Value, int]  # a tensor, and how often it was written to by then


@dataclass(eq=False, slots=True)
class Call:
    """One call of one of torch's functions, with a `Value` in the place of every tensor. `source` is the first tensor among
    its arguments before the call, `result` its output where that is a tensor."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    source: State | None
    result: State | None
    gradients: bool  # whether autograd recorded
    inference: bool  # whether inference mode was on

    @property
    def name(self) -> str:
        """The function's name; `__get__` for a tensor's attribute."""
        return getattr(self.func, "__name__", "")


@dataclass(eq=False)
class ModuleRun:
    """One run of a module: its path, its type and its output's shape (None where it is no tensor). `inputs` and `outputs`
    are the tensors that hooks on it see; `began` and `ended` count the calls of the pass before its start and its end;
    `made` has the numbers (`Node.index`) of the nodes that were made inside."""

    name: str
    module: nn.Module
    inputs: list[Value]
    began: int
    outputs: list[Value]
    ended: int
    shape: tuple[int, ...] | None
    node: Node | None  # None where the output does not depend on the picture
    edge: Any  # where a gradient arrives at the output; None where none does, and once the record is closed
    unchanged: bool  # the module returned what it was given
    made: range

    @property
    def type(self) -> str:
        """The name of the module's class."""
        return type(self.module).__name__

    def read(self) -> FeatureGrid | str:
        """How the output is read as a feature map, or why it is none."""
        if self.shape is None:
            return "it returns no tensor"
        if self.node is None:
            return "it does not depend on the picture"
        return read(self.shape, self.node.places, paired=self.node.paired)

    @cached_property
    def grid(self) -> FeatureGrid | None:
        """How the output is read, if it is a feature map of more than one cell."""
        grid = self.read()
        return None if isinstance(grid, str) or grid.single else grid


class Record:
    """What one pass showed: `calls` and `runs` in their order, `relus`, how many activations were ReLUs, `others`, the names
    of the other ones, and the module's raw `output`. While it is open it holds every tensor of the pass, with its graph."""

    def __init__(self, module: nn.Module, operations: bool) -> None:
        self.module, self.operations = module, operations
        self.calls: list[Call] = []
        self.runs: list[ModuleRun] = []
        self.relus = 0
        self.others: dict[str, None] = {}
        self.picture: Value | None = None
        self.output: Any = None
        self.graphed: Any = None  # the raw output with its autograd graph, where there is one
        self.no_input_gradient = ""  # why none leads from the output to the picture; empty where one does
        self.reads: Tensor | None = None  # of the last attention: which queries (R, Nq) of its rows the score reads
        self.score: State | None = None  # the tensor of the output that is explained; known once the record is closed
        self._values: dict[int, Value] = {}
        self._constants: list[tuple[Tensor, int, int]] = []  # with version and address, once the record is closed
        self.nodes: dict[tuple[Any, ...], Node] = {}  # by `key` of the tensors that they made

    def value(self, tensor: Tensor) -> Value:
        """The value that a tensor is, while the record is open."""
        value = self._values.get(id(tensor))
        if value is None:
            value = self._values[id(tensor)] = Value(tensor, tensor.shape, _memory(tensor))
        return value

    def state(self, tensor: Any) -> State | None:
        """A tensor as it is now, while the record is open; inference tensors do not count how often they were written to."""
        if not isinstance(tensor, Tensor):
            return None
        return self.value(tensor), 0 if tensor.is_inference() else tensor._version

    def node(self, tensor: Any) -> Node | None:
        """The operation that made a tensor, while the record is open; None where it does not depend on the picture."""
        return self.nodes.get(key(tensor)) if isinstance(tensor, Tensor) else None

    def of(self, shape: tuple[int, ...]) -> bool:
        """Whether the pass was over a picture of this shape (C, H, W)."""
        return self.picture is not None and tuple(self.picture.shape[1:]) == tuple(shape)

    def current(self) -> bool:
        """Whether the module's tensors are still those of the pass, as far as version counters tell."""
        return all(_version(tensor) == (version, address) for tensor, version, address in self._constants)

    def close(self, score: Any) -> None:
        """Let go of the tensors and the graph of the pass. `score` is the tensor of its output that is explained."""
        self.score = self.state(score)
        constants = {id(tensor) for tensor in _constants(self.module)}
        for value in self._values.values():
            if value.tensor is not None and not value.made and id(value.tensor) in constants:
                self._constants.append((value.tensor, *_version(value.tensor)))
            else:
                value.node, value.tensor = self.node(value.tensor), None
        for run in self.runs:
            run.edge = None
        self.output = self.output.detach() if isinstance(self.output, Tensor) else None
        self.graphed = None
        self._values.clear()
        self.nodes.clear()


def values(item: Any) -> Iterator[Value]:
    """All values in nested arguments, in order."""
    if isinstance(item, Value):
        yield item
    elif isinstance(item, dict):
        yield from values(tuple(item.values()))
    elif isinstance(item, (tuple, list)):
        for part in item:
            yield from values(part)


def ancestors(node: Node) -> set[Node]:
    """A node and all that it was made from."""
    seen, waiting = {node}, [node]
    while waiting:
        for before in waiting.pop().inputs:
            if before not in seen:
                seen.add(before)
                waiting.append(before)
    return seen


def key(tensor: Tensor) -> tuple[Any, ...]:
    """What tells a tensor from all others that are alive, also where autograd wraps it anew."""
    try:
        return tensor.data_ptr(), tensor.shape, tensor.stride()
    except (RuntimeError, NotImplementedError):  # a sparse one has no storage
        return (id(tensor),)


def _memory(tensor: Tensor) -> int:
    """The address of a tensor's storage; 0 where it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _version(tensor: Tensor) -> tuple[int, int]:
    """What changes with a tensor's values: how often it was written to, and the address of its memory."""
    return 0 if tensor.is_inference() else tensor._version, _memory(tensor)


def _constants(module: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and tensors that are plain attributes."""
    for child in module.modules():
        for table in (child._parameters, child._buffers, vars(child)):
            yield from (value for value in table.values() if isinstance(value, Tensor))
