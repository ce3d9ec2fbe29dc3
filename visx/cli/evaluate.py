"""`visx evaluate`: how good maps are; methods against metrics."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from visx.cli import common
from visx.cli.common import (
    BatchSize,
    Device,
    Head,
    Inputs,
    Json,
    Labels,
    Means,
    ModelSpec,
    Nul,
    Out,
    Param,
    Precision,
    Quiet,
    Seed,
    Target,
    WeightsSpec,
)
from visx.cli.measuring import Boxes, annotated, failure, thresholds
from visx.cli.output import put
from visx.cli.pictures import with_pictures
from visx.cli.talk import Talk
from visx.errors import ExitCode, VisxError, usage

if TYPE_CHECKING:
    from visx.evaluate.evaluate import Evaluation, Row


@with_pictures
def evaluate(
    inputs: Inputs,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "-m", "--method", metavar="NAME[,NAME]", help="Methods, or all. Repeatable.", show_default="gradcam"
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            metavar="NAME[,NAME]",
            help="insertion, deletion, road, average_drop, increase, completeness, infidelity, max_sensitivity, "
            "grid_pointing, randomization; with --boxes: localisation, pointing_game, energy.",
            show_default="insertion,deletion",
        ),
    ] = None,
    boxes: Boxes = None,
    model: ModelSpec = "efficientnet_lite0",
    weights: WeightsSpec = "default",
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "-l",
            "--layer",
            metavar="NAME",
            help="Module path. Repeatable.",
            show_default="the last feature map on the way to the score",
        ),
    ] = None,
    target: Target = None,
    score: Annotated[
        Literal["logit", "prob", "logprob"] | None,
        typer.Option("--score", help="The scalar that is explained.", show_default="each method's own"),
    ] = None,
    labels: Labels = None,
    means: Means = None,
    head: Head = None,
    param: Param = None,
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
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: BatchSize = "auto",
    seed: Seed = 0,
    out: Out = Path("visx-out"),
    null: Nul = False,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Use maps whose recipe is unchanged, or compute all.")
    ] = True,
    json: Json = False,
    quiet: Quiet = False,
    *,
    pictures: dict[str, Any],
) -> int:
    """Measure maps: a table of methods against metrics, with 95% confidence intervals over the images.

    Writes evaluation.json, evaluation.csv and the curves as evaluation.png. Maps that `visx explain -o DIR` left in the
    output folder are used where they are of the same recipe.

    [dim]visx evaluate photos/ -m gradcam,integrated_gradients --metrics insertion,deletion[/dim]
    """
    from visx.metrics import get_metric, split_params

    names = common.split(method) or ["gradcam"]
    methods = common.pick_methods(names)
    chosen = [
        get_metric(n, ("map", "box", "set"), "evaluate") for n in common.split(metrics) or ("insertion", "deletion")
    ]
    lower, upper = thresholds("--min", least), thresholds("--max", most)
    for name in (*lower, *upper):
        if name not in [m.name for m in chosen]:
            raise usage(
                f"--min/--max {name}: it is not measured", f"--metrics {','.join(m.name for m in chosen)},{name}"
            )
    annotations = annotated(chosen, boxes)
    rest, params = split_params(param or [], chosen)
    talk, size = Talk(quiet), common.batch_size(batch_size)

    from visx.images import find as finding
    from visx.store.manifest import holds_results

    items = finding.find(inputs, out, sys.stdin.buffer, null, talk.say, holds_results)

    from visx.engine.jobs import plan
    from visx.evaluate.evaluate import evaluate as measure
    from visx.evaluate.tables import write_evaluation
    from visx.models import load_model
    from visx.params import assign
    from visx.store.settings import Settings

    if "all" not in names:
        assign(rest, {m.name: m.params for m in methods})
    loaded = load_model(
        model, weights, labels=labels, device=common.pick_device(device), means=means, head=head, **pictures
    )
    methods = common.pick_methods(names, loaded)
    unfit: list[VisxError] = []
    dealt = assign(rest, {m.name: m.params for m in methods})
    jobs = plan(loaded, methods, layer or [], dealt, score, unfit.append)
    for error in unfit:
        talk.error(str(error))
    common.say_outputs(loaded, talk.say, (job.kind for job in jobs))
    spec = loaded.targets(target or ())
    settings = Settings(out=out, target=spec, seed=seed, precision=precision, batch_size=size, resume=resume)
    with talk.progress(len(items) * (1 + len(jobs)), "explaining and measuring") as progress:
        found = measure(loaded, jobs, items, settings, chosen, params, annotations, talk.say, progress)
    write_evaluation(out, found, loaded.name, loaded.weights.sha256)
    for failed in found.errors:
        talk.error(failure(failed))
    _show(found, json)
    if found.reused:
        talk.say(f"{found.reused} maps were there already")
    talk.say(f"written to {out}/evaluation.json")
    missed = [text for row in found.rows for text in _misses(row, lower, upper)]
    for text in missed:
        talk.error(text)
    return int(ExitCode.THRESHOLD if missed else found.code or (ExitCode.SOME_FAILED if unfit else ExitCode.OK))


def _misses(row: Row, lower: dict[str, float], upper: dict[str, float]) -> list[str]:
    said = f"{row.job}: {row.metric} {row.mean:.4f} is"
    texts = [f"{said} below {lower[row.metric]:g}"] if row.mean < lower.get(row.metric, row.mean) else []
    return texts + ([f"{said} above {upper[row.metric]:g}"] if row.mean > upper.get(row.metric, row.mean) else [])


def _show(found: Evaluation, json: bool) -> None:
    from visx.files import to_json

    if json:
        for row in found.rows:
            put(to_json(row.as_dict()))
        return
    cells: dict[str, dict[str, str]] = {}
    for row in found.rows:
        interval = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
        cells.setdefault(row.job, {})[row.metric] = f"{row.mean:.4f}{interval}{'*' if row.best else ' '}"
    if not cells:
        return
    titles = ["method", *(f"{m.name} ({'+' if m.better == 'higher' else '-'})" for m in found.metrics)]
    lines = [titles] + [[job, *(row.get(m.name, "-") for m in found.metrics)] for job, row in cells.items()]
    common.print_table(lines)
