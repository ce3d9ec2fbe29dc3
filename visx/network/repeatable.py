"""Whether a function that only scores gives a picture the same values in every pass, found by running it on noise.

What `visx.network.behaviour` finds of a module, as far as it shows from outside: nothing that a function keeps can be looked
at or put back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from visx.errors import VisxError
from visx.network.behaviour import PLAIN, Behaviour, agree, equal, same_states
from visx.network.settings import random_states, seed_all

APART = 10  # times rounding: what moves values further, in a batch of another size, is no rounding


def noise(shape: Sequence[int]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The picture (1, C, H, W) that is watched, and two others of less and more contrast; the same in every run."""
    pictures = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    return pictures[:1], (pictures[1:2] * 0.5, pictures[2:] * 3)


def observe(values: Callable[[Tensor], Tensor], picture: Tensor, others: Sequence[Tensor]) -> Behaviour:
    """The behaviour of `values`, which maps pictures (N, C, H, W) to values (N, ...): a batch of two and its last picture
    alone agree, and no random generator of the process moves; else more passes find the reason. Inside a session."""
    watch = _Watch(values)
    alone = watch(picture)
    beside = [torch.cat([other, picture]) for other in others]
    try:
        first, single = watch(beside[0]), False
    except VisxError:  # it takes one picture at a time
        first, single = watch(picture), True
    if not watch.drew and (equal([alone], [first]) or (not single and _rounding(watch, alone, first, beside[1]))):
        return Behaviour(single=True, one_row=True) if single else PLAIN
    again = watch(picture if single else beside[0])
    exact = equal([first], [again])
    repeatable = exact or agree([first], [again])
    coupled = False
    if repeatable and not single:
        alike = equal if exact else agree
        coupled = not alike([first], [watch(beside[1])]) or not (watch.drew or agree([alone], [first], APART))
    random = watch.drew and repeatable
    apart = random or coupled or not repeatable or single
    return Behaviour(random=random, coupled=coupled, unrepeatable=not repeatable, single=single, one_row=apart)


def _rounding(watch: _Watch, alone: Tensor, first: Tensor, beside: Tensor) -> bool:
    """Whether values differ by the rounding of another batch size alone: beside another picture they are then the same."""
    return agree([alone], [first], APART) and equal([first], [watch(beside)])


class _Watch:
    """Passes under one seed, of which the last picture's values are kept; `drew`: whether a generator has moved."""

    def __init__(self, values: Callable[[Tensor], Tensor]) -> None:
        self.values, self.drew = values, False

    def __call__(self, x: Tensor) -> Tensor:
        seed_all(0)
        states = random_states()
        values = self.values(x)[-1].cpu()
        self.drew = self.drew or not same_states(states, random_states())
        return values
