"""`visx evaluate`: how good maps are; methods against metrics."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visx.cli.measuring import Boxes, choose_metrics, thresholds
from visx.cli.options import (
    DEFAULT_MODEL,
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
    grouped,
)
from visx.cli.output import put, put_table
from visx.cli.pictures import PictureOptions
from visx.cli.prepare import prepare, split
from visx.cli.talk import Talk, failure
from visx.errors import ExitCode, usage
from visx.metrics.names import listed

if TYPE_CHECKING:
    from visx.evaluate.evaluate import Evaluation, Row

DEFAULT_METRICS = ("insertion", "deletion")
_METRICS_HELP = f"{listed('alone', 'map', 'set')}; with --boxes: {listed('box')}."


@grouped
def evaluate(
    inputs: Inputs,
    *,
    method: Methods = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            metavar="NAME[,NAME]",
            help=_METRICS_HELP,
            show_default="insertion,deletion",
        ),
    ] = None,
    boxes: Boxes = None,
    model: ModelSpec = DEFAULT_MODEL,
    options: MapOptions,
    least: Annotated[
        list[str] | None,
        typer.Option(
            "--min", metavar="METRIC=VALUE", help="Exit 5 if a method's mean is below. Repeatable.", show_default=False
        ),
    ] = None,
    most: Annotated[
        list[str] | None,
        typer.Option(
            "--max", metavar="METRIC=VALUE", help="Exit 5 if a method's mean is above. Repeatable.", show_default=False
        ),
    ] = None,
    compute: ComputeOptions,
    out: Out = Path("visx-out"),
    null: Nul = False,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Use maps whose recipe is unchanged, or compute all.")
    ] = True,
    shard: Shard = None,
    json: Json = False,
    quiet: Quiet = False,
    pictures: PictureOptions,
) -> int:
    """Measure maps: a table of methods against metrics, with 95% confidence intervals over the images.

    Writes evaluation.json, evaluation.csv and the curves as evaluation.png. Maps that `visx explain -o DIR` left in the
    output folder are used where they are of the same recipe. Shards write files of their own (evaluation.3-of-8.json); run
    without --shard afterwards, the command sums up all images from their maps and measured values.

    [dim]visx evaluate photos/ -m gradcam,integrated_gradients --metrics insertion,deletion[/dim]
    """
    measuring = choose_metrics(
        "evaluate", metrics, DEFAULT_METRICS, ("alone", "map", "box", "set"), options.param or (), boxes
    )
    lower, upper = thresholds("--min", least), thresholds("--max", most)
    names = [metric.name for metric in measuring.metrics]
    for name in (*lower, *upper):
        if name not in names:
            raise usage(f"--min/--max {name}: it is not measured", f"--metrics {','.join(names)},{name}")
    talk = Talk(quiet)
    ready = prepare(
        talk, options, compute, pictures,
        methods=split(method, ["gradcam"]), params=measuring.method_pairs, inputs=inputs, out=out, null=null,
        shard=shard,
    )  # fmt: skip
    if ready.idle:
        return 0

    from visx.evaluate.evaluate import evaluate as measure
    from visx.evaluate.tables import write_evaluation

    loaded = ready.load(model)
    jobs, unfit = ready.plan(loaded)
    ready.describe_outputs(loaded, (job.kind for job in jobs))
    settings = ready.settings(loaded, out, compute.seed, resume=resume)
    with talk.progress(len(ready.items) * (1 + len(jobs)), "explaining and measuring") as progress:
        evaluation = measure(
            loaded,
            jobs,
            ready.items,
            settings,
            measuring.metrics,
            measuring.params,
            measuring.boxes,
            talk.say,
            progress,
        )
    written = write_evaluation(settings, evaluation, loaded)
    for error in evaluation.errors:
        talk.error(failure(error))
    _show(evaluation, json)
    if evaluation.reused:
        talk.say(f"{evaluation.reused} maps were there already")
    talk.say(f"written to {written}")
    missed = [text for row in evaluation.rows for text in _misses(row, lower, upper)]
    for text in missed:
        talk.error(text)
    return int(ExitCode.THRESHOLD if missed else evaluation.code or (ExitCode.SOME_FAILED if unfit else ExitCode.OK))


def _misses(row: Row, lower: dict[str, float], upper: dict[str, float]) -> list[str]:
    """The thresholds that a row of the table misses, in words."""
    mean = f"{row.job}: {row.metric} {row.mean:.4f} is"
    texts = [f"{mean} below {lower[row.metric]:g}"] if row.mean < lower.get(row.metric, row.mean) else []
    return texts + ([f"{mean} above {upper[row.metric]:g}"] if row.mean > upper.get(row.metric, row.mean) else [])


def _show(evaluation: Evaluation, json: bool) -> None:
    """Print the table: a row a method, a column a metric; `*` marks the best, `+` and `-` whether more or less is better."""
    from visx.files import to_json

    if json:
        for row in evaluation.rows:
            put(to_json(row.as_dict()))
        return
    cells: dict[str, dict[str, str]] = {}
    for row in evaluation.rows:
        interval = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
        cells.setdefault(row.job, {})[row.metric] = f"{row.mean:.4f}{interval}{'*' if row.best else ' '}"
    if cells:
        titles = [f"{m.name} ({'+' if m.better == 'higher' else '-'})" for m in evaluation.metrics]
        lines = [[job, *(row.get(m.name, "-") for m in evaluation.metrics)] for job, row in cells.items()]
        put_table([["method", *titles], *lines])
