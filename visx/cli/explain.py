"""`visx explain`: the main job."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from visx.cli import common
from visx.cli.common import (
    BatchSize,
    Device,
    Inputs,
    Json,
    Labels,
    ModelSpec,
    Nul,
    Out,
    Param,
    Precision,
    Quiet,
    Seed,
    Talk,
    Verbose,
    WeightsSpec,
)
from visx.errors import printable, usage

if TYPE_CHECKING:
    from visx.runner import Summary

DEFAULT_OUT = Path("visx-out")


def explain(
    inputs: Inputs,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "-m",
            "--method",
            metavar="NAME[,NAME]",
            help="Methods (`visx methods` lists them), or all for every one that fits the model. Repeatable.",
            show_default="gradcam",
        ),
    ] = None,
    model: ModelSpec = "efficientnet_lite0",
    weights: WeightsSpec = "default",
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "-l",
            "--layer",
            metavar="NAME",
            help="Module path (`visx layers MODEL` lists them); one map a layer. Repeatable.",
            show_default="the last spatial feature map",
        ),
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            "-t",
            "--target",
            metavar="TARGET",
            help="top1, topK (top3: three maps), a class index, a label or a unique part of one, or FILE.csv with rows image,target.",
        ),
    ] = "top1",
    score: Annotated[
        Literal["logit", "prob", "logprob"] | None,
        typer.Option("--score", help="The scalar that is explained.", show_default="each method's own"),
    ] = None,
    labels: Labels = None,
    param: Param = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: BatchSize = "auto",
    seed: Seed = 0,
    out: Out = DEFAULT_OUT,
    null: Nul = False,
    colormap: Annotated[
        str,
        typer.Option(
            "--colormap",
            metavar="NAME",
            help="Colours of the overlay, for instance viridis; a signed map gets a diverging one: bluered or purplegreen.",
        ),
    ] = "turbo",
    alpha: Annotated[float, typer.Option("--alpha", min=0, max=1, help="Opacity of the map in the overlay.")] = 0.5,
    overlay: Annotated[bool, typer.Option("--overlay/--no-overlay", help="Write the picture.")] = True,
    raw_channels: Annotated[
        bool, typer.Option("--raw-channels", help="Also write the signed (C,H,W) input gradient.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Keep results whose recipe is unchanged, or compute all.")
    ] = True,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at the first image that fails.")] = False,
    shard: Annotated[
        str | None,
        typer.Option("--shard", metavar="I/N", help="Only part I of N (from 1), for job arrays.", show_default=False),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Explain images: an overlay PNG and a raw .npy for every image, method and target.

    [dim]visx explain cat.jpg[/dim]
    [dim]visx explain photos/ -m gradcam,integrated_gradients -t top3 -o out/[/dim]
    """
    names = common.split(method) or ["gradcam"]
    methods = common.pick_methods(names)
    talk = Talk(quiet, verbose)
    size = common.batch_size(batch_size)

    from visx import inputs as finding
    from visx.methods import all_methods, get_method

    part = common.shard(shard)
    listed = finding.find(inputs, out, sys.stdin.buffer, null, talk.say)
    items = finding.shard(listed, *part) if part else listed
    if not items:
        talk.say(f"shard {shard} has none of the {len(listed)} images")
        return 0

    from visx.options import assign, parse
    from visx.render import check_colormap

    # a typo is told before torch is imported and a model loaded
    check_colormap(colormap)
    possible = all_methods() if "all" in names else methods
    for name, values in assign(param or [], {m.name: m.params for m in possible}).items():
        parse(get_method(name).params, values, name)

    from visx.engine import plan
    from visx.models import load_model
    from visx.results import Settings
    from visx.runner import Run
    from visx.targets import parse_target

    loaded = load_model(model, weights, labels=labels, device=common.pick_device(device))
    methods = common.pick_methods(names, loaded)
    dealt = assign(param or [], {m.name: m.params for m in methods})
    jobs = plan(loaded, methods, layer or [], dealt, score)
    if layer and not any(job.layer for job in jobs):
        raise usage(f"--layer: {', '.join(m.name for m in methods)} looks at no layer", "`visx methods` shows which do")
    if not layer and any(job.layer for job in jobs):
        talk.say(f"layer {next(job.layer for job in jobs if job.layer)} of {model}")
    settings = Settings(
        out=out,
        target=parse_target(target, loaded.labels, loaded.classes),
        seed=seed,
        precision=precision,
        batch_size=size,
        default_model=model == "efficientnet_lite0" and weights == "default",
        colormap=colormap,
        alpha=alpha,
        overlay=overlay,
        raw_channels=raw_channels,
        resume=resume,
        fail_fast=fail_fast,
        shard=part,
    )

    def on_record(record: dict[str, Any], line: str) -> None:
        if json:
            print(line, flush=True)
        if "error" in record:
            hint = f" ({record['error']['hint']})" if record["error"]["hint"] else ""
            talk.error(f"{printable(record['image'])}: {record['error']['message']}{hint}")
        else:
            if not json and not quiet:
                print(_line(record, out), flush=True)
            for warning in record["warnings"]:
                talk.say(f"warning: {printable(record['image'])}: {record['method']}: {warning}")

    run = Run(loaded, jobs, settings, loaded.device, on_record, talk.say)
    try:
        with talk.progress(len(items), "explaining") as run.on_progress:
            run(items, len(listed))
    finally:
        if len(items) > 1 or run.summary.skipped:
            talk.say(_sum(run.summary, len(items), out))
    return int(run.summary.code)


def _line(record: dict[str, Any], out: Path) -> str:
    where = record["files"]["overlay"] or record["files"]["npy"]
    layer = f" {printable(record['layer'])}" if record["layer"] else ""
    chance = "" if record["probability"] is None else f" {record['probability']:.2f}"
    names = f"{printable(record['image'])}  {printable(record['method'])}{layer}  {printable(str(record['label']))}"
    return f"{names}{chance}  {printable(str(out / where))}"


def _sum(summary: Summary, total: int, out: Path) -> str:
    failures = len(summary.failed)
    parts = [f"{summary.written} written"]
    parts += [f"{summary.skipped} already there"] if summary.skipped else []
    parts += [f"{failures} image{'s' * (failures > 1)} failed"] if failures else []
    parts += [f"{total - summary.images} images left"] if total > summary.images else []
    reasons = Counter(summary.failed.values()).most_common(5) if failures > 1 else []
    return "\n".join([f"{', '.join(parts)}: {printable(str(out))}/", *(f"  {n} x {reason}" for reason, n in reasons)])
