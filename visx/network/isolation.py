"""What keeps a model as it was: flags, settings and random state are recorded before anything changes and restored whatever
happens, and so are hooks.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Eval mode, frozen parameters and full float32 inside, never inference mode (whose tensors know no gradients);
    flags, random state and settings as before outside."""
    training = [m for m in module.modules() if m.training]
    wanted = [p for p in module.parameters() if p.requires_grad]
    rng = _random_state()
    cudnn = torch.backends.cudnn
    settings = (torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark)
    try:
        for m in training:
            m.training = False
        for p in wanted:
            p.requires_grad_(False)
        torch.backends.cuda.matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = False
        cudnn.deterministic = True
        with torch.inference_mode(False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = settings
        for p in wanted:
            p.requires_grad_(True)
        for m in training:
            m.training = True
        _restore_random_state(rng)


def _random_state() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return random.getstate(), numpy.random.get_state() if numpy else None, torch.get_rng_state(), cuda


def _restore_random_state(state: tuple[Any, ...]) -> None:
    python, array, cpu, cuda = state
    random.setstate(python)
    if array is not None:
        sys.modules["numpy"].random.set_state(array)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """A forward hook for the time of the `with`, removed whatever happens."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
