"""What a rule is called, and what it met."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

Rule = Literal["guided", "deconv"]


@dataclass
class Met:
    """What a rule met: `met` counts the ReLUs, `others` names the activations left alone."""

    met: int = 0
    others: Counter[str] = field(default_factory=Counter)
