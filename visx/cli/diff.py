"""`visx diff`: the maps of two runs against thresholds; the gate for CI. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visx.cli.measuring import choose_metrics, thresholds
from visx.cli.options import Json, Param, Quiet
from visx.cli.output import put
from visx.cli.talk import Talk
from visx.errors import ExitCode, printable, usage

if TYPE_CHECKING:
    from visx.drift import Comparison

DEFAULT_METRICS = ("spearman", "ssim")


def diff(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="A run's folder, or a .npy map.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The run or map to hold against it.", show_default=False)],
    least: Annotated[
        list[str] | None,
        typer.Option(
            "--min",
            metavar="METRIC=VALUE",
            help="The least value that passes: spearman, ssim, pearson, hog, top_k or iou. Repeatable.",
            show_default="none: spearman and ssim are shown",
        ),
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML.", show_default=False)
    ] = None,
    param: Param = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Compare two runs of `visx explain`, the worst result first.

    Exits 5 where a threshold, a result or what it explains is missed; 2 where nothing can be paired.

    [dim]visx diff base/ new/ --min spearman=0.9 --min ssim=0.8 --junit drift.xml[/dim]
    """
    least_values = thresholds("--min", least)
    measuring = choose_metrics("diff", list(least_values), DEFAULT_METRICS, ("pair",), param or ())
    if measuring.method_pairs:
        hint = "METRIC.KEY=VALUE, for instance ssim.window=7"
        raise usage(f"--param {measuring.method_pairs[0]!r} is no metric's", hint)

    from visx import drift
    from visx.files import make_folder, to_json, write_whole

    rows = drift.compare(base, new, measuring.metrics, measuring.params, least_values)
    if junit is not None:
        make_folder(junit.parent)
        write_whole(junit, drift.junit(rows))
    for row in rows:
        if json:
            put(to_json(row.as_dict()))
        elif not quiet or row.misses:
            put(_line(row))
    missed = sum(bool(row.misses) for row in rows)
    Talk(quiet).say(f"{len(rows)} compared, {missed} missed" if missed else f"{len(rows)} compared, none missed")
    return int(ExitCode.THRESHOLD if missed else ExitCode.OK)


def _line(row: Comparison) -> str:
    """A compared pair as one line: whether it passed, what it is of, the values, and what was missed."""
    mark = "MISS" if row.misses else "ok  "
    values = "  ".join(f"{name} {value:.4f}" for name, value in row.values.items())
    why = f"  {row.status}: " if row.status != "compared" else "  "
    return f"{mark}  {printable(f'{row.image}  {row.name}')}  {values}{why}{printable('; '.join(row.misses))}".rstrip()
