"""Modules that are more than plain Python modules: compiled, parallel, scripted, exported, lazy, quantised, on the meta
device. Which of these a module is, and how it is read, copied and run all the same."""

from __future__ import annotations

import copy
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from visx.errors import VisxError, said_by, unknown, usage

COMPILED = "_orig_mod"  # where torch.compile's wrapper keeps the module
_HALVES = (torch.float16, torch.bfloat16)
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.quantized.dynamic")


def unwrapped(module: nn.Module) -> nn.Module:
    """The innermost module, without the wrappers of `torch.compile`, `DataParallel` and `DistributedDataParallel`."""
    while True:
        if COMPILED in dict(module.named_children()):
            module = module.get_submodule(COMPILED)
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def plain_name(path: str) -> str:
    """A module's path without the wrappers of compiled parts: `features._orig_mod.0` is `features.0`."""
    return ".".join(part for part in path.split(".") if part != COMPILED)


def named_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Like `module.named_modules()`, but a compiled part is named once, by its plain name, and not once more with its
    wrapper."""
    for name, child in module.named_modules():
        if name.split(".")[-1] != COMPILED:
            yield plain_name(name), child


def submodule(module: nn.Module, path: str) -> tuple[str, nn.Module]:
    """The module at a path and its plain name (the first, if it has several). Raises as `at` does."""
    result = at(module, path)
    itself = unwrapped(result)
    for name, child in named_modules(module):
        if name and (child is result or child is itself):
            return name, child
    raise _no_layer(module, path)


def at(module: nn.Module, path: str) -> nn.Module:
    """The module at a path, whether or not the path names the wrappers (`module.` of parallel, `_orig_mod.` of compiled
    parts); a usage error with near matches where there is none."""
    result = module
    for part in path.split("."):
        try:
            result = result.get_submodule(part)
        except AttributeError:
            if part != COMPILED and not (part == "module" and result is module):
                raise _no_layer(module, path) from None
    if result is module:  # an empty path, or wrappers alone
        raise _no_layer(module, path)
    return result


def _no_layer(module: nn.Module, path: str) -> VisxError:
    return unknown("layer", path, [n for n, _ in named_modules(module) if n], "`visx layers MODEL` lists them")


def scripted(module: nn.Module) -> str:
    """The name of the first scripted or traced submodule, in which no hook can be placed; empty if there is none."""
    return next((n or type(m).__name__ for n, m in module.named_modules() if isinstance(m, torch.jit.ScriptModule)), "")


def closed(module: nn.Module) -> str:
    """Why no part of a module can have hooks or ReLU rules, in words; empty where parts can."""
    if isinstance(module, torch.jit.ScriptModule):
        return "hooks and rules do not reach into a scripted or traced module"
    nodes = getattr(getattr(module, "graph", None), "nodes", ())
    if any(isinstance(getattr(node, "target", None), torch._ops.OpOverload) for node in nodes):
        return "it is an exported program, which has no modules and no activations to hook or to rule"
    return ""


def quantised(module: nn.Module) -> str:
    """The name of the type of the first submodule that computes with quantised numbers; empty if there is none."""
    return next((type(m).__name__ for m in module.modules() if type(m).__module__.startswith(_QUANTISED)), "")


def whereabouts(module: nn.Module) -> torch.device:
    """The device of its first parameter, else of its first buffer, else the CPU."""
    return next((t.device for t in chain(module.parameters(), module.buffers())), torch.device("cpu"))


def input_dtype(module: nn.Module) -> torch.dtype:
    """The dtype that the module takes pictures in: that of its first convolution or linear layer; else the one that most
    numbers in its parameters have, or in its buffers. The first parameter does not decide: it may be a float64
    temperature."""
    counts: Counter[torch.dtype] = Counter()
    for part in module.modules():
        weight = getattr(part, "weight", None)
        first = isinstance(part, (nn.Linear, nn.modules.conv._ConvNd))
        if first and isinstance(weight, Tensor) and weight.is_floating_point():
            return weight.dtype
    for values in (module.parameters(), module.buffers()):
        for tensor in values:
            if tensor.is_floating_point() and not is_lazy(tensor):
                counts[tensor.dtype] += tensor.numel()
        if counts:
            return counts.most_common(1)[0][0]
    return torch.get_default_dtype()


def half(module: nn.Module) -> bool:
    """Whether any parameter or buffer has half precision (float16 or bfloat16)."""
    return any(t.dtype in _HALVES for t in chain(module.parameters(), module.buffers()))


def copied(name: str, module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of a module on a device.

    A `dtype` of half precision is that of all floating-point parameters and buffers of the copy. For another `dtype` only
    those of half precision are converted. Complex and integer ones keep theirs. Raises `VisxError` where the module
    cannot be copied; `name` is the model's, for the message.
    """

    def converted(tensor: Tensor) -> Tensor:
        wanted = tensor.is_floating_point() and (dtype in _HALVES or tensor.dtype in _HALVES)
        return tensor.to(device, dtype if wanted else tensor.dtype)

    try:
        return copy.deepcopy(unwrapped(module))._apply(converted)
    except Exception as error:  # non-leaf tensors as attributes, open files, sparse layouts and more
        raise VisxError(
            f"{name} cannot be copied, as another precision or device needs: {said_by(error)}",
            hint="convert or move the module yourself, then explain it as it is",
        ) from error


def lazy(module: nn.Module) -> bool:
    """Whether parameters or buffers have no shape yet, because the first forward pass, which is still to come, decides it."""
    return any(is_lazy(t) for t in (*module.parameters(), *module.buffers()))


def check_values(module: nn.Module) -> None:
    """Raises `VisxError` (exit 2) where parameters or buffers have no values (the meta device)."""
    without = [n for n, t in (*module.named_parameters(), *module.named_buffers()) if t.is_meta]
    if without:
        some = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
        raise usage(
            f"{type(module).__name__} has no values in {some}: they are on the meta device",
            "module.to_empty(device='cpu'), then load_state_dict; or load_state_dict(..., assign=True)",
        )


class _Stance:
    """The stance of `torch.compile`, a setting of the whole process: eager from the first `enter` to the last `leave`."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._stance: Any = None

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._stance = torch.compiler.set_stance("force_eager")
                self._stance.__enter__()
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._stance.__exit__(None, None, None)


_stance = _Stance()


@contextmanager
def eager() -> Iterator[None]:
    """Inside the `with`, compiled modules and functions run as ordinary Python. Hooks and ReLU rules need that: compiled
    code ignores some, and is compiled anew for every new set. It holds for all threads; results are the same."""
    if "torch._dynamo" not in sys.modules:  # nothing was ever compiled, and importing it takes a second
        yield
        return
    _stance.enter()
    try:
        yield
    finally:
        _stance.leave()
