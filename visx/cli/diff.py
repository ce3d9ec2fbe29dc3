"""`visx diff`: the maps of two runs against thresholds; the gate for CI. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visx.cli.common import Json, Param, Quiet
from visx.cli.measuring import thresholds
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
    from visx import drift
    from visx.files import make_folder, to_json, write_whole
    from visx.metrics import get_metric, split_params

    wanted = thresholds("--min", least)
    metrics = [get_metric(name, ("pair",), "diff") for name in wanted or DEFAULT_METRICS]
    rest, params = split_params(param or [], metrics)
    if rest:
        raise usage(f"--param {rest[0]!r} is no metric's", "METRIC.KEY=VALUE, for instance ssim.window=7")
    rows = drift.compare(base, new, metrics, params, wanted)
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
    mark = "MISS" if row.misses else "ok  "
    values = "  ".join(f"{name} {value:.4f}" for name, value in row.values.items())
    why = f"  {row.status}: " if row.status != "compared" else "  "
    return f"{mark}  {printable(f'{row.image}  {row.name}')}  {values}{why}{printable('; '.join(row.misses))}".rstrip()
