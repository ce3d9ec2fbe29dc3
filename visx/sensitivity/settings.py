"""Varying: what `--vary` asks for, as the settings that a method's maps are made under and compared between."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visx.engine.jobs import Job, plan
from visx.errors import usage
from visx.methods.contract import Method, ScoreKind
from visx.models import Model

Against = Literal["all-pairs", "default"]
RUN_KEYS = ("seed", "noise", "layer")  # what can vary besides a method's parameters
MOST_SETTINGS = 200


@dataclass(frozen=True)
class Setting:
    """One column: what differs (`varied`, in words), the job, and the run's seed and noise."""

    name: str
    job: Job
    seed: int
    noise: float


def parse_vary(texts: Sequence[str]) -> dict[str, list[str]]:
    """`KEY=a,b,c` and `KEY=0..4` (whole numbers, both ends included) -> the values of each key, in order."""
    varied: dict[str, list[str]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        found: list[str] = []
        for value in filter(None, (v.strip() for v in values.split(","))):
            span = re.fullmatch(r"(-?\d{1,9})\.\.(-?\d{1,9})", value)
            if span and not 0 <= int(span[2]) - int(span[1]) < MOST_SETTINGS:
                raise usage(f"--vary {text!r}: {value} is not a range of 1 to {MOST_SETTINGS} numbers")
            found += map(str, range(int(span[1]), int(span[2]) + 1)) if span else [value]
        if not key or not found:
            raise usage(f"--vary {text!r} is not KEY=a,b,c", "for instance --vary patch=52,53,54 or --vary seed=0..4")
        varied[key.strip()] = list(dict.fromkeys([*varied.get(key.strip(), []), *found]))
    return varied


def settings_of(
    model: Model,
    method: Method,
    varied: Mapping[str, Sequence[str]],
    params: Mapping[str, str],
    score: ScoreKind | None,
    layer: str | None,
    seed: int,
    against: Against,
) -> list[Setting]:
    """The settings of a group, every combination once; `against="default"` puts the method's own first."""
    count = int(np.prod([len(values) for values in varied.values()]))
    if count > MOST_SETTINGS:
        raise usage(f"--vary asks for {count} settings, more than {MOST_SETTINGS}")
    combinations = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    found = [_setting(model, method, c, params, score, layer, seed) for c in combinations]
    if against == "default":
        default = _setting(model, method, {}, params, score, layer, seed)
        same = next(
            (s for s in found if (s.job, s.seed, s.noise) == (default.job, default.seed, default.noise)), default
        )
        found = [same, *(s for s in found if s is not same)]
    if len(found) < 2:
        alone = " ".join(f"{key}={value}" for key, values in varied.items() for value in values)
        raise usage(f"{alone}: one setting has no other to move from", "--vary KEY=a,b, or --against default")
    return found


def _setting(
    model: Model,
    method: Method,
    values: Mapping[str, str],
    params: Mapping[str, str],
    score: ScoreKind | None,
    layer: str | None,
    seed: int,
) -> Setting:
    own = {key: value for key, value in values.items() if key not in RUN_KEYS}
    wanted = values.get("layer", layer)
    (job,) = plan(model, [method], [wanted] if wanted else [], {method.name: {**params, **own}}, score)
    try:
        seed, noise = int(values.get("seed", seed)), float(values.get("noise", 0))
    except ValueError:
        bad = ", ".join(f"{key}={values[key]}" for key in ("seed", "noise") if key in values)
        raise usage(f"--vary {bad}: a seed is a whole number, noise a variance") from None
    if not 0 <= noise < float("inf"):
        raise usage(f"--vary noise={noise:g} is no variance", "0 and above")
    return Setting(", ".join(f"{k}={v}" for k, v in values.items()) or "default", job, seed, noise)
