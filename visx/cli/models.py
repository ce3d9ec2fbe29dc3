"""`visx models`: models by source, and which weights are on this machine."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated, Any

import typer

from visx.cli.options import Json, Quiet
from visx.cli.output import put


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="[PATTERN]",
            help="Part of a name, or a glob; timm/... asks timm, hf/... the hub's cache.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List models by source, and which default weights are on this machine already."""
    from visx.errors import usage
    from visx.models.listing import list_models

    rows = list_models(pattern)
    if not rows:
        raise usage(f"no model fits {pattern!r}", "a part of a name or a glob, for instance 'resnet*' or 'timm/*vit*'")
    for row in rows:
        put(jsonlib.dumps(row) if json else row["name"] if quiet else _line(row))


def _line(row: dict[str, Any]) -> str:
    """A model as one line: name, source, and whether its weights are here."""
    return f"{row['name']:<44} {row['source']:<12} {'weights here' if row['weights_here'] else ''}".rstrip()
