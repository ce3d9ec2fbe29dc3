"""`visx sensitivity`: how much a map moves when a hyperparameter, the seed or noise on the image does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from visx.cli.measuring import Boxes, choose_metrics
from visx.cli.options import (
    DEFAULT_MODEL,
    ComputeOptions,
    Inputs,
    Json,
    ModelSpecs,
    Nul,
    Out,
    Quiet,
    SensitivityOptions,
    Shard,
    grouped,
)
from visx.cli.output import put, put_table
from visx.cli.pictures import PictureOptions
from visx.cli.prepare import Prepared, pick_methods, prepare, split
from visx.cli.talk import Talk, failure
from visx.errors import usage
from visx.metrics.names import listed
from visx.sensitivity.presets import Experiment, Preset, get_preset

if TYPE_CHECKING:
    from visx.models import Model
    from visx.sensitivity.measure import Sensitivity
    from visx.sensitivity.settings import Against, Setting

DEFAULT_METRICS = ("ssim", "spearman", "hog")
_METRICS_HELP = (
    f"Of two settings' maps: {listed('pair')}. Of each setting's own: {listed('alone', 'map')}; "
    f"with --boxes: {listed('box')}."
)


@grouped
def sensitivity(
    inputs: Inputs,
    *,
    method: Annotated[
        list[str] | None,
        typer.Option("-m", "--method", metavar="NAME[,NAME]", help="Methods. Repeatable.", show_default="gradcam"),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="KEY=a,b,c",
            help="A method's parameter, seed=0..4, noise=0,0.1 (variance on pixels 0..1) or layer. Repeatable: every combination.",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="An experiment of SAM: sam-occlusion, sam-lime, sam-mp, sam-smoothgrad or sam-gradient.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        Literal["all-pairs", "default"],
        typer.Option("--against", help="Compare every pair, or each with the method's default setting."),
    ] = "all-pairs",
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metrics",
            metavar="NAME[,NAME]",
            help=_METRICS_HELP,
            show_default="ssim,spearman,hog",
        ),
    ] = None,
    boxes: Boxes = None,
    model: ModelSpecs = None,
    options: SensitivityOptions,
    compute: ComputeOptions,
    out: Out = Path("visx-sensitivity"),
    null: Nul = False,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Keep maps whose recipe is unchanged, or compute all.")
    ] = True,
    shard: Shard = None,
    json: Json = False,
    quiet: Quiet = False,
    pictures: PictureOptions,
) -> int:
    """Show how much maps move with a setting: the sensitivity of a method to its hyperparameters (SAM, CVPR 2020).

    Writes sensitivity.json, sensitivity.csv, a picture a group of settings (one row an image, one column a setting, the
    scores beneath), and the maps. Shards write files of their own (sensitivity.3-of-8.json); run without --shard afterwards,
    the command sums up all images from their maps and measured values.

    [dim]visx sensitivity photos/ -m smoothgrad --vary spread=0.1,0.2,0.3[/dim]
    [dim]visx sensitivity photos/ -m lime --vary seed=0..4 --metrics insertion,deletion[/dim]
    [dim]visx sensitivity photos/ --preset sam-occlusion -p stride=5[/dim]
    """
    chosen = get_preset(preset) if preset else None
    if chosen and (method or vary):
        raise usage(f"--preset {preset} brings its own --method and --vary", "give one or the other")
    experiments = _experiments(chosen, method, vary)
    layers, preset_pairs = split(options.layer), chosen.metrics if chosen else ()
    if len(layers) > 1:
        raise usage(
            f"--layer: maps of one layer are compared, not of {len(layers)}", f"--vary layer={','.join(layers)}"
        )
    measuring = choose_metrics(
        "sensitivity",
        metrics,
        DEFAULT_METRICS,
        ("pair", "box", "alone", "map"),
        options.param or (),
        boxes,
        preset_pairs,
    )
    talk, names = Talk(quiet), [experiment.method for experiment in experiments]
    ready = prepare(
        talk, options, compute, pictures,
        methods=names, params=measuring.method_pairs, inputs=inputs, out=out, null=null, varied=True,
        shard=shard,
    )  # fmt: skip
    if ready.idle:
        return 0

    from visx.sensitivity.measure import Sensitivity, measure
    from visx.sensitivity.report import write_sensitivity

    result = Sensitivity(measuring.metrics)
    score = options.score or (chosen.score if chosen else None)
    for spec in split(model, [DEFAULT_MODEL]):
        loaded = ready.load(spec)
        groups, texts = _groups(ready, loaded, experiments, score, layers, compute.seed, against)
        ready.describe_outputs(loaded, (setting.job.kind for group in groups for setting in group))
        settings = ready.settings(loaded, out, compute.seed, resume=resume)
        maps = {(s.job, s.seed, s.noise) for group in groups for s in group}
        runs = len({(seed, noise) for _, seed, noise in maps})
        steps = runs + (len(maps) if any(metric.kind != "pair" for metric in measuring.metrics) else 0)
        with talk.progress(len(ready.items) * steps, f"explaining with {spec}") as progress:
            measure(
                result, loaded, groups, texts, ready.items, settings, measuring.params, against, measuring.boxes,
                talk.say, progress,
            )  # fmt: skip
        for group in result.groups[-len(groups) :]:
            written = write_sensitivity(settings, result, group, loaded)
    for error in result.errors:
        talk.error(failure(error))
    _show(result, json)
    if result.skipped:
        talk.say(f"{result.skipped} maps were there already")
    talk.say(f"written to {written}")
    return int(result.code)


def _experiments(preset: Preset | None, method: list[str] | None, vary: list[str] | None) -> tuple[Experiment, ...]:
    """The experiments of a preset, or those of `--method` and `--vary`."""
    if not preset and not vary:
        raise usage("nothing varies", "--vary KEY=a,b,c, or --preset sam-occlusion")
    names = split(method, ["gradcam"])
    experiments = preset.experiments if preset else tuple(Experiment(name, (tuple(vary or ()),)) for name in names)
    if len(pick_methods([experiment.method for experiment in experiments])) != len(experiments):
        raise usage("sensitivity takes methods by name, each once", "`visx methods` lists them")
    return experiments


def _groups(
    ready: Prepared,
    model: Model,
    experiments: tuple[Experiment, ...],
    score: Literal["logit", "prob", "logprob"] | None,
    layers: list[str],
    seed: int,
    against: Against,
) -> tuple[list[list[Setting]], list[str]]:
    """The groups of settings whose maps are compared with each other, and for each what varies in it, as it was typed."""
    from visx.methods import get_method
    from visx.sensitivity.settings import parse_vary, settings_of

    groups, texts = [], []
    layer = layers[0] if layers else None
    for experiment in experiments:
        method = get_method(experiment.method)
        fixed = {**experiment.params, **ready.texts[method.name]}
        for varied in experiment.groups:
            groups.append(settings_of(model, method, parse_vary(varied), fixed, score, layer, seed, against))
            texts.append(" ".join(varied))
    return groups, texts


def _show(result: Sensitivity, json: bool) -> None:
    """Print the tables, of pairs of settings and of single ones; what is the same in all rows stands above them."""
    from visx.files import to_json

    rows = result.rows()
    if json:
        for row in rows:
            put(to_json(row))
        return
    if not rows:
        return
    alike = [key for key in ("model", "method", "varied") if len({row[key] for row in rows}) == 1]
    if alike:
        put("  ".join(rows[0][key] for key in alike))
    columns = [key for key in ("model", "method", "varied") if key not in alike]
    tables = [_table(result, rows, [*columns, key], key) for key in ("pair", "setting")]
    for number, lines in enumerate(filter(None, tables)):
        if number:
            put()
        put_table(lines)


def _table(result: Sensitivity, rows: list[dict[str, Any]], columns: list[str], key: str) -> list[list[str]]:
    """The rows that are about pairs, or about settings, as lines of cells, the first one the titles."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if row[key] is not None:
            names = tuple(row[column] for column in columns)
            cells.setdefault(names, {})[row["metric"]] = f"{row['mean']:.3f} ±{row['std']:.3f}"
            if row["between"] is not None and key == "setting":
                cells.setdefault((*names[:-1], "between settings"), {})[row["metric"]] = f"{row['between']:.3f}"
    shown = [m for m in result.metrics if (m.kind == "pair") == (key == "pair")]
    lines = [[*names, *(values.get(m.name, "-") for m in shown)] for names, values in cells.items()]
    titles = [m.name if m.kind == "pair" else f"{m.name} ({'+' if m.better == 'higher' else '-'})" for m in shown]
    return [[*columns, *titles], *lines] if lines else []
