"""`visx report`: the page of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from visx.cli.options import Json, Quiet
from visx.cli.output import put
from visx.cli.talk import Talk

INLINE_MB = 8.0


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The output folder of `visx explain`.", show_default=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="The page.", show_default="DIR/report.html"),
    ] = None,
    inline_mb: Annotated[
        float,
        typer.Option(
            "--inline-mb", min=0, help="Pictures up to this size in all go into the page, more into a folder beside it."
        ),
    ] = INLINE_MB,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Write one page of a run: all its maps to look through, filter, sort and compare. Needs no server, no network.

    [dim]visx report visx-out/[/dim]
    """
    from visx.files import to_json
    from visx.gallery import write_report

    talk, page = Talk(quiet), out or folder / "report.html"
    summary = write_report(folder, page, int(inline_mb * 1_000_000), talk.say, talk.progress)
    if json:
        put(to_json(summary))
    elif not quiet:
        put(summary["report"])
    return 0
