"""`visx explain`: the main job."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from visx.cli import common, output
from visx.cli.common import (
    Alpha,
    BatchSize,
    Colormap,
    Device,
    Head,
    Inputs,
    Json,
    Labels,
    Layers,
    Means,
    Methods,
    ModelSpec,
    Nul,
    Out,
    Param,
    Precision,
    Quiet,
    Score,
    Seed,
    Target,
    Verbose,
    WeightsSpec,
)
from visx.cli.output import put
from visx.cli.pictures import with_pictures
from visx.cli.talk import Talk
from visx.errors import ExitCode, VisxError, printable, usage

if TYPE_CHECKING:
    from visx.engine.jobs import Job
    from visx.models import Model
    from visx.run.pipeline import Summary
    from visx.store.record import Failure, Record

DEFAULT_OUT = Path("visx-out")


@with_pictures
def explain(
    inputs: Inputs,
    method: Methods = None,
    model: ModelSpec = "efficientnet_lite0",
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
    out: Out = DEFAULT_OUT,
    null: Nul = False,
    colormap: Colormap = "turbo",
    alpha: Alpha = 0.5,
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
    show: Annotated[bool, typer.Option("--show", help="Draw each overlay in the terminal, if it is one.")] = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option("--engine", help="What carries the run out: this process, or the workers of Ray."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="ADDRESS", help="The Ray cluster.", show_default="RAY_ADDRESS, else this machine"
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    *,
    pictures: dict[str, Any],
) -> int:
    """Explain images: an overlay PNG and a raw .npy for every image, method and target.

    [dim]visx explain cat.jpg[/dim]
    [dim]visx explain photos/ -m gradcam,integrated_gradients -t top3 -o out/[/dim]
    """
    names = common.split(method) or ["gradcam"]
    methods = common.pick_methods(names)
    talk = Talk(quiet, verbose)
    size = common.batch_size(batch_size)
    if show and not overlay:
        raise usage("--show draws the overlays that --no-overlay leaves out")
    showing = show and not json and output.is_terminal()
    if address is not None and engine != "ray":
        raise usage("--address is of a Ray cluster", "add --engine ray")

    from visx.images import find as finding
    from visx.methods import all_methods, get_method
    from visx.store.manifest import holds_results

    part = common.shard(shard)
    listed = finding.find(inputs, out, sys.stdin.buffer, null, talk.say, holds_results)
    items = finding.shard(listed, *part) if part else listed
    if not items:
        talk.say(f"shard {shard} has none of the {len(listed)} images")
        return 0

    from visx.draw.colours import check_colormap
    from visx.params import assign, parse

    # a typo is told before torch is imported and a model loaded
    check_colormap(colormap)
    possible = all_methods() if "all" in names else methods
    for name, values in assign(param or [], {m.name: m.params for m in possible}).items():
        parse(get_method(name).params, values, name)

    from visx.draw.terminal import preview
    from visx.engine.jobs import plan
    from visx.run.pipeline import Run
    from visx.store.record import Failure
    from visx.store.settings import Settings

    if engine == "ray":
        from visx.run.ray.driver import RayRun
    loaded = _load(model, weights, labels, device if engine == "local" else "cpu", means, head, pictures)
    methods = common.pick_methods(names, loaded)
    dealt = assign(param or [], {m.name: m.params for m in methods})
    unfit: list[VisxError] = []
    jobs = plan(loaded, methods, common.split(layer), dealt, score, unfit.append)
    for error in unfit:
        talk.error(str(error))
    if layer and not unfit and not any(job.layer for job in jobs):
        raise usage(f"--layer: {', '.join(m.name for m in methods)} looks at no layer", "`visx methods` shows which do")
    if not layer and any(job.layer for job in jobs):
        talk.say(f"layer {next(job.layer for job in jobs if job.layer)} of {model}")
    common.say_outputs(loaded, talk.say, (job.kind for job in jobs))
    for line in _choices(loaded, jobs, precision, size):
        talk.detail(line)
    settings = Settings(
        out=out,
        target=loaded.targets(target or (), any(job.of_a_class for job in jobs)),
        seed=seed,
        precision=precision,
        batch_size=size,
        colormap=colormap,
        alpha=alpha,
        overlay=overlay,
        raw_channels=raw_channels,
        resume=resume,
        fail_fast=fail_fast,
        shard=part,
    )

    def on_record(record: Record | Failure) -> None:
        if json:
            put(record.line, flush=True)
        if isinstance(record, Failure):
            hint = f" ({record.error['hint']})" if record.error["hint"] else ""
            talk.error(f"{printable(record.image)}: {record.error['message']}{hint}")
        else:
            if not json and not quiet:
                put(_line(record, out), flush=True)
            if showing:
                put(preview(out / record.overlay, columns=output.columns()), flush=True)
            for warning in record.warnings:
                talk.say(f"warning: {printable(record.image)}: {record.method}: {warning}")

    if engine == "ray":
        load = partial(_load, model, weights, labels, device, means, head, pictures)
        run: Run = RayRun(loaded, jobs, settings, load, device, address, on_record, talk.say)
    else:
        run = Run(loaded, jobs, settings, loaded.device, on_record, talk.say)
    started = time.monotonic()
    try:
        with talk.progress(len(items), "explaining", drawn=not showing) as progress:
            run.on_progress, run.explainer.on_passes = progress.advance, progress.within
            run(items, len(listed))
    finally:
        if len(items) > 1 or run.summary.skipped:
            talk.say(_sum(run.summary, len(items), out))
        if run.summary.written:
            done = max(1, run.summary.images - len(run.summary.failed))
            talk.detail(f"{(time.monotonic() - started) / done:.2f} s an image")
    return int(run.summary.code or (ExitCode.SOME_FAILED if unfit else ExitCode.OK))


def _load(
    spec: str,
    weights: str,
    labels: Path | None,
    device: str,
    means: str | None,
    head: str | None,
    pictures: dict[str, Any],
) -> Model:
    """The model on its device, here or in a worker."""
    from visx.models import load_model

    return load_model(
        spec, weights, labels=labels, device=common.pick_device(device), means=means, head=head, **pictures
    )


def _choices(model: Model, jobs: Sequence[Job], precision: str, size: int | None) -> list[str]:
    """What --verbose says before the first image: everything that was chosen and not typed."""
    how = model.preprocess
    layers = list(dict.fromkeys(job.layer for job in jobs if job.layer))
    colours = f"mean {', '.join(f'{m:g}' for m in how.mean)}, std {', '.join(f'{s:g}' for s in how.std)}"
    return [
        f"model: {model.name}, weights {model.weights.name} (sha256 {model.weights.sha256[:12]})",
        f"input: resized to {how.resize}, cropped to {how.crop[0]} x {how.crop[1]}, {how.interpolation}, {colours}",
        f"outputs: {model.outputs}",
        *([f"layers: {', '.join(layers)}"] if layers else []),
        *(f"{job.method.name}: explains the {job.kind}; {job.params or 'no parameters'}" for job in jobs),
        f"device: {model.device}, {precision}, batches of {size or 'a size that fits'}",
    ]


def _line(record: Record, out: Path) -> str:
    layer = f" {printable(record.layer)}" if record.layer else ""
    chance = "" if record.probability is None else f" {record.probability:.2f}"
    names = f"{printable(record.image)}  {printable(record.method)}{layer}  {printable(record.label)}"
    return f"{names}{chance}  {printable(str(out / (record.overlay or record.npy)))}"


def _sum(summary: Summary, total: int, out: Path) -> str:
    failures = len(summary.failed)
    parts = [f"{summary.written} written"]
    parts += [f"{summary.skipped} already there"] if summary.skipped else []
    parts += [f"{failures} image{'s' * (failures > 1)} failed"] if failures else []
    parts += [f"{total - summary.images} images left"] if total > summary.images else []
    reasons = Counter(summary.failed.values()).most_common(5) if failures > 1 else []
    return "\n".join([f"{', '.join(parts)}: {printable(str(out))}/", *(f"  {n} x {reason}" for reason, n in reasons)])
