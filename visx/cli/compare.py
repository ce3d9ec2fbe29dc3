"""`visx compare`: one contact sheet of one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from visx.cli import common
from visx.cli.common import (
    Alpha,
    BatchSize,
    Colormap,
    Device,
    Head,
    Json,
    Labels,
    Layers,
    Means,
    Methods,
    Param,
    Precision,
    Quiet,
    Score,
    Seed,
    Target,
    WeightsSpec,
)
from visx.cli.output import put
from visx.cli.pictures import with_pictures
from visx.cli.talk import Talk
from visx.errors import printable, usage

DEFAULT_OUT = Path("visx-compare.png")


@with_pictures
def compare(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="One image.", show_default=False)],
    method: Methods = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-M",
            "--model",
            metavar="SPEC[,SPEC]",
            help="Models; each gets its own rows. Repeatable.",
            show_default="efficientnet_lite0",
        ),
    ] = None,
    weights: WeightsSpec = "default",
    layer: Layers = None,
    target: Target = None,
    score: Score = None,
    labels: Labels = None,
    means: Means = None,
    head: Head = None,
    param: Param = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: BatchSize = "auto",
    seed: Seed = 0,
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
    *,
    pictures: dict[str, Any],
) -> int:
    """Draw one contact sheet: the picture, then methods x models x targets.

    [dim]visx compare cat.jpg -m backprop,guided_backprop,gradcam -t top3 -o sheet.png[/dim]
    """
    names = common.split(method) or ["gradcam"]
    methods = common.pick_methods(names)
    talk = Talk(quiet)
    size = common.batch_size(batch_size)
    path = Path(source)
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
    from visx.models import load_model
    from visx.params import assign
    from visx.sheet.cells import Ask, Look, compute, draw_rows

    if "all" not in names:
        assign(param or [], {m.name: m.params for m in methods})
    specs = common.split(model) or ["efficientnet_lite0"]
    where = common.pick_device(device)
    models = [
        load_model(spec, weights, labels=labels, device=where, means=means, head=head, **pictures) for spec in specs
    ]
    picture = models[0].preprocess.decode(read(path))
    for remark in picture.remarks:
        talk.say(f"{printable(source)}: {remark}")
    methods = list(dict.fromkeys(m for loaded in models for m in common.pick_methods(names, loaded)))
    dealt = assign(param or [], {m.name: m.params for m in methods})
    ask = Ask(methods, layer or [], dealt, target or (), score, seed, precision, size or 16)
    with talk.progress(len(models) * len(methods) * max(1, len(ask.layers)), "explaining") as progress:
        rows = compute(models, picture, source, ask, talk.say, progress)
    for found in (f for row in rows for f in row.found.values()):
        if json:
            put(to_json(found.record.without_files()), flush=True)
        for warning in found.answer.warnings:
            talk.say(f"warning: {found.job.method.name} of {found.answer.label}: {warning}")
    for loaded in models:
        common.say_outputs(loaded, talk.say, (f.job.kind for r in rows if r.model is loaded for f in r.found.values()))
    cells = draw_rows(rows, picture, Look(colormap, alpha, shared_scale, cut, times))
    drawn = sheet.layout(cells, path.name, columns=columns, cell=cell, theme=theme, font=font)
    make_folder(out.parent)
    write_whole(out, sheet.encode(drawn, suffix))
    if not json and not quiet:
        put(str(out))
    return 0
