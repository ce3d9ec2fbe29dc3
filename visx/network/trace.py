"""The one recorder of a pass: what a network computed from a picture, and how.

`recording` watches one pass at three levels at once, so that it does not matter how a network is written:

- *calls* of torch's functions, as Python makes them, with their arguments;
- *operations*, which PyTorch executes below all functions, and behind each the places of the picture that its values stand
  for (visx/network/placement.py);
- *runs* of modules.

It changes nothing and draws no conclusions: those are drawn from the `Record` (visx/network/record.py). Readers are the
layers (visx/network/layers.py), the default layer (choice.py), the head of CAM (head.py), and what exists for speed
(visx/network/fast/chains.py and windows.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from visx.network.forms import named_modules
from visx.network.placement import ATTENTION, MATMULS, Operation, Placement
from visx.network.places import compact
from visx.network.record import Call, ModuleRun, Node, Record, Value, key
from visx.network.rules import OTHER_ACTIVATIONS, RELUS, Arithmetic, relu_call
from visx.network.tensors import tensors


@contextmanager
def recording(module: nn.Module, *, runs: bool = True, operations: bool = True) -> Iterator[Record]:
    """Inside, a pass of `module` is recorded: its calls, and where they are wanted the runs of its modules and its operations,
    without which no value has a node."""
    record = Record(module, operations)
    watch = _Operations(record)
    with ExitStack() as stack:
        for name, child in named_modules(module) if runs else ():
            if not isinstance(child, torch.jit.ScriptModule):  # it takes no hooks
                _Runs(record, watch, name, child, stack)
        stack.enter_context(_Calls(record))
        if operations:
            stack.enter_context(watch)
        yield record


def glance(module: nn.Module, picture: Tensor) -> Record:
    """The closed record of one pass over a prepared picture (1, C, H, W), without gradients and operations."""
    with torch.no_grad(), recording(module, operations=False) as record:
        record.output = module(picture.clone())  # a network may work in place on its input
    record.close(record.output)
    return record


class _Runs:
    """Hooks on a module that record its runs. Torch's functions are not recorded inside of them."""

    def __init__(self, record: Record, watch: _Operations, name: str, module: nn.Module, stack: ExitStack) -> None:
        self._record, self._watch, self._name = record, watch, name
        self._entered: list[tuple[list[Value], int, Node | None, int]] = []
        stack.callback(module.register_forward_pre_hook(self._enter).remove)
        stack.callback(module.register_forward_hook(self._leave).remove)

    def _enter(self, module: nn.Module, args: Any) -> None:
        record = self._record
        with torch._C.DisableTorchFunction():
            if not self._name and args and isinstance(args[0], Tensor):
                record.picture = record.value(args[0])
                self._watch.start(args[0])
            node = record.node(args[0]) if args else None
            inputs = [record.value(t) for t in tensors(args)]
            self._entered.append((inputs, len(record.calls), node, self._watch.count))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        record = self._record
        if not self._entered:
            return
        inputs, began, given, first = self._entered.pop()
        with torch._C.DisableTorchFunction():
            shape = tuple(output.shape) if isinstance(output, Tensor) else None
            node = record.node(output)
            linked = isinstance(output, Tensor) and output.requires_grad
            edge = torch.autograd.graph.get_gradient_edge(output) if linked else None
            outputs = [record.value(t) for t in tensors(output)]
        unchanged = node is not None and node is given
        made = range(first, self._watch.count)
        self._record.runs.append(
            ModuleRun(self._name, module, inputs, began, outputs, len(record.calls), shape, node, edge, unchanged, made)
        )


# Questions of a tensor's form, which come several times a layer and are not recorded
_FORM = {Tensor.dim, Tensor.size, Tensor.numel, Tensor.stride, Tensor.is_contiguous} | {
    getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "requires_grad", "ndim", "is_cuda")
}


_HOLDING = (Tensor, tuple, list, dict)  # what is a tensor or may have some in it


class _Calls(TorchFunctionMode):
    """Records the calls of torch's functions, and counts the activations among them."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record = record
        self._arithmetic = Arithmetic()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FORM:
            return func(*args, **kwargs)
        record = self._record
        if func in OTHER_ACTIVATIONS or func in RELUS or Arithmetic.knows(func):
            self._count(func, args, kwargs)
        given, named = tuple(map(self._valued, args)), self._valued(kwargs) if kwargs else kwargs
        source = record.state(next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None))
        output = func(*args, **kwargs)
        self._arithmetic.remember(func, args, kwargs, output)
        returned = self._valued(output)
        for value in returned if isinstance(returned, (tuple, list)) else (returned,):
            if isinstance(value, Value) and value is not record.picture:
                value.made = True
        flags = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        record.calls.append(Call(func, given, named, returned, source, record.state(output), *flags))
        return output

    def _count(self, func: Any, args: Any, kwargs: Any) -> None:
        record = self._record
        if record.operations and not any(record.node(t) is not None for t in _given(args, kwargs)):
            return  # it does not depend on the picture, as in a network that makes a bias of positions
        if relu_call(func, args, kwargs) is not None or self._arithmetic.relu(func, args, kwargs) is not None:
            record.relus += 1
        elif func in OTHER_ACTIVATIONS:
            record.others[func.__name__] = None

    def _valued(self, item: Any) -> Any:
        """An argument with a value in the place of each tensor."""
        if isinstance(item, Tensor):
            return self._record.value(item)
        if isinstance(item, (tuple, list)):
            return [self._valued(part) for part in item] if any(isinstance(part, _HOLDING) for part in item) else item
        return {name: self._valued(part) for name, part in item.items()} if isinstance(item, dict) else item


class _Operations(TorchDispatchMode):
    """Records every operation that depends on the picture given to `start`."""

    def __init__(self, record: Record) -> None:
        super().__init__()
        self._record, self._nodes = record, record.nodes
        self._placement = Placement()
        self.count = 0  # of the nodes so far

    def start(self, picture: Tensor) -> None:
        """(1, C, H, W): the network's input."""
        self._add(picture, Node(0, "picture", (), tuple(picture.shape), self._placement.of_picture(picture.shape)))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's own hook: by default a mode imports the whole compiler when it is first used, which takes seconds."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known: dict[int, Node] = {}
        inputs = []
        for tensor in _given(args, kwargs):
            if (node := self._nodes.get(key(tensor))) is not None:
                known[id(tensor)] = node
                inputs.append(node)
        output = func(*args, **kwargs)
        results = [t for t in (output if isinstance(output, (tuple, list)) else (output,)) if isinstance(t, Tensor)]
        if not inputs:
            for tensor in results:
                self._nodes.pop(key(tensor), None)  # its memory may have been another tensor's
            return output
        name = func.overloadpacket.__name__
        try:
            placed = self._placement.behind(Operation(name, func, args, kwargs, results, known))
        except Exception:  # an operation that places cannot follow: nothing is known of what it returns
            placed = []
        attends = weighs = False
        if name in MATMULS or name == "convolution" or ATTENTION in name:
            attends = name != "convolution" and sum(id(t) in known for t in args) > 1
            weighs = not attends
        paired = any(node.paired for node in inputs)
        for position, tensor in enumerate(results):
            places, pairs = placed[position] if position < len(placed) else (None, None)
            places = places if places is not None and places.shape == tensor.shape else None
            picks = func.is_view and inputs[0].places is not None and (places is None or _nowhere(places))
            node = Node(self.count, name, tuple(inputs), tuple(tensor.shape), None if picks else places)
            node.paired = places is not None and (paired if pairs is None else pairs)
            node.attends, node.weighs, node.picks = attends, weighs, picks
            self._add(tensor, node)
        return output

    def _add(self, tensor: Tensor, node: Node) -> None:
        self.count += 1
        self._nodes[key(tensor)] = node


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation is given; none of its arguments is nested deeper than a list."""
    for item in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (tuple, list)):
            yield from (part for part in item if isinstance(part, Tensor))


def _nowhere(places: Tensor) -> bool:
    return bool(compact(places).isnan().all())
