"""The names of the ReLU rules, and the activations that a pass under a rule has."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Rule = Literal["guided", "deconv"]


@dataclass
class Activations:
    """The activations of a pass: `relus` is how many there are that follow the rule, `others` counts by name those that are
    no ReLU and differentiate as they are."""

    relus: int = 0
    others: Counter[str] = field(default_factory=Counter)
