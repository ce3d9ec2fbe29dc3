"""Drift: the results of two runs in pairs, compared by metrics and held against thresholds; for a CI pipeline. No torch.

Results pair by image, method, layer and target, and by parameters, score and seed where that leaves several. A result that
is left then may have a single counterpart of the same image and method, but of another layer or target. Such a pair is
compared, too, so that the drift is seen, but it counts as a miss, because what was explained has changed. A result without a
counterpart is missing or extra.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visx.errors import VisxError, printable, usage
from visx.metrics.contract import Metric
from visx.params import Params
from visx.store.read import Stored, read_map, read_results
from visx.store.record import Record

Key = Callable[[Record], tuple[object, ...]]
# What results pair by, one step after the other, and what has changed between two that pair only then.
STEPS: tuple[tuple[str, Key], ...] = (
    ("", lambda r: (r.folder, r.method, r.layer, r.reference, r.variant)),
    ("", lambda r: (r.folder, r.method, r.layer, r.reference)),
    ("layer", lambda r: (r.folder, r.method, r.reference)),
    ("target", lambda r: (r.folder, r.method, r.layer)),
    ("layer and target", lambda r: (r.folder, r.method)),
)


@dataclass
class Comparison:
    """One pair, or one result without a counterpart.

    `status` is `compared`, `missing` (in BASE alone), `extra` (in NEW alone) or `broken` (it cannot be compared); `values`
    has a value a metric; `misses` says in words what is wrong, and is empty where nothing is.
    """

    image: str
    method: str = ""
    layer: str = ""
    target: str = ""
    status: str = "compared"
    values: dict[str, float] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, stored: Stored, status: str = "compared", misses: Sequence[str] = ()) -> Comparison:
        """The comparison of a result, with no values yet."""
        record = stored.record
        return cls(record.folder, record.method, record.layer or "", str(record.reference), status, {}, list(misses))

    @property
    def name(self) -> str:
        """The method, layer and target in one word."""
        return ".".join(part for part in (self.method, self.layer, self.target) if part)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "image": self.image,
            "method": self.method or None,
            "layer": self.layer or None,
            "target": self.target or None,
            "status": self.status,
            "metrics": self.values,
            "misses": self.misses,
        }


def compare(
    base: Path, new: Path, metrics: Sequence[Metric], params: Mapping[str, Params], least: Mapping[str, float]
) -> list[Comparison]:
    """Compare two run folders, or two `.npy` files; the worst first.

    `least` maps a metric to the least value that passes. Usage errors (exit 2): one is a file and the other a folder,
    nothing can be paired. A result that cannot be read or is of another shape is a miss of its own.
    """
    measure = _Measure(metrics, params, least)
    if base.is_file() and new.is_file():
        a, b = read_map(base), read_map(new)
        if a.shape != b.shape:
            raise usage(f"{base} is {_size(a)} and {new} is {_size(b)}: maps of one shape can be compared")
        return [measure(Comparison(str(new)), lambda: a, lambda: b)]
    for path in (base, new):
        if not path.exists():
            raise usage(f"no such file or folder: {path}")
    if base.is_file() or new.is_file():
        raise usage(f"{base} and {new} must both be folders of `visx explain`, or both .npy files")
    pairs, missing, extra = pair(read_results(base), read_results(new))
    if not pairs:
        raise usage(
            f"no result in {base} has a counterpart in {new}",
            "results pair by the image's name below its input root, and by method",
        )
    rows = []
    for one, other, changed in pairs:
        before, after = (_shown(stored.record, changed) for stored in (one, other))
        row = Comparison.of(one, misses=[f"{changed} changed: {before} -> {after}"] if changed else [])
        rows.append(measure(row, one.map, other.map))
    if all(row.status == "broken" for row in rows):
        raise usage(f"no pair can be compared; the first: {rows[0].image}: {rows[0].misses[-1]}")
    for status, alone in (("missing", missing), ("extra", extra)):
        side = new if status == "missing" else base
        rows += [Comparison.of(stored, status, [f"not in {side}"]) for stored in alone]
    return sorted(rows, key=measure.badness)


def pair(
    base: Iterable[Stored], new: Iterable[Stored]
) -> tuple[list[tuple[Stored, Stored, str]], list[Stored], list[Stored]]:
    """(pairs with what changed in their identity, missing, extra). A step pairs only what is unique on both sides."""
    left, right = list(base), list(new)
    pairs: list[tuple[Stored, Stored, str]] = []
    for changed, key in STEPS:
        ours, theirs = _unique(left, key), _unique(right, key)
        new_pairs = [(ours[k], theirs[k]) for k in ours if k in theirs]
        pairs += [(one, other, changed) for one, other in new_pairs]
        paired = {id(stored) for pair in new_pairs for stored in pair}
        left, right = ([s for s in side if id(s) not in paired] for side in (left, right))
    return pairs, left, right


def junit(rows: Sequence[Comparison]) -> bytes:
    """The comparisons as JUnit XML: a test case a pair, a failure where a threshold or a counterpart is missed."""
    failed = [row for row in rows if row.misses and row.status != "broken"]
    broken = [row for row in rows if row.status == "broken"]
    counts = {"tests": str(len(rows)), "failures": str(len(failed)), "errors": str(len(broken)), "skipped": "0"}
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": "visx diff", **counts})
    for row in rows:
        name = {"classname": printable(row.name or "map"), "name": printable(row.image), "time": "0"}
        case = ET.SubElement(suite, "testcase", name)
        if row.misses:
            kind = "error" if row.status == "broken" else "failure"
            message = printable("; ".join(row.misses))
            ET.SubElement(case, kind, {"message": message, "type": row.status}).text = message
        if row.values:
            text = "\n".join(f"{metric} = {value:.6f}" for metric, value in row.values.items())
            ET.SubElement(case, "system-out").text = text
    ET.indent(suites)
    return ET.tostring(suites, encoding="utf-8", xml_declaration=True)


class _Measure:
    """Measures pairs of maps, and knows which of two comparisons is worse."""

    def __init__(self, metrics: Sequence[Metric], params: Mapping[str, Params], least: Mapping[str, float]) -> None:
        self.metrics, self.params, self.least = metrics, params, least

    def __call__(self, row: Comparison, base: Callable[[], Any], new: Callable[[], Any]) -> Comparison:
        """The row with the values of all metrics, and with a miss for each that is below its threshold."""
        try:
            a, b = base(), new()
            if a.shape != b.shape:
                raise VisxError(f"shape changed: {_size(a)} -> {_size(b)}")
        except VisxError as error:
            row.status = "broken"
            row.misses.append(error.message)
            return row
        for metric in self.metrics:
            value = row.values[metric.name] = metric.run(a, b, self.params[metric.name])
            if metric.name in self.least and not value >= self.least[metric.name]:
                row.misses.append(f"{metric.name} {value:.4f} is below {self.least[metric.name]:g}")
        return row

    def badness(self, row: Comparison) -> tuple[bool, float, str, str]:
        """A key to sort by: misses first, of these the one farthest below its threshold (or below 1) first of all."""
        rank = {"broken": -3.0, "missing": -2.0, "extra": -2.0}
        gaps = [value - self.least.get(name, 1.0) for name, value in row.values.items()]
        if self.least:
            gaps = [row.values[name] - least for name, least in self.least.items() if name in row.values]
        return not row.misses, min(gaps, default=rank.get(row.status, 0.0)), row.image, row.name


def _unique(results: Iterable[Stored], key: Key) -> dict[tuple[object, ...], Stored]:
    """The results that no other has the key of, by that key."""
    groups: dict[tuple[object, ...], list[Stored]] = {}
    for stored in results:
        groups.setdefault(key(stored.record), []).append(stored)
    return {k: group[0] for k, group in groups.items() if len(group) == 1}


def _shown(record: Record, changed: str) -> str:
    """The layer, the target or both, in words, whichever has changed."""
    parts = [record.layer or ""] if "layer" in changed else []
    parts += [f"{record.reference} {record.label}".strip()] if "target" in changed else []
    return ", ".join(parts) or "none"


def _size(values: Any) -> str:
    return "x".join(map(str, values.shape))
