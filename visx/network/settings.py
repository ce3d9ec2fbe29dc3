"""Settings of the whole process while anything is explained: plain float32, deterministic kernels, the random state.

They belong to all threads at once. So the first session that begins records and sets them, and the last one to end puts
them back: two sessions side by side never restore each other's values.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch

_lock = threading.Lock()
_sessions: list[int] = []  # the threads of the open sessions
_restore: list[Callable[[], object]] = []  # what the last one does, in order


@contextmanager
def plain_settings() -> Iterator[None]:
    """Inside, float32 is computed as float32 and cuDNN is deterministic; outside, settings and the states of the random
    generators (Python's, numpy's, torch's) are as before the first of all open sessions."""
    thread = threading.get_ident()
    with _lock:
        if not _sessions:
            _set()
        _sessions.append(thread)
    try:
        yield
    finally:
        with _lock:
            _sessions.remove(thread)
            if not _sessions:
                _put_back()


def default_device() -> torch.device:
    """The device on which new tensors are made. (`torch.get_default_device` fails in torch 2.6 once a default was taken back.)"""
    return torch.empty(0).device


def random_states() -> dict[str, Any]:
    """The states of the process's random generators, by library."""
    numpy = sys.modules.get("numpy")
    states = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if numpy is not None:
        states["numpy"] = numpy.random.get_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def seed_all(seed: int) -> None:
    """Seed them all. CUDA's are left alone where nothing uses them yet: they would remember."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def set_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` returned."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if "numpy" in states:
        sys.modules["numpy"].random.set_state(states["numpy"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


def _set() -> None:
    states = random_states()
    _restore.append(lambda: set_random_states(states))
    cudnn, anomaly = torch.backends.cudnn, (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled())
    deterministic, benchmark = cudnn.deterministic, cudnn.benchmark

    def back() -> None:
        cudnn.deterministic, cudnn.benchmark = deterministic, benchmark
        torch.autograd.set_detect_anomaly(*anomaly)

    _restore.append(back)
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.autograd.set_detect_anomaly(False)  # gradients that are not finite are told by visx itself
    _set_precision()


def _put_back() -> None:
    while _restore:
        _restore.pop()()


def _set_precision() -> None:
    """Full float32 by both of torch's interfaces. The older one raises where the newer one was used: it is left alone then,
    and is what it was at the start, full precision."""
    older: list[tuple[Callable[[Any], None], Any, Any]] = []  # how to set it, to what, what it was
    with suppress(RuntimeError):
        older.append((torch.set_float32_matmul_precision, "highest", torch.get_float32_matmul_precision()))
    with suppress(RuntimeError):
        cudnn = torch.backends.cudnn
        older.append((partial(setattr, cudnn, "allow_tf32"), False, cudnn.allow_tf32))
    # One that is "none" reads as its parent's value, so parents are cleared first: what is read then is its own.
    for backend, op in _PRECISIONS:
        value = torch._C._get_fp32_precision_getter(backend, op)
        _restore.append(partial(torch._C._set_fp32_precision_setter, backend, op, value))
        torch._C._set_fp32_precision_setter(backend, op, "none")
    for put, value, before in older:
        _restore.append(partial(put, before))  # undone first, because it moves the newer ones
        put(value)
    for backend, op in _PRECISIONS:
        if op != "all":
            torch._C._set_fp32_precision_setter(backend, op, "ieee")


# The newer interface (from torch 2.9 on), parents first. Its public face sets the wrong one for ("mkldnn", "all").
_PRECISIONS = (
    [("generic", "all")] + [(backend, op) for op in ("all", "matmul", "conv", "rnn") for backend in ("cuda", "mkldnn")]
    if hasattr(torch.backends, "fp32_precision")
    else []
)


def _keep_own() -> None:
    """In a child process, sessions of threads that it does not have are over."""
    global _lock
    _lock, others = threading.Lock(), [t for t in _sessions if t != threading.get_ident()]
    for thread in others:
        _sessions.remove(thread)
    if others and not _sessions:
        _put_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_own)
