"""What keeps a module as it was: `undisturbed`, a session that one thread at a time has with a module.

Flags, hooks and settings of the process are recorded before anything changes them, and restored whatever happens.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from visx.errors import usage
from visx.network.settings import default_device, plain_settings
from visx.network.snapshot import GLOBAL_HOOKS


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """A session with a module. Inside the `with` the module is in eval mode, its parameters are frozen, float32 is full
    float32, and gradients can be taken. Afterwards its flags, the random state and all settings are as before.

    A session of another thread waits if its module is this one, or shares a submodule, parameter or buffer with it. So do
    not wait, inside, for a thread that begins one. Sessions of the same thread nest. Autocast, inference mode and a default
    device of the caller are off inside.
    """
    refuse_transforms()
    with _claimed(_parts(module)), plain_torch():
        yield


@contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, full float32 and gradients possible, whatever the caller's thread has switched on; outside, as before."""
    with ExitStack() as stack:
        stack.enter_context(plain_settings())
        stack.enter_context(torch.inference_mode(False))  # whose tensors know no gradients
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def refuse_transforms() -> None:
    """Raises `VisxError` (exit 2) inside the transforms of `torch.func` (vmap, grad, ...) and under fake tensors, where
    tensors have no values."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise usage(
            "nothing can be explained inside torch.func.vmap, grad or another transform", "explain outside of it"
        )
    if torch._guards.detect_fake_mode() is not None:
        raise usage(
            "nothing can be explained under FakeTensorMode: its tensors have no values", "explain outside of it"
        )


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Registers a forward hook, and removes it at the end of the `with`, whatever happens."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def hooked_globally() -> bool:
    """Whether global hooks, which run on every module, are registered."""
    return any(getattr(torch_module, name) for name in GLOBAL_HOOKS)


def observed(module: nn.Module) -> bool:
    """Whether hooks may read or change what a module or a submodule of it gets or returns."""
    return hooked_globally() or any(map(has_hooks, module.modules()))


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of its own; those of its submodules and global ones do not count."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)


class StopForward(Exception):  # noqa: N818 (a signal, no error)
    """Raised by a hook at the last layer whose output is needed: ends the forward pass there."""


@dataclass
class _Held:
    """A module, parameter or buffer in use: by which thread, by how many of its sessions, and the flag before the first."""

    part: nn.Module | Tensor
    thread: int
    flag: bool
    sessions: int = 0

    def set(self, flag: bool) -> None:
        """Sets `training` of a module, `requires_grad` of a tensor."""
        if isinstance(self.part, nn.Module):
            self.part.training = flag
        elif self.part.requires_grad is not flag:
            self.part.requires_grad_(flag)


_held: dict[int, _Held] = {}  # by the id of the part, which cannot be another's while the entry keeps the part alive
_free = threading.Condition()


@contextmanager
def _claimed(parts: dict[int, nn.Module | Tensor]) -> Iterator[None]:
    """Inside the `with` no other thread has any of these parts, modules are in eval mode and leaf tensors are frozen. The
    first session of a thread sets a flag, the last one to end restores it; sessions may end in any order."""
    thread, mine = threading.get_ident(), []
    try:
        with _free:
            _free.wait_for(lambda: all(i not in _held or _held[i].thread == thread for i in parts))
            for i, part in parts.items():
                held = _held.get(i)
                if held is None:
                    held = _held[i] = _Held(part, thread, _flag(part))
                mine.append(held)
                held.sessions += 1
                if _flag(part):
                    held.set(False)
        yield
    finally:
        with _free:
            for held in mine:
                held.sessions -= 1
                if not held.sessions:
                    held.set(held.flag)
                    del _held[id(held.part)]
            _free.notify_all()


@contextmanager
def unclaimed(parts: Set[int]) -> Iterator[None]:
    """Inside the `with` no other thread has a session with any of the parts of these ids, and none can begin one: a short
    look at a module costs less than a session."""
    thread = threading.get_ident()
    with _free:
        _free.wait_for(lambda: all(_held[i].thread == thread for i in parts & _held.keys()))
        yield


def _flag(part: nn.Module | Tensor) -> bool:
    if isinstance(part, nn.Module):
        return part.training
    return part.requires_grad and part.is_leaf and not part.is_inference()  # of others it could not be set back


def _parts(module: nn.Module) -> dict[int, nn.Module | Tensor]:
    """The submodules, parameters and buffers of a module, itself included, each once."""
    parts: dict[int, nn.Module | Tensor] = {}
    for child in module.modules():
        parts[id(child)] = child
        for tensor in (*child._parameters.values(), *child._buffers.values()):
            if tensor is not None:
                parts[id(tensor)] = tensor
    return parts


def _keep_own() -> None:
    """After a fork, in the child: ends the sessions of all other threads, which the child does not have."""
    global _free
    _free = threading.Condition()
    for i, held in list(_held.items()):
        if held.thread != threading.get_ident():
            held.set(held.flag)
            del _held[i]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_own)
