"""`visx compare`: one contact sheet of one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from visx.cli.options import (
    DEFAULT_MODEL,
    Alpha,
    Colormap,
    ComputeOptions,
    Json,
    MapOptions,
    Methods,
    ModelSpecs,
    Quiet,
    grouped,
)
from visx.cli.output import put
from visx.cli.pictures import PictureOptions
from visx.cli.prepare import prepare, split
from visx.cli.talk import Talk
from visx.errors import printable, usage

DEFAULT_OUT = Path("visx-compare.png")


@grouped
def compare(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="One image.", show_default=False)],
    *,
    method: Methods = None,
    model: ModelSpecs = None,
    options: MapOptions,
    compute: ComputeOptions,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="The sheet: .png, .jpg, .svg or .pdf.")
    ] = DEFAULT_OUT,
    columns: Annotated[int, typer.Option("--columns", min=1, max=8, help="Cells in a line at most.")] = 8,
    cell: Annotated[int, typer.Option("--cell", min=80, max=2000, help="Width of a cell in pixels.")] = 240,
    shared_scale: Annotated[
        bool, typer.Option("--shared-scale", help="One colour scale a method, over its targets and models.")
    ] = False,
    cut: Annotated[bool, typer.Option("--cut", help="Show only what the network saw.")] = False,
    times: Annotated[bool, typer.Option("--times/--no-times", help="Say how long each map took.")] = True,
    theme: Annotated[Literal["light", "dark"], typer.Option("--theme", help="Paper or screen.")] = "light",
    font: Annotated[
        Path | None,
        typer.Option("--font", metavar="FILE", help="A TrueType font, for scripts that the built-in one lacks."),
    ] = None,
    colormap: Colormap = "turbo",
    alpha: Alpha = 0.5,
    json: Json = False,
    quiet: Quiet = False,
    pictures: PictureOptions,
) -> int:
    """Draw one contact sheet: the picture, then methods x models x targets.

    [dim]visx compare cat.jpg -m backprop,guided_backprop,gradcam -t top3 -o sheet.png[/dim]
    """
    talk, path = Talk(quiet), Path(source)
    ready = prepare(talk, options, compute, pictures, methods=split(method, ["gradcam"]))
    if path.is_dir():
        raise usage(f"{source} is a directory: a sheet shows one image", "visx explain DIR, then visx report")
    if not path.exists():
        raise usage(f"no such file: {source}")

    from visx import sheet
    from visx.draw.colours import check_colormap

    suffix = sheet.check_suffix(out)
    check_colormap(colormap)

    from visx.files import make_folder, to_json, write_whole
    from visx.images.decode import read
    from visx.sheet.cells import Comparison, Style, draw_rows
    from visx.sheet.cells import compute as compute_rows

    models = [ready.load(spec) for spec in split(model, [DEFAULT_MODEL])]
    picture = models[0].preprocess.decode(read(path))
    for remark in picture.remarks:
        talk.say(f"{printable(source)}: {remark}")
    ask = Comparison(
        ready.methods(*models), split(options.layer), ready.params, options.target or (), options.score,
        compute.seed, compute.precision, ready.size or 16,
    )  # fmt: skip
    total = len(models) * len(ask.methods) * max(1, len(ask.layers))
    with talk.progress(total, "explaining") as progress:
        rows = compute_rows(models, picture, source, ask, talk.say, progress)
    for result in (result for row in rows for result in row.maps.values()):
        if json:
            put(to_json(result.record.without_files()), flush=True)
        for warning in result.answer.warnings:
            talk.say(f"warning: {result.job.method.name} of {result.answer.objective.label}: {warning}")
    for loaded in models:
        results = [result for row in rows if row.model is loaded for result in row.maps.values()]
        ready.describe_outputs(loaded, (result.job.kind for result in results))
    cells = draw_rows(rows, picture, Style(colormap, alpha, shared_scale, cut, times))
    drawn = sheet.layout(cells, path.name, columns=columns, cell=cell, theme=theme, font=font)
    make_folder(out.parent)
    write_whole(out, sheet.encode(drawn, suffix))
    if not json and not quiet:
        put(str(out))
    return 0
