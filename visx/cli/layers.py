"""`visx layers`: a model's layers, to find a name for --layer."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated, Any

import typer

from visx.cli.common import Head, Json, Means, Quiet
from visx.cli.output import put
from visx.cli.pictures import with_pictures
from visx.cli.talk import Talk


@with_pictures
def layers(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="efficientnet_lite0, a torchvision name, timm/NAME, or FILE.py:FACTORY."),
    ] = "efficientnet_lite0",
    weights: Annotated[
        str | None,
        typer.Option(
            "-w",
            "--weights",
            metavar="default|random|FILE",
            help="Layers need no real weights, so random ones will do.",
            show_default="random",
        ),
    ] = None,
    spatial: Annotated[
        bool,
        typer.Option(
            "--spatial",
            help="Only layers that --layer takes: feature maps, as K x height x width, whatever their layout.",
        ),
    ] = False,
    means: Means = None,
    head: Head = None,
    json: Json = False,
    quiet: Quiet = False,
    *,
    pictures: dict[str, Any],
) -> None:
    """List a model's layers with their output shapes for its input size; * marks the default target layer."""
    from visx.models import load_model

    loaded = load_model(
        model, weights or ("default" if ".py" in model else "random"), means=means, head=head, **pictures
    )
    found = loaded.anatomy
    rows = [row for row in found.layers if row.name and (row.grid is not None or not spatial)]
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        default = row.name == found.default_layer
        if json:
            put(
                jsonlib.dumps(
                    {
                        "name": row.name,
                        "type": row.type,
                        "shape": row.shape and list(row.shape),
                        "grid": row.grid and list(row.grid.shape),
                        "layout": row.grid and row.grid.layout,
                        "reason": row.reason,
                        "default": default,
                    }
                )
            )
        elif quiet:
            put(row.name)
        else:
            shown = row.grid.shape if spatial and row.grid is not None else row.shape
            shape = " x ".join(map(str, shown)) if shown is not None else "-"
            layout = "" if row.grid is None or row.grid.layout == "channels first" else f"  ({row.grid.layout})"
            put(f"{'*' if default else ' '} {row.name:<{width}}  {row.type:<22} {shape}{layout}")
    about = f": {found.outputs.seen}" if found.outputs.seen else ""
    Talk(quiet).say(f"output: {found.outputs}{about}")
    if found.default_layer is None and not json:
        Talk(quiet).say(f"{model} has no default layer: {found.no_layer}")
