"""What keeps a module as it was: one session at a time, its flags recorded before anything changes and restored whatever
happens, and so with hooks and the settings of the process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
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
    """The module to oneself, in eval mode, its parameters frozen, in full float32, with gradients possible; outside, flags,
    random state and settings are as before.

    Another thread's session with this module, or with one that shares a submodule, parameter or buffer with it, waits.
    Sessions of one thread nest. What the caller's thread has switched on (autocast, inference mode, a default device)
    does not hold inside. Do not wait inside for another thread that begins a session with the same module.
    """
    refuse_transforms()
    with ExitStack() as stack:
        stack.enter_context(_claimed(_parts(module)))
        stack.enter_context(plain_settings())
        stack.enter_context(torch.inference_mode(False))  # whose tensors know no gradients
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def refuse_transforms() -> None:
    """A usage error inside `torch.func`'s transforms (vmap, grad, ...) and under fake tensors: there are no values there."""
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
    """A forward hook for the time of the `with`, removed whatever happens."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def hooked_globally() -> bool:
    """Whether hooks are registered that run on every module."""
    return any(getattr(torch_module, name) for name in GLOBAL_HOOKS)


def observed(module: nn.Module) -> bool:
    """Whether a module or a part of it has hooks, which may read or change inputs and outputs."""
    return hooked_globally() or any(map(has_hooks, module.modules()))


def has_hooks(module: nn.Module) -> bool:
    """Whether a module itself has hooks."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name, None) for name in names)


class StopForward(Exception):  # noqa: N818 (a signal, no error)
    """Raised by a hook at the last layer whose output is needed: ends the forward pass there."""


@dataclass
class _Held:
    """A module, parameter or buffer that sessions of a thread have, how many, and its flag before the first of them."""

    part: nn.Module | Tensor
    thread: int
    flag: bool
    sessions: int = 0

    def set(self, flag: bool) -> None:
        """`training` of a module, `requires_grad` of a tensor."""
        if isinstance(self.part, nn.Module):
            self.part.training = flag
        elif self.part.requires_grad is not flag:
            self.part.requires_grad_(flag)


_held: dict[int, _Held] = {}  # by id, of what is alive as long as it is held
_free = threading.Condition()


@contextmanager
def _claimed(parts: dict[int, nn.Module | Tensor]) -> Iterator[None]:
    """Inside, no other thread has any of these, modules are in eval mode and leaf tensors frozen. The first session of a
    thread changes a flag, its last one restores it, in whatever order they end."""
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


def _flag(part: nn.Module | Tensor) -> bool:
    if isinstance(part, nn.Module):
        return part.training
    return part.requires_grad and part.is_leaf and not part.is_inference()  # whose flag could not be set again


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
    """In a child process, sessions of threads that it does not have are over."""
    global _free
    _free = threading.Condition()
    for i, held in list(_held.items()):
        if held.thread != threading.get_ident():
            held.set(held.flag)
            del _held[i]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_own)
