"""The behaviour of a network: whether its output for a picture depends on anything besides the picture, which may be random
numbers, the other pictures of a batch, or the passes before. It is observed once for each network, by running it on noise.

Of a network with such a dependence, pictures and perturbed copies are run one at a time. Before each pass the process's
random generators are seeded from the picture's seed, and the module's state is that at the start of the session. So all
copies of a picture are run with the same random numbers, and their scores differ by what was perturbed alone.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from visx.network.members import rows
from visx.network.memory import out_of_memory
from visx.network.outputs import Outputs
from visx.network.restoring import SavedState, same_values
from visx.network.settings import random_states, seed_all
from visx.network.snapshot import Values
from visx.network.tensors import tensors

# What rounding alone may move outputs by, as a part of the largest one, where equal passes are not equal to the last bit;
# and what more than so many times of it must have another reason, where an output is computed in a batch of another size.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}
_APART = 10

drawing = threading.RLock()  # held by a pass that draws from the process's generators: they are all threads' alike


@dataclass(frozen=True)
class Behaviour:
    """`random`: the forward draws random numbers; `coupled`: an output depends on the others of its batch; `stateful`: on
    the passes before; `unrepeatable`: two passes differ whatever is seeded; `single`: forward takes one picture at a time;
    `changing`: it changes buffers or attributes, `parameters` too."""

    random: bool = False
    coupled: bool = False
    stateful: bool = False
    unrepeatable: bool = False
    single: bool = False
    changing: bool = False
    parameters: bool = False
    one_row: bool = False  # whether pictures go through one at a time: any of the first five

    def warnings(self) -> list[str]:
        """What a user must know of every map."""
        result = []
        if self.random:
            result.append(
                "the model's forward draws random numbers: pictures and copies went through it one at a time, under one draw "
                "that follows from --seed and the picture; another seed gives another map"
            )
        if self.coupled:
            result.append(
                "the model's output for a picture depends on the others of its batch (batch statistics?): pictures and "
                "copies went through it one at a time"
            )
        if self.stateful:
            result.append(
                "the model's output depends on the passes before: each pass began with what the model held at first"
            )
        if self.unrepeatable:
            result.append("two passes of the model over one picture differ, whatever is seeded: so will two maps")
        return result


class Observed(Protocol):
    """A network whose behaviour is observed (`visx.network.network.Network`)."""

    module: nn.Module

    @property
    def outputs(self) -> Outputs:
        """What the module's raw output means."""

    def prepare(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) as the module takes them."""


PLAIN, _SINGLE = Behaviour(), Behaviour(single=True, one_row=True)


def observe(network: Observed, shape: tuple[int, ...]) -> Behaviour:
    """What the network's output for a picture depends on besides the picture, for inputs of this shape (C, H, W).

    The network runs on noise: a batch of two, and its second picture alone. For a plain network the outputs agree, no
    random generator moves, and nothing that the module holds changes. Outputs that differ by little may be rounding or a
    small coupling: the picture is then run in a batch with a third one. Batches of one size round alike, so any difference between
    these two is a coupling. If anything is odd, more passes find the reason.

    Call inside `network.session()`. The module is left as it was, but for parameters that its forward writes to.
    """
    of = known(network.module, shape)
    if of is not None:
        return of
    signature = _signature(network.module)
    with torch.no_grad(), drawing:
        result = _Look(network, shape).behaviour()
    with suppress(TypeError):  # a module of one's own may not be hashable
        _known[network.module] = _Known(signature, shape, result)
    return result


def known(module: nn.Module, shape: tuple[int, ...]) -> Behaviour | None:
    """What is known of a module already, for inputs of this shape (C, H, W); None where it has to be observed."""
    with suppress(TypeError):
        of = _known.get(module)
        if of and of.shape in (shape, None) and of.signature == _signature(module):
            return of.behaviour
    return None


def take_as_plain(module: nn.Module) -> None:
    """Record that a library's network is known to be plain, so that `observe` needs no passes. It holds until the
    network's structure or hooks are changed."""
    _known[module] = _Known(_signature(module), None, PLAIN)


@dataclass(frozen=True)
class _Known:
    """What was found of a module for inputs of this shape (None: of any)."""

    signature: list[Any]
    shape: tuple[int, ...] | None
    behaviour: Behaviour


# by module, so that one handed in bare is not looked at for each of its pictures
_known: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def _signature(module: nn.Module) -> list[Any]:
    """What a module is made of: parts, hooks and arrays by identity, settings by value. Values of parameters and buffers
    do not count."""
    parts: list[Any] = [type(module)]
    for child in module.modules():
        for name, value in vars(child).items():
            if isinstance(value, dict):  # parameters, buffers, parts, hooks
                parts += [(id(child), name, key, id(held)) for key, held in value.items()]
            else:
                simple = isinstance(value, (bool, int, float, str))
                parts.append((id(child), name, value if simple else id(value)))
    return parts


class _Look:
    """Passes over noise. The picture that is watched comes last: in a batch taken for a sequence (a recurrent layer with
    its axes mixed up) only what comes before has an influence."""

    def __init__(self, network: Observed, shape: tuple[int, ...]) -> None:
        self.network = network
        noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        self.picture, self.others = noise[:1], (noise[1:2] * 0.5, noise[2:] * 3)
        self.before = SavedState(network.module)
        self.values = Values(list(network.module.parameters()))
        self.drew = False

    def behaviour(self) -> Behaviour:
        try:
            return self._behaviour()
        except Exception:  # whatever a user's own forward raises on noise: nothing is known
            return PLAIN
        finally:
            self.before.restore()

    def _behaviour(self) -> Behaviour:
        first, second = (torch.cat([other, self.picture]) for other in self.others)
        try:
            in_batch, drew = self._run(first), self.drew
        except Exception as error:  # a fixed batch shows in many ways
            if out_of_memory(error):
                raise
            in_batch, drew = [], False
        single = not in_batch
        alone = self._run(self.picture)
        odd = drew or self.drew or not self.before.unchanged() or not self.values.hold()
        if not odd and single:
            odd = not equal(alone, self._run(self.picture))
        elif not odd:
            # equal bits need no second look; what is no rounding is something else; between, it may be a small coupling
            odd = not equal(in_batch, alone) and (
                not agree(in_batch, alone, _APART) or not equal(in_batch, self._run(second))
            )
        if not odd:
            return _SINGLE if single else PLAIN
        return self._reasons(*((self.picture, self.others[0]) if single else (first, second)), single)

    def _reasons(self, first: Tensor, second: Tensor, single: bool) -> Behaviour:
        """Why outputs are not what they should be."""
        parameters = not self.values.hold()
        if parameters:  # what they held is lost: what they hold now has to be copied
            self.before.restore()
            self.before = SavedState(self.network.module, parameters=True)
        one, drew = self._run(first, anew=True), self.drew
        changing = parameters or not self.before.unchanged()
        self._run(second)  # what is kept of another picture may matter, of the same one not
        after_it, two = self._run(first), self._run(first, anew=True)
        drew = drew and self.drew  # seen twice: another thread may have drawn meanwhile
        exact = equal(one, two)
        repeatable = exact or agree(one, two)
        alike = equal if exact else agree
        stateful = repeatable and not alike(one, after_it)
        coupled = not single and repeatable and not alike(one, self._run(second, anew=True))
        if not single and repeatable and not drew:
            coupled = coupled or not agree(one, self._run(self.picture, anew=True), _APART)
        apart = drew or coupled or stateful or not repeatable
        return Behaviour(drew, coupled, stateful, not repeatable, single, changing, parameters, single or apart)

    def _run(self, x: Tensor, *, anew: bool = False) -> list[Tensor]:
        """The last picture's part of what is explained, or, where that is not known, of all outputs that have one for every
        picture; `drew` is set if a generator moved."""
        if anew:
            self.before.restore()
        seed_all(0)
        states = random_states()
        output = self.network.module(self.network.prepare(x))
        self.drew = not same_states(states, random_states())
        scores = rows(self.network.outputs.tensor(output), len(x))
        if scores is not None:
            return [scores[-1].clone()]
        result = list(tensors(output)) or list(tensors(dict(getattr(output, "__dict__", {}))))
        return [t[-1].clone() for t in result if t.dim() and len(t) == len(x)]


def equal(one: list[Tensor], two: list[Tensor]) -> bool:
    """Whether outputs are the same to the last bit."""
    return len(one) == len(two) and all(map(same_values, one, two))


def agree(one: list[Tensor], two: list[Tensor], times: float = 1) -> bool:
    """Whether outputs differ by rounding alone, or by so many times of it."""
    if len(one) != len(two) or any(a.shape != b.shape for a, b in zip(one, two, strict=True)):
        return False
    for a, b in zip(one, two, strict=True):
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()):
            return False
        a, b = a[finite], b[finite]
        if a.numel() and float((a - b).abs().max()) > times * _ROUNDING.get(a.dtype, 0) * float(a.abs().max()):
            return False
    return True


def same_states(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether no generator has moved between two results of `random_states`."""
    cuda = zip(one.get("cuda", ()), two.get("cuda", ()), strict=False)
    same = one["python"] == two["python"] and torch.equal(one["torch"], two["torch"])
    same = same and all(torch.equal(a, b) for a, b in cuda)
    if "numpy" in one and "numpy" in two:
        a, b = one["numpy"], two["numpy"]
        same = same and bool((a[1] == b[1]).all()) and a[2:] == b[2:]
    return same
