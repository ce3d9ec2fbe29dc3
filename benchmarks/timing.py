"""Timing on a shared machine: the programs take turns, and the medians of their times are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def take_turns(
    contenders: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """The median seconds of every contender over `rounds` rounds, after one round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            begun = clock()
            run()
            if number:
                times[name].append(clock() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def table(title: str, medians: Mapping[str, float], base: str) -> str:
    """A Markdown table of medians and of their ratios to `base`."""
    rows = [f"### {title}", "", f"| | ms | x {base} |", "| --- | ---: | ---: |"]
    rows += [f"| {name} | {seconds * 1000:.1f} | {seconds / medians[base]:.2f} |" for name, seconds in medians.items()]
    return "\n".join(rows)
