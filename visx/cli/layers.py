"""`visx layers`: a model's layers, to find a name for --layer."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visx.cli.options import Head, Json, Means, Quiet, grouped
from visx.cli.output import put
from visx.cli.pictures import PictureOptions
from visx.cli.talk import Talk
from visx.models.sources import DEFAULT_MODEL, SPECS, kind_of

if TYPE_CHECKING:
    from visx.network.grid import Layer


@grouped
def layers(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help=f"{SPECS}."),
    ] = DEFAULT_MODEL,
    *,
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
    pictures: PictureOptions,
) -> None:
    """List a model's layers with their output shapes for its input size; * marks the default target layer."""
    given = pictures.given()

    from visx.models import load_model
    from visx.models.telling import notes, ways

    loaded = load_model(model, weights or kind_of(model).layers_weights, means=means, head=head, **given)
    loaded.open()
    talk = Talk(quiet)
    anatomy = loaded.anatomy
    rows = [row for row in anatomy.layers if row.name and (row.grid is not None or not spatial)]
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        default = row.name == anatomy.default_layer
        if json:
            put(jsonlib.dumps({**_as_dict(row), "default": default}))
        else:
            put(row.name if quiet else f"{'*' if default else ' '} {row.name:<{width}}  {_described(row, spatial)}")
    about = f": {anatomy.outputs.seen}" if anatomy.outputs.seen else ""
    for text in (*notes(loaded), *ways(loaded)):
        talk.say(f"{model}: {text.removeprefix(f'{model}: ')}")
    talk.say(f"output: {anatomy.outputs}{about}")
    if anatomy.default_layer is None and not json:
        talk.say(f"{model} has no default layer: {anatomy.no_layer}")


def _as_dict(layer: Layer) -> dict[str, Any]:
    """A layer as JSON has it; `grid` is its feature map's (K, height, width), `reason` says why it has none."""
    return {
        "name": layer.name,
        "type": layer.type,
        "shape": layer.shape and list(layer.shape),
        "grid": layer.grid and list(layer.grid.shape),
        "layout": layer.grid and layer.grid.layout,
        "reason": layer.reason,
    }


def _described(layer: Layer, spatial: bool) -> str:
    """A layer's type and output shape, of its feature map where only those are listed, and an unusual layout."""
    sizes = layer.grid.shape if spatial and layer.grid is not None else layer.shape
    shape = " x ".join(map(str, sizes)) if sizes is not None else "-"
    layout = "" if layer.grid is None or layer.grid.layout == "channels first" else f"  ({layer.grid.layout})"
    return f"{layer.type:<22} {shape}{layout}"
