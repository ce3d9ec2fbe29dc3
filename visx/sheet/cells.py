"""The cells of a comparison: every method on every model for every target of one picture, computed and drawn."""

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

Key = tuple[str, int]  # a method and the number of its layer: one column of the sheet


@dataclass(frozen=True)
class Ask:
    """What is compared: methods with their parameters, layers (none: each model's own) and targets."""

    methods: Sequence[Method]
    layers: Sequence[str]
    params: Mapping[str, Mapping[str, Any] | Params]
    targets: Sequence[str]
    score: ScoreKind | None = None
    seed: int = 0
    precision: str = "fp32"
    copies: int = 16


@dataclass(frozen=True)
class Look:
    """How it is drawn. `shared` puts each column on one scale; `cut` shows only what the network saw."""

    colormap: str = "turbo"
    alpha: float = 0.5
    shared: bool = False
    cut: bool = False
    times: bool = True


@dataclass(frozen=True)
class Found:
    """One map of the sheet: its column and row, and what was found."""

    key: Key
    model: Model
    job: Job
    place: Placement
    answer: Answer
    seconds: float
    record: Record


@dataclass(frozen=True)
class Row:
    """One target on one model: its maps, and for each column without one the reason."""

    model: Model
    place: Placement
    found: dict[Key, Found]
    reasons: dict[Key, str]


def compute(
    models: Sequence[Model],
    picture: Picture,
    name: str,
    ask: Ask,
    on_message: Callable[[str], None] = lambda text: None,
    progress: Progress = SILENT,
) -> list[Row]:
    """Rows of maps, model by model and target by target. A method that fits some of the models leaves the others'
    places empty with the reason; one that fits none is an error (exit 4). `progress` is told of every job done."""
    planned = [_plan(model, models, ask) for model in models]
    rows: list[Row] = []
    for model, (jobs, reasons) in zip(models, planned, strict=True):
        image = prepare(model, picture, ask.seed)
        network, place = model.network(ask.precision), image.place
        explainer = Explainer(model, network, ask.copies, on_message, progress.within)
        spec = model.targets(ask.targets, any(job.of_a_class for job in jobs.values()))
        spec = spec.for_image(name, model.names, model.anatomy.classes)
        targets = targets_of(model, network, [spec])
        of_target: list[dict[Key, Found]] = []
        with network.session():
            for key, job in jobs.items():
                begun = time.perf_counter()
                (answers,) = explainer.explain(job, stacked([image]), [spec], [image.seed], targets=targets)
                progress.advance()
                if isinstance(answers, VisxError):
                    raise answers
                seconds = (time.perf_counter() - begun) / len(answers)
                for number, answer in enumerate(each_once(answers)):
                    record = record_of(model, job, answer, name, place, ask.seed, ask.precision, network, seconds)
                    if number == len(of_target):
                        of_target.append({})
                    of_target[number][key] = Found(key, model, job, place, answer, seconds, record)
        rows += [Row(model, place, found, reasons) for found in of_target]
    return rows


def _plan(model: Model, models: Sequence[Model], ask: Ask) -> tuple[dict[Key, Job], dict[Key, str]]:
    """The jobs of one model by column, and the reasons of the columns that it cannot fill."""
    jobs: dict[Key, Job] = {}
    reasons: dict[Key, str] = {}
    for method in ask.methods:
        params = parse(method.params, ask.params.get(method.name, {}), method.name)
        unfit = missing(model, method, params, ask.layers)
        if unfit and any(not missing(other, method, params, ask.layers) for other in models):
            reasons[method.name, 0] = unfit
            continue
        planned = plan(model, [method], ask.layers, ask.params, ask.score)
        jobs.update({(method.name, number): job for number, job in enumerate(planned)})
    return jobs, reasons


def draw_rows(rows: Sequence[Row], picture: Picture, look: Look) -> list[list[Cell]]:
    """The cells of a sheet: in each row the picture, then a map a column."""
    columns = list(dict.fromkeys(key for row in rows for key in (*row.found, *row.reasons)))
    titles = {f.key: short_title(f.job.method) for row in rows for f in row.found.values()}
    scales: dict[Key, Limits] = {}
    if look.shared:
        for key in columns:
            scales[key] = shared(_limits(row.found[key]) for row in rows if key in row.found)
    sheet: list[list[Cell]] = []
    for row in rows:
        cells = [_first(row, picture, look)]
        for key in columns:
            if key in row.found:
                cells.append(_cell(row.found[key], picture, look, scales.get(key)))
            else:
                reason = row.reasons.get(key, "this model has no such layer")
                cells.append(Cell(None, titles[key], note=f"does not fit: {reason}"))
        sheet.append(cells)
    return sheet


def _drawn_as_gradient(found: Found) -> bool:
    return found.job.method.picture == "gradient" and found.answer.channels is not None


def _limits(found: Found) -> Limits:
    if _drawn_as_gradient(found):
        return limits(found.answer.channels, True)
    return limits(found.answer.map, found.job.signed)


def _first(row: Row, picture: Picture, look: Look) -> Cell:
    """The picture, with what the row explains."""
    answers = [f.answer for f in row.found.values()]
    answer = next((a for a in answers if a.probability is not None), answers[0])
    shown = cut(picture.rgb, row.place) if look.cut else picture.rgb
    chance = "" if answer.probability is None else f"{percent(answer.probability)} · "
    what = "value" if row.model.outputs.kind == "regression" else "class"
    explained = answer.objective
    return Cell(shown, explained.label, (f"{chance}{what} {explained.index}", row.model.name))


def _cell(found: Found, picture: Picture, look: Look, scale: Limits | None) -> Cell:
    answer, job = found.answer, found.job
    scale = scale or _limits(found)
    drawn: np.ndarray = draw(
        picture.rgb, found.place, job, answer.map, answer.channels, look.colormap, look.alpha, scale
    )
    gradient = _drawn_as_gradient(found)
    signed = gradient or job.signed
    colours = colorbar(signed, GREYS if gradient else look.colormap, (8, 256))
    chance = "" if answer.probability is None else f" {percent(answer.probability)}"
    where = [job.layer] if job.layer else []
    took = [duration(found.seconds)] if look.times else []
    return Cell(
        cut(drawn, found.place) if look.cut else drawn,
        short_title(job.method),
        (answer.objective.label + chance, " · ".join([*where, *took])),
        ColourBar(colours, number(scale[0]), number(scale[1]), "0" if signed else ""),
    )


def short_title(method: Method) -> str:
    """A method's title without its explanation: what stands before a bracket or a colon."""
    return re.split(r"\s*[(:]", method.title)[0]


def percent(probability: float) -> str:
    """A probability as people read it; never 0% or 100% for what is neither."""
    if 0 < probability < 0.001:
        return "<0.1%"
    return f"{min(probability, 0.999) if probability < 1 else 1.0:.1%}"


def number(value: float) -> str:
    """An end of a colour bar, two digits."""
    return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e") if value else "0"


def duration(seconds: float) -> str:
    """Seconds, or milliseconds where they say more."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
