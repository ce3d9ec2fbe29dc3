"""`visx sensitivity`: how much a map moves when a hyperparameter, the seed or noise on the image does."""

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
    Nul,
    Out,
    Param,
    Precision,
    Quiet,
    Seed,
    Target,
    WeightsSpec,
)
from visx.cli.measuring import Boxes, annotated, failure
from visx.cli.output import put
from visx.cli.pictures import with_pictures
from visx.cli.talk import Talk
from visx.errors import usage
from visx.sensitivity.presets import Experiment, Preset, get_preset

if TYPE_CHECKING:
    from visx.methods.contract import Method
    from visx.metrics.contract import Kind
    from visx.sensitivity.measure import Sensitivity

DEFAULT_METRICS = ("ssim", "spearman", "hog")


@with_pictures
def sensitivity(
    inputs: Inputs,
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
            help="Of two settings' maps: ssim, spearman, pearson, hog, top_k, iou. Of each setting's own: insertion, "
            "deletion, road, average_drop, increase, completeness, infidelity, max_sensitivity; with --boxes: "
            "localisation, pointing_game, energy.",
            show_default="ssim,spearman,hog",
        ),
    ] = None,
    boxes: Boxes = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "-M",
            "--model",
            metavar="SPEC[,SPEC]",
            help="efficientnet_lite0 (built in), a torchvision name, timm/NAME, or FILE.py:FACTORY. Repeatable.",
            show_default="efficientnet_lite0",
        ),
    ] = None,
    weights: WeightsSpec = "default",
    layer: Annotated[
        str | None,
        typer.Option(
            "-l",
            "--layer",
            metavar="NAME",
            help="Module path.",
            show_default="the last feature map on the way to the score",
        ),
    ] = None,
    target: Target = None,
    score: Annotated[
        Literal["logit", "prob", "logprob"] | None,
        typer.Option("--score", help="The scalar that is explained.", show_default="each method's own; presets: prob"),
    ] = None,
    labels: Labels = None,
    means: Means = None,
    head: Head = None,
    param: Param = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: BatchSize = "auto",
    seed: Seed = 0,
    out: Out = Path("visx-sensitivity"),
    null: Nul = False,
    resume: Annotated[
        bool, typer.Option("--resume/--overwrite", help="Keep maps whose recipe is unchanged, or compute all.")
    ] = True,
    json: Json = False,
    quiet: Quiet = False,
    *,
    pictures: dict[str, Any],
) -> int:
    """Show how much maps move with a setting: the sensitivity of a method to its hyperparameters (SAM, CVPR 2020).

    Writes sensitivity.json, sensitivity.csv, a picture a group of settings (one row an image, one column a setting, the
    scores beneath), and the maps.

    [dim]visx sensitivity photos/ -m smoothgrad --vary spread=0.1,0.2,0.3[/dim]
    [dim]visx sensitivity photos/ -m lime --vary seed=0..4 --metrics insertion,deletion[/dim]
    [dim]visx sensitivity photos/ --preset sam-occlusion -p stride=5[/dim]
    """
    from visx.metrics import get_metric, split_params

    chosen = get_preset(preset) if preset else None
    if chosen and (method or vary):
        raise usage(f"--preset {preset} brings its own --method and --vary", "give one or the other")
    experiments, methods = _experiments(chosen, method, vary)
    kinds: tuple[Kind, ...] = ("pair", "box", "map")
    measured = [get_metric(name, kinds, "sensitivity") for name in common.split(metrics) or DEFAULT_METRICS]
    annotations = annotated(measured, boxes)
    mine = [p for p in (chosen.metrics if chosen else ()) if p.partition(".")[0] in [m.name for m in measured]]
    rest, params = split_params([*mine, *(param or [])], measured)
    talk, size = Talk(quiet), common.batch_size(batch_size)

    from visx.images import find as finding
    from visx.params import assign
    from visx.store.manifest import holds_results

    items = finding.find(inputs, out, sys.stdin.buffer, null, talk.say, holds_results)
    dealt = assign(rest, {m.name: m.params for m in methods})

    from visx.models import load_model
    from visx.sensitivity import measure as moving
    from visx.sensitivity.report import write_sensitivity
    from visx.sensitivity.settings import parse_vary, settings_of
    from visx.store.settings import Settings

    found = moving.Sensitivity(measured)
    scalar = score or (chosen.score if chosen else None)
    where = common.pick_device(device)
    specs = common.split(model) or ["efficientnet_lite0"]
    for spec in specs:
        loaded = load_model(spec, weights, labels=labels, device=where, means=means, head=head, **pictures)
        groups, texts = [], []
        for experiment, one in zip(experiments, methods, strict=True):
            fixed = {**experiment.params, **dealt[one.name]}
            for varied in experiment.groups:
                values = parse_vary(varied)
                groups.append(settings_of(loaded, one, values, fixed, scalar, layer, seed, against))
                texts.append(" ".join(varied))
        common.say_outputs(loaded, talk.say, (s.job.kind for group in groups for s in group))
        classes = loaded.targets(target or ())
        run = Settings(out=out, target=classes, seed=seed, precision=precision, batch_size=size, resume=resume)
        wanted = {(s.job, s.seed, s.noise) for group in groups for s in group}
        runs = len({(seed, noise) for _, seed, noise in wanted})
        steps = runs + (len(wanted) if any(m.kind != "pair" for m in measured) else 0)
        with talk.progress(len(items) * steps, f"explaining with {spec}") as progress:
            moving.measure(found, loaded, groups, texts, items, run, params, against, annotations, talk.say, progress)
        for group in found.groups[-len(groups) :]:
            write_sensitivity(out, found, group, loaded)
    for error in found.errors:
        talk.error(failure(error))
    _show(found, json)
    if found.skipped:
        talk.say(f"{found.skipped} maps were there already")
    talk.say(f"written to {out}/sensitivity.json")
    return int(found.code)


def _experiments(
    preset: Preset | None, method: list[str] | None, vary: list[str] | None
) -> tuple[tuple[Experiment, ...], list[Method]]:
    """The experiments of a preset, or those of `--method` and `--vary`, and the method of each."""
    if not preset and not vary:
        raise usage("nothing varies", "--vary KEY=a,b,c, or --preset sam-occlusion")
    names = common.split(method) or ["gradcam"]
    experiments = preset.experiments if preset else tuple(Experiment(name, (tuple(vary or ()),)) for name in names)
    methods = common.pick_methods([e.method for e in experiments])
    if len(methods) != len(experiments):
        raise usage("sensitivity takes methods by name, each once", "`visx methods` lists them")
    return experiments, methods


def _show(found: Sensitivity, json: bool) -> None:
    from visx.files import to_json

    rows = found.rows()
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
    shown = [_table(found, rows, [*columns, key], key) for key in ("pair", "setting")]
    for number, lines in enumerate(filter(None, shown)):
        if number:
            put()
        common.print_table(lines)


def _table(found: Sensitivity, rows: list[dict[str, Any]], columns: list[str], key: str) -> list[list[str]]:
    """The rows that are about pairs, or about settings, as lines of cells, the first one the titles."""
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        if row[key] is not None:
            names = tuple(row[column] for column in columns)
            cells.setdefault(names, {})[row["metric"]] = f"{row['mean']:.3f} ±{row['std']:.3f}"
            if row["between"] is not None and key == "setting":
                cells.setdefault((*names[:-1], "between settings"), {})[row["metric"]] = f"{row['between']:.3f}"
    shown = [m for m in found.metrics if (m.kind == "pair") == (key == "pair")]
    lines = [[*names, *(values.get(m.name, "-") for m in shown)] for names, values in cells.items()]
    titles = [m.name if m.kind == "pair" else f"{m.name} ({'+' if m.better == 'higher' else '-'})" for m in shown]
    return [[*columns, *titles], *lines] if lines else []
