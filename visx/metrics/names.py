"""The list of metrics: every name, with what is known of a metric before its module is imported.

Help, hints and messages name metrics from this list. It imports nothing, so that help stays fast.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["pair", "box", "alone", "map", "set"]  # what a metric's function takes: visx/metrics/contract.py


class Listed(NamedTuple):
    """What the list says of a metric: its kind, and whether it measures a probability, which some outputs do not have."""

    kind: Kind
    probability: bool = False


METRICS: dict[str, Listed] = {
    "ssim": Listed("pair"),
    "spearman": Listed("pair"),
    "pearson": Listed("pair"),
    "hog": Listed("pair"),
    "top_k": Listed("pair"),
    "iou": Listed("pair"),
    "localisation": Listed("box"),
    "pointing_game": Listed("box"),
    "energy": Listed("box"),
    "insertion": Listed("map", probability=True),
    "deletion": Listed("map", probability=True),
    "road": Listed("map", probability=True),
    "average_drop": Listed("map", probability=True),
    "increase": Listed("map", probability=True),
    "completeness": Listed("map"),
    "infidelity": Listed("map"),
    "max_sensitivity": Listed("map"),
    "grid_pointing": Listed("set", probability=True),
    "randomization": Listed("set"),
}


def listed(*kinds: Kind) -> str:
    """The names of the metrics of these kinds, in the order of the list, as text: "ssim, spearman"."""
    return ", ".join(name for name, metric in METRICS.items() if metric.kind in kinds)


def of_values() -> str:
    """The names of the metrics that ask the model and need no probability, as text: "completeness, infidelity and ..."."""
    names = [name for name, metric in METRICS.items() if metric.kind in ("map", "set") and not metric.probability]
    return f"{', '.join(names[:-1])} and {names[-1]}"
