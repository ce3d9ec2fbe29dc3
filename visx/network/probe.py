"""The first look at a network: one pass over a noise picture. Why it fails, or why no gradient reaches the input."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from visx.errors import VisxError, said_by, unsupported
from visx.network.forms import check_values, input_dtype, lazy, quantised, whereabouts
from visx.network.network import Network
from visx.network.rules import strangers
from visx.network.scorer import out_of_memory
from visx.network.tensors import tensors
from visx.targets.classes import Targets


class Watcher(Protocol):
    """What records a pass, for instance `visx.network.anatomy`'s watch."""

    def watching(self, module: nn.Module) -> AbstractContextManager[None]: ...


T = TypeVar("T", bound=Watcher)


@dataclass(frozen=True)
class DryRun(Generic[T]):
    """One pass: the raw output, who watched it, and in words why no gradient leads from the output to the input (empty
    where one does). `graphed` is the raw output with its autograd graph, where there is one."""

    output: Any
    watcher: T
    graphed: Any
    no_input_gradient: str = ""


def dry_run(network: Network, shape: tuple[int, ...], watcher: Callable[[], T]) -> DryRun[T]:
    """Run the network once on noise (1, C, H, W), always the same, with gradients recorded. Where forward fails with
    gradients (it may call `.numpy()`), or backward hooks put nodes of their own between modules, a second run without
    gradients is watched. Call inside `network.session()`. Raises whatever forward raises."""
    picture = network.prepare(torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32))
    watching, graphed = watcher(), None
    try:
        if not any(m._backward_hooks or m._backward_pre_hooks for m in network.module.modules()):
            with watching.watching(network.module):
                output, reason = _differentiable(network.module, picture)
            return DryRun(output, watching, output, reason)
        graphed, reason = _differentiable(network.module, picture)
    except VisxError:
        raise
    except Exception as error:  # whatever a user's own forward raises
        reason = f"its forward fails where gradients are recorded ({said_by(error)})"
    watching = watcher()
    with torch.no_grad(), watching.watching(network.module):
        output = network.module(picture)
    return DryRun(output, watching, output if graphed is None else graphed, reason)


def _differentiable(module: nn.Module, picture: Tensor) -> tuple[Any, str]:
    """The output for a picture, and why no gradient leads back to it (empty where one does)."""
    x = picture.clone().requires_grad_().clone()  # a network may work in place on its input
    with torch.enable_grad(), _Modes() as modes:
        output = module(x)
    results = [t for t in tensors(output) if t.is_floating_point()]
    linked = [t for t in results if t.requires_grad]
    if any("CheckpointFunction" in strangers(t) for t in linked):
        return output, "its forward uses re-entrant checkpointing (use_reentrant=False works)"
    if linked or not results:
        return output, ""
    kind = quantised(module)
    return output, f"it is quantised ({kind}), and whole numbers have no gradients" if kind else modes.reason()


_CUTTING = {Tensor.detach: "detach", Tensor.detach_: "detach_", Tensor.data.__get__: ".data", Tensor.numpy: "numpy"}  # type: ignore[attr-defined]


class _Modes(TorchFunctionMode):
    """Notes whether functions run with gradients off, and which of them cut the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.on = self.off = 0
        self.inference = False
        self.cut: dict[str, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CUTTING:
            self.cut[_CUTTING[func]] = None
        output = func(*args, **(kwargs or {}))
        if isinstance(output, Tensor):  # the others ask for a shape or a type
            self.on += torch.is_grad_enabled()
            self.off += not torch.is_grad_enabled()
            self.inference |= torch.is_inference_mode_enabled()
        return output

    def reason(self) -> str:
        """Why the output of the pass has no gradients."""
        if self.off:
            mode = "inference_mode" if self.inference else "no_grad"
            return f"{'part of ' * (self.on > 0)}its forward runs under {mode}"
        if self.cut:
            return f"its forward cuts the graph ({', '.join(self.cut)})"
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


def reaches(network: Network, shape: tuple[int, ...], layer: str) -> bool:
    """Whether a gradient leads from the logits to a layer, though none leads to the input."""
    with network.session():
        try:
            network.layer_gradients(
                torch.zeros(1, *shape), layer, Targets.fixed(torch.zeros(1, 1, dtype=torch.long)), "logit"
            )
        except Exception:  # a refusal of ours, or what forward raises where gradients are recorded
            return False
    return True


def try_out(network: Network, name: str, shape: tuple[int, ...]) -> None:
    """One pass over zeros (1, C, H, W) at a precision of the caller's choice; an error in words where it fails. Call inside
    `network.session()`."""
    try:
        with torch.no_grad():
            network.module(network.prepare(torch.zeros(1, *shape)))
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
