"""`visx explain`: maps and overlays of images."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from visx.cli import output
from visx.cli.options import (
    DEFAULT_MODEL,
    Alpha,
    Colormap,
    ComputeOptions,
    Inputs,
    Json,
    MapOptions,
    Methods,
    ModelSpec,
    Nul,
    Out,
    Quiet,
    Shard,
    Verbose,
    grouped,
)
from visx.cli.output import put
from visx.cli.pictures import PictureOptions
from visx.cli.prepare import load, prepare, split
from visx.cli.talk import Talk, failure
from visx.errors import ExitCode, printable, usage

if TYPE_CHECKING:
    from visx.engine.jobs import Job
    from visx.models import Model
    from visx.run.pipeline import Executor, Summary
    from visx.store.record import Failure, Record

DEFAULT_OUT = Path("visx-out")


@grouped
def explain(
    inputs: Inputs,
    *,
    method: Methods = None,
    model: ModelSpec = DEFAULT_MODEL,
    options: MapOptions,
    compute: ComputeOptions,
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
    shard: Shard = None,
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
    pictures: PictureOptions,
) -> int:
    """Explain images: an overlay PNG and a raw .npy for every image, method and target.

    [dim]visx explain cat.jpg[/dim]
    [dim]visx explain photos/ -m gradcam,integrated_gradients -t top3 -o out/[/dim]
    """
    talk = Talk(quiet, verbose)
    if show and not overlay:
        raise usage("--show draws the overlays that --no-overlay leaves out")
    if address is not None and engine != "ray":
        raise usage("--address is of a Ray cluster", "add --engine ray")
    names = split(method, ["gradcam"])
    ready = prepare(talk, options, compute, pictures, methods=names, inputs=inputs, out=out, null=null, shard=shard)
    if ready.idle:
        return 0

    from visx.draw.colours import check_colormap

    check_colormap(colormap)
    if engine == "ray":
        from visx.run.ray.driver import RayWorkers
    from visx.run.pipeline import Run
    from visx.run.threads import Threads

    loaded = load(model, options, ready.pictures, "cpu") if engine == "ray" else ready.load(model)
    jobs, unfit = ready.plan(loaded)
    if options.layer and not unfit and not any(job.layer for job in jobs):
        raise usage(
            f"--layer: {', '.join(dict.fromkeys(job.method.name for job in jobs))} looks at no layer",
            "`visx methods` shows which do",
        )
    if not options.layer and (layers := [job.layer for job in jobs if job.layer]):
        talk.say(f"layer {layers[0]} of {model}")
    ready.describe_outputs(loaded, (job.kind for job in jobs))
    for line in _choices(loaded, jobs, compute.precision, ready.size):
        talk.detail(line)
    settings = ready.settings(
        loaded, out, compute.seed, any(job.of_a_class for job in jobs), colormap=colormap, alpha=alpha,
        overlay=overlay, raw_channels=raw_channels, resume=resume, fail_fast=fail_fast,
    )  # fmt: skip
    previews = show and not json and output.is_terminal()
    on_record = partial(_print_record, talk, out, json, previews)
    executor: Executor
    if engine == "ray":
        again = partial(load, model, options, ready.pictures, compute.device)
        executor = RayWorkers(loaded, jobs, settings, again, compute.device, address, talk.say)
    else:
        executor = Threads(loaded, jobs, settings, loaded.device, talk.say)
    run = Run(loaded, jobs, settings, executor, on_record, talk.say)
    started = time.monotonic()
    try:
        with talk.progress(len(ready.items), "explaining", drawn=not previews) as progress:
            run(ready.items, progress)
    finally:
        _sum_up(talk, run.summary, len(ready.items), out, time.monotonic() - started)
    return int(run.summary.code or (ExitCode.SOME_FAILED if unfit else ExitCode.OK))


def _print_record(talk: Talk, out: Path, json: bool, previews: bool, record: Record | Failure) -> None:
    """Print a record of a run: a result on standard output, an error or a warning on standard error."""
    from visx.store.record import Failure

    if json:
        put(record.line, flush=True)
    if isinstance(record, Failure):
        talk.error(failure(record.as_dict()))
        return
    if not json and not talk.quiet:
        put(_line(record, out), flush=True)
    if previews:
        from visx.draw.terminal import preview

        put(preview(out / record.overlay, columns=output.columns()), flush=True)
    for warning in record.warnings:
        talk.say(f"warning: {printable(record.image)}: {record.method}: {warning}")


def _sum_up(talk: Talk, summary: Summary, total: int, out: Path, seconds: float) -> None:
    """Print what became of a run over `total` images: how many results, how many failures and their commonest reasons."""
    failures = len(summary.failed)
    if total > 1 or summary.skipped:
        parts = [f"{summary.written} written"]
        parts += [f"{summary.skipped} already there"] if summary.skipped else []
        parts += [f"{failures} image{'s' * (failures > 1)} failed"] if failures else []
        parts += [f"{total - summary.images} images left"] if total > summary.images else []
        talk.say(f"{', '.join(parts)}: {printable(str(out))}/")
        for reason, count in Counter(summary.failed.values()).most_common(5) if failures > 1 else ():
            talk.say(f"  {count} x {reason}")
    if summary.written:
        talk.detail(f"{seconds / max(1, summary.images - failures):.2f} s an image")


def _choices(model: Model, jobs: Sequence[Job], precision: str, size: int | None) -> list[str]:
    """The lines of --verbose before the first image: everything that was chosen and not typed."""
    from visx.models.telling import ways

    how = model.preprocess
    layers = list(dict.fromkeys(job.layer for job in jobs if job.layer))
    colours = f"mean {', '.join(f'{m:g}' for m in how.mean)}, std {', '.join(f'{s:g}' for s in how.std)}"
    return [
        *([f"{model.name}: {how}" for how in ways(model)]),
        f"model: {model.name}, weights {model.weights.name} (sha256 {model.weights.sha256[:12]})",
        f"input: resized to {how.resize}, cropped to {how.crop[0]} x {how.crop[1]}, {how.interpolation}, {colours}",
        f"outputs: {model.outputs}",
        *([f"layers: {', '.join(layers)}"] if layers else []),
        *(f"{job.method.name}: explains the {job.kind}; {job.params or 'no parameters'}" for job in jobs),
        f"device: {model.device}, {precision}, batches of {size or 'a size that fits'}",
    ]


def _line(record: Record, out: Path) -> str:
    """A result as one line: image, method, layer, label, probability, file."""
    layer = f" {printable(record.layer)}" if record.layer else ""
    chance = "" if record.probability is None else f" {record.probability:.2f}"
    names = f"{printable(record.image)}  {printable(record.method)}{layer}  {printable(record.label)}"
    return f"{names}{chance}  {printable(str(out / (record.overlay or record.npy)))}"
