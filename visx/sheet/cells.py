"""The cells of a contact sheet: one picture's maps by every method, on every model, for every target; computed, then drawn."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from visx.draw.colours import GREYS, Limits, colorbar, limits, shared
from visx.draw.overlay import cut
from visx.engine.batch import Answer, each_once, targets_of
from visx.engine.explainer import Explainer, prepare, stacked
from visx.engine.jobs import Job, missing, plan
from visx.engine.picture import draw
from visx.errors import VisxError
from visx.images.decode import Picture
from visx.images.geometry import Placement
from visx.methods.contract import Method
from visx.params import Params, parse
from visx.run.progress import SILENT, Progress
from visx.sheet.layout import Cell, ColourBar
from visx.store.record import Record
from visx.store.recorder import record_of

if TYPE_CHECKING:
    import numpy as np

    from visx.models import Model
    from visx.network.outputs import ScoreKind

Column = tuple[str, int]  # of the sheet: the name of a method, and the number of its layer


@dataclass(frozen=True)
class Comparison:
    """What a sheet compares: methods with their parameters, layers (none: each model's default) and targets.

    `copies` is the number of perturbed copies in a batch.
    """

    methods: Sequence[Method]
    layers: Sequence[str]
    params: Mapping[str, Mapping[str, Any] | Params]
    targets: Sequence[str]
    score: ScoreKind | None = None
    seed: int = 0
    precision: str = "fp32"
    copies: int = 16


@dataclass(frozen=True)
class Style:
    """How a sheet is drawn: `shared` gives all maps of a column one scale, `cut` leaves out what the network does not see,
    `times` says how long each map took."""

    colormap: str = "turbo"
    alpha: float = 0.5
    shared: bool = False
    cut: bool = False
    times: bool = True


@dataclass(frozen=True)
class SheetMap:
    """One map of the sheet, with its column and the model and job that made it; `seconds` is the time for the map."""

    column: Column
    model: Model
    job: Job
    place: Placement
    answer: Answer
    seconds: float
    record: Record


@dataclass(frozen=True)
class SheetRow:
    """The maps of one target on one model by column; for each column without a map, `reasons` says why."""

    model: Model
    place: Placement
    maps: dict[Column, SheetMap]
    reasons: dict[Column, str]


def compute(
    models: Sequence[Model],
    picture: Picture,
    name: str,
    comparison: Comparison,
    on_message: Callable[[str], None] = lambda text: None,
    progress: Progress = SILENT,
) -> list[SheetRow]:
    """The rows of a sheet for one picture, model by model and target by target; `name` is the picture's name in records.

    A method that fits only some of the models has a reason in the rows of the others. `progress` advances with every job.
    Raises `VisxError` (exit 4) where a method fits none of the models.
    """
    planned = [_plan(model, models, comparison) for model in models]
    rows: list[SheetRow] = []
    for model, (jobs, reasons) in zip(models, planned, strict=True):
        image = prepare(model, picture, comparison.seed)
        network, place = model.black_box(comparison.precision), image.place
        explainer = Explainer(model, network, comparison.copies, on_message, progress.within)
        spec = model.targets(comparison.targets, any(job.of_a_class for job in jobs.values()))
        spec = spec.for_image(name, model.names, model.anatomy.classes)
        targets = targets_of(model, network, [spec])
        of_target: list[dict[Column, SheetMap]] = []
        with network.session():
            for column, job in jobs.items():
                begun = time.perf_counter()
                (answers,) = explainer.explain(job, stacked([image]), [spec], [image.seed], targets=targets)
                progress.advance()
                if isinstance(answers, VisxError):
                    raise answers
                seconds = (time.perf_counter() - begun) / len(answers)
                for number, answer in enumerate(each_once(answers)):
                    record = record_of(
                        model, job, answer, name, place, comparison.seed, comparison.precision, network, seconds
                    )
                    if number == len(of_target):
                        of_target.append({})
                    of_target[number][column] = SheetMap(column, model, job, place, answer, seconds, record)
        rows += [SheetRow(model, place, maps, reasons) for maps in of_target]
    return rows


def _plan(model: Model, models: Sequence[Model], comparison: Comparison) -> tuple[dict[Column, Job], dict[Column, str]]:
    """The jobs of one model by column, and the reasons for the columns without a job."""
    jobs: dict[Column, Job] = {}
    reasons: dict[Column, str] = {}
    for method in comparison.methods:
        params = parse(method.params, comparison.params.get(method.name, {}), method.name)
        unfit = missing(model, method, params, comparison.layers)
        if unfit and any(not missing(other, method, params, comparison.layers) for other in models):
            reasons[method.name, 0] = unfit
            continue
        planned = plan(model, [method], comparison.layers, comparison.params, comparison.score)
        jobs.update({(method.name, number): job for number, job in enumerate(planned)})
    return jobs, reasons


def draw_rows(rows: Sequence[SheetRow], picture: Picture, style: Style) -> list[list[Cell]]:
    """The cells of a sheet: each row has the picture, then one cell a column."""
    columns = list(dict.fromkeys(column for row in rows for column in (*row.maps, *row.reasons)))
    titles = {one.column: short_title(one.job.method) for row in rows for one in row.maps.values()}
    scales: dict[Column, Limits] = {}
    if style.shared:
        for column in columns:
            scales[column] = shared(_limits(row.maps[column]) for row in rows if column in row.maps)
    sheet: list[list[Cell]] = []
    for row in rows:
        cells = [_first(row, picture, style)]
        for column in columns:
            if column in row.maps:
                cells.append(_cell(row.maps[column], picture, style, scales.get(column)))
            else:
                reason = row.reasons.get(column, "this model has no such layer")
                cells.append(Cell(None, titles[column], note=f"does not fit: {reason}"))
        sheet.append(cells)
    return sheet


def _drawn_as_gradient(one: SheetMap) -> bool:
    return one.job.method.picture == "gradient" and one.answer.channels is not None


def _limits(one: SheetMap) -> Limits:
    if _drawn_as_gradient(one):
        return limits(one.answer.channels, True)
    return limits(one.answer.map, one.job.signed)


def _first(row: SheetRow, picture: Picture, style: Style) -> Cell:
    """The first cell of a row: the picture, and the target that the row explains."""
    answers = [one.answer for one in row.maps.values()]
    answer = next((a for a in answers if a.probability is not None), answers[0])
    shown = cut(picture.rgb, row.place) if style.cut else picture.rgb
    chance = "" if answer.probability is None else f"{percent(answer.probability)} · "
    explained = answer.objective
    what = {"class": f"class {explained.index}", "out": f"value {explained.index}"}.get(explained.kind, explained.kind)
    return Cell(shown, explained.label, (chance + what, row.model.name))


def _cell(one: SheetMap, picture: Picture, style: Style, scale: Limits | None) -> Cell:
    answer, job = one.answer, one.job
    scale = scale or _limits(one)
    drawn: np.ndarray = draw(
        picture.rgb, one.place, job, answer.map, answer.channels, style.colormap, style.alpha, scale
    )
    gradient = _drawn_as_gradient(one)
    signed = gradient or job.signed
    colours = colorbar(signed, GREYS if gradient else style.colormap, (8, 256))
    chance = "" if answer.probability is None else f" {percent(answer.probability)}"
    where = [job.layer] if job.layer else []
    took = [duration(one.seconds)] if style.times else []
    return Cell(
        cut(drawn, one.place) if style.cut else drawn,
        short_title(job.method),
        (answer.objective.label + chance, " · ".join([*where, *took])),
        ColourBar(colours, number(scale[0]), number(scale[1]), "0" if signed else ""),
    )


def short_title(method: Method) -> str:
    """A method's title up to its first bracket or colon."""
    return re.split(r"\s*[(:]", method.title)[0]


def percent(probability: float) -> str:
    """A probability in percent; 0% and 100% only where it is exactly that."""
    if 0 < probability < 0.001:
        return "<0.1%"
    return f"{min(probability, 0.999) if probability < 1 else 1.0:.1%}"


def number(value: float) -> str:
    """A value at an end of a colour bar, with two digits."""
    return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e") if value else "0"


def duration(seconds: float) -> str:
    """A time in seconds, below 1 second in milliseconds."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
