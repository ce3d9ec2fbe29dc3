"""The settings that `--vary` asks for: a method's maps are made under each of them and compared."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visx.engine.jobs import Job, plan
from visx.errors import usage
from visx.methods.contract import Method
from visx.models import Model
from visx.network.outputs import ScoreKind

Against = Literal["all-pairs", "default"]
RUN_KEYS = ("seed", "noise", "layer")  # keys of --vary that are not parameters of a method
MOST_SETTINGS = 200


@dataclass(frozen=True)
class Setting:
    """One setting: its `name` says what differs from the others; the job, the run's seed and the variance of the noise."""

    name: str
    job: Job
    seed: int
    noise: float


def parse_vary(texts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each key in `KEY=a,b,c` and `KEY=0..4` (whole numbers, both ends included), in order.

    Raises `VisxError` (usage, exit 2) for other texts and for ranges of more than `MOST_SETTINGS` numbers.
    """
    varied: dict[str, list[str]] = {}
    for text in texts:
        key, _, values = text.partition("=")
        listed: list[str] = []
        for value in filter(None, (v.strip() for v in values.split(","))):
            span = re.fullmatch(r"(-?\d{1,9})\.\.(-?\d{1,9})", value)
            if span and not 0 <= int(span[2]) - int(span[1]) < MOST_SETTINGS:
                raise usage(f"--vary {text!r}: {value} is not a range of 1 to {MOST_SETTINGS} numbers")
            listed += map(str, range(int(span[1]), int(span[2]) + 1)) if span else [value]
        if not key or not listed:
            raise usage(f"--vary {text!r} is not KEY=a,b,c", "for instance --vary patch=52,53,54 or --vary seed=0..4")
        varied[key.strip()] = list(dict.fromkeys([*varied.get(key.strip(), []), *listed]))
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
    """The settings of a group: every combination of the varied values, once.

    With `against="default"` the method's own setting comes first. Raises `VisxError` (usage, exit 2) for more than
    `MOST_SETTINGS` settings and for a single one, which has no other to be compared with.
    """
    count = int(np.prod([len(values) for values in varied.values()]))
    if count > MOST_SETTINGS:
        raise usage(f"--vary asks for {count} settings, more than {MOST_SETTINGS}")
    combinations = [dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    settings = [_setting(model, method, c, params, score, layer, seed) for c in combinations]
    if against == "default":
        default = _setting(model, method, {}, params, score, layer, seed)
        same = next(
            (s for s in settings if (s.job, s.seed, s.noise) == (default.job, default.seed, default.noise)), default
        )
        settings = [same, *(s for s in settings if s is not same)]
    if len(settings) < 2:
        alone = " ".join(f"{key}={value}" for key, values in varied.items() for value in values)
        raise usage(f"{alone}: one setting has no other to move from", "--vary KEY=a,b, or --against default")
    return settings


def _setting(
    model: Model,
    method: Method,
    values: Mapping[str, str],
    params: Mapping[str, str],
    score: ScoreKind | None,
    layer: str | None,
    seed: int,
) -> Setting:
    """The setting with these values of the varied keys."""
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
