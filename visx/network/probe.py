"""The first look at a network: one pass over a noise picture. Why it fails, or why no gradient reaches the input."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visx.errors import VisxError, said_by, unsupported
from visx.network.forms import check_values, input_dtype, lazy, quantised, whereabouts
from visx.network.memory import out_of_memory
from visx.network.record import Record
from visx.network.rules import custom_functions
from visx.network.tensors import tensors
from visx.network.trace import recording


def look(module: nn.Module, picture: Tensor) -> Record:
    """The record of one pass over a prepared picture (1, C, H, W), with gradients recorded. Where forward fails with
    gradients (it may call `.numpy()`), or backward hooks put nodes of their own between modules, that of a second pass
    without gradients. Call inside a session. Raises whatever forward raises."""
    graphed = None
    hooks = any(m._backward_hooks or m._backward_pre_hooks for m in module.modules())
    try:
        with torch.enable_grad():
            x = picture.clone().requires_grad_().clone()  # a network may work in place on its input
            with recording(module, runs=not hooks, operations=not hooks) as record:
                graphed = module(x)
        reason = _no_gradient(module, record, graphed)
    except VisxError:
        raise
    except Exception as error:  # whatever a user's own forward raises
        hooks, reason = True, f"its forward fails where gradients are recorded ({said_by(error)})"
    output = graphed
    if hooks:
        with torch.no_grad(), recording(module) as record:
            output = module(picture)
    record.output, record.graphed = output, output if graphed is None else graphed
    record.no_input_gradient = reason
    return record


def noise(shape: Sequence[int]) -> Tensor:
    """The picture (1, C, H, W) that a network is first looked at with: always the same, so that what is learnt of it never
    depends on the pictures that are explained."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


_CUTTING = {Tensor.detach: "detach", Tensor.detach_: "detach_", Tensor.data.__get__: ".data", Tensor.numpy: "numpy"}  # type: ignore[attr-defined]


def _no_gradient(module: nn.Module, record: Record, output: Any) -> str:
    """Why no gradient leads from the output of a recorded pass back to its input; empty where one does."""
    results = [t for t in tensors(output) if t.is_floating_point()]
    linked = [t for t in results if t.requires_grad]
    if any("CheckpointFunction" in custom_functions(t) for t in linked):
        return "its forward uses re-entrant checkpointing (use_reentrant=False works)"
    if linked or not results:
        return ""
    kind = quantised(module)
    if kind:
        return f"it is quantised ({kind}), and whole numbers have no gradients"
    calls = [call for call in record.calls if call.result is not None]
    if not all(call.gradients for call in calls):
        mode = "inference_mode" if any(call.inference for call in calls) else "no_grad"
        part = "part of " * any(call.gradients for call in calls)
        return f"{part}its forward runs under {mode}"
    cut = dict.fromkeys(_CUTTING[call.func] for call in record.calls if call.func in _CUTTING)
    if cut:
        return f"its forward cuts the graph ({', '.join(cut)})"
    return "no gradient leads from its output back to the input"


def complete(name: str, module: nn.Module, shape: tuple[int, ...]) -> None:
    """Let lazy parameters take their shapes from one pass over zeros (1, C, H, W), their values from a seed of their own;
    an error where values are missing otherwise."""
    check_values(module)
    if not lazy(module):
        return
    training = [m for m in module.modules() if m.training]
    try:
        for m in training:  # no session: it freezes parameters, and these are none yet
            m.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module(torch.zeros(1, *shape, dtype=input_dtype(module), device=whereabouts(module)))
    except Exception as error:  # whatever a user's own forward raises
        raise failure(name, module, shape, error) from error
    finally:
        for m in training:
            m.training = True
    if lazy(module):
        raise unsupported(f"{name}: its lazy parameters are still without shape after a pass", "run it once yourself")


def try_out(name: str, module: nn.Module, picture: Tensor) -> None:
    """One pass over a prepared picture (1, C, H, W), at a precision of the caller's choice; an error in words where it fails.
    Call inside a session."""
    try:
        with torch.no_grad():
            module(picture)
    except Exception as error:  # whatever a user's own forward raises
        raise VisxError(
            f"{name} fails: {said_by(error)}", hint="fp32 is the precision that the network runs at"
        ) from error


def failure(name: str, module: nn.Module, shape: tuple[int, ...], error: Exception) -> VisxError:
    """What is told a user whose module raised `error` on an input of this shape (C, H, W), with a hint that fits."""
    size = "x".join(map(str, (1, *shape)))
    if isinstance(error, TypeError) and (mismatch := _mismatch(module)):
        return unsupported(f"{name}: {_CALL}; {mismatch}", _WRAP)
    if out_of_memory(error):
        return VisxError(
            f"{name} does not fit into memory with an input of {size}", hint="a smaller one, or a device with more"
        )
    text = f"{type(error).__name__}: {error}"
    if re.search(_NO_TENSOR, text):
        return unsupported(f"{name}: {_CALL}; {_forward(module)} fails on that: {said_by(error)}", _WRAP)
    hints = (hint for pattern, hint in _HINTS if re.search(pattern, text, re.IGNORECASE))
    hint = next(hints, "visx calls forward(x) with a float tensor of this shape")
    return VisxError(
        f"{name} fails on an input of {size}: {said_by(error)}", hint=f"{hint}; VISX_DEBUG=1 shows the traceback"
    )


_CALL = "visx calls forward(x) with one batch of pictures, a tensor (N, C, H, W)"
_WRAP = "explain a module of your own whose forward(self, x) calls this one as it wants to be called"
# What a tensor says that is taken for a dict, a list or an object
_NO_TENSOR = (
    r"^(IndexError: (only integers|too many indices)|TypeError: .*(indices must|invalid data type 'str'|new\(\))"
    r"|AttributeError: 'Tensor' object has no attribute)"
)
# What an error's text points to, and what helps; the first that matches counts.
_HINTS = (
    (r"more than 1 value per channel",
     "it normalises over the batch, so one picture alone has no output: give its BatchNorm running statistics"),
    (r"Input type .* and (weight|bias) type .*cuda|same device|on device|is on cpu|on cuda",
     "the module and its inputs lie on different devices: move it as a whole, or let forward move x to its first part"),
    (r"Input type .* and (weight|bias) type|(same|expected|scalar) (d?type|scalar)|not implemented for '|dtype",
     "numbers of different types meet: module.float() makes all of them float32"),
    (r"^NotImplementedError.*forward", "the module has no forward"),
    (r"to have \d+ channels, but got \d+ channels",
     "give --mean, --std (or visx.wrap(module, mean=..., std=...)) one number for each channel of the network"),
    (r"shape|size|dimension|channels|kernel|multiple|divisible|must match|broadcast|(height|width|input|image).*(\d|match)",
     "another size, or grey (one mean and std): visx.wrap(module, size=..., mean=..., std=...)"),
)  # fmt: skip


def _forward(module: nn.Module) -> str:
    """A module's forward with its arguments, as an error shows it."""
    try:
        return f"{type(module).__name__}.forward{inspect.signature(module.forward)}"
    except (TypeError, ValueError):
        return f"{type(module).__name__}.forward"


def _mismatch(module: nn.Module) -> str:
    """Why forward cannot be called with one argument, in words; empty where it can."""
    try:
        inspect.signature(module.forward).bind(None)
    except TypeError as error:
        return f"{_forward(module)}: {error}"
    except ValueError:  # no Python function
        return ""
    return ""
