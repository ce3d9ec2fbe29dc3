"""A job on a batch of images: the answers. The CLI, the Python API and every other command explain through here.

What a method returns is checked before anyone sees it: maps are finite, and an empty map says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from visx.engine.jobs import Job
from visx.errors import VisxError
from visx.methods.contract import Attachment, Attribution, Request
from visx.models import Model
from visx.network.blackbox import BlackBox
from visx.network.memory import BatchSize
from visx.network.network import Network
from visx.network.scorer import Scorer
from visx.ops.maps import upsample
from visx.targets.contract import Identity, Target, Targets

FLAT = 1e-6  # the part of its largest value within which a map is the same everywhere


@dataclass(frozen=True)
class Answer:
    """One map and what it explains; `asked` is the number of the target (of those asked for) that it answers. Arrays are float32 numpy: `map` (H, W) at input size, `native` (h, w) where the
    method is coarse, `channels` (C, H, W) where it has an input gradient."""

    map: Any
    native: Any
    channels: Any
    objective: Identity
    score: float
    score_kind: str
    probability: float | None
    extras: dict[str, Any]
    warnings: list[str]
    attachments: dict[str, Attachment]
    asked: int = 0


def explain_batch(
    model: Model,
    network: BlackBox,
    job: Job,
    x: Tensor,
    specs: Sequence[Target],
    seeds: Sequence[int],
    *,
    targets: Targets | None = None,
    count: int | None = None,
    copies: BatchSize | None = None,
) -> list[list[Answer] | VisxError]:
    """Explain (B, C, H, W) normalised images: for each a list of answers, one an objective, or the error it met.

    `targets` may be shared between jobs on the same batch, so that objectives are found once; `count` is how many
    images from the first are wanted (the others pad the batch; None: all), and as many answers come back; `copies` is
    how many perturbed copies go through the network at a time. Call inside `network.session()`.

    Where an output depends on more than its picture (`network.behaviour`), pictures go through alone, and maps say so.
    """
    copies = copies or BatchSize()
    count = len(x) if count is None else count
    if not network.behaviour.one_row:
        return _explain(model, network, job, x, targets or targets_of(model, network, specs), seeds, count, copies)
    results: list[list[Answer] | VisxError] = []
    for b in range(count):
        alone = targets if targets is not None and len(x) == 1 else targets_of(model, network, specs[b : b + 1])
        with network.of_picture(seeds[b]):
            results += _explain(model, network, job, x[b : b + 1], alone, seeds[b : b + 1], 1, copies)
    warnings = network.behaviour.warnings()
    for answers in results:
        for answer in () if isinstance(answers, VisxError) else answers:
            answer.warnings.extend(warnings)
    return results


def _explain(
    model: Model,
    network: BlackBox,
    job: Job,
    x: Tensor,
    targets: Targets,
    seeds: Sequence[int],
    count: int,
    copies: BatchSize,
) -> list[list[Answer] | VisxError]:
    """One batch in the passes that the method makes."""
    scorer = Scorer(network.scores_of_many, copies, network.layout, network.patched, network.tokens)
    x = x.to(network.device, torch.float64 if network.dtype == torch.float64 else torch.float32)
    net = network if isinstance(network, Network) else None
    request = Request(
        x, targets, tuple(seeds), scorer, job.kind, net, job.layer, model.preprocess.mean, model.preprocess.std
    )
    try:
        if job.method.passes == "many":
            _ = request.objectives  # of the whole batch, padded as for any other job
        if not job.method.needs_with(job.params) - {"droppable"}:
            request = _some(request, slice(count))  # images go their way one by one: the padding need not
        if job.method.passes == "many" and targets.uneven:
            alone = [_some(request, slice(b, b + 1)) for b in range(count)]
            return [_answers(job, each).image(0) for each in alone]
        answers = _answers(job, request)
    except VisxError as error:
        if error not in targets.errors.values():
            raise
        return [targets.errors[b] for b in range(count)]  # there is nothing to explain in any image
    return [answers.image(b) for b in range(count)]


def _some(request: Request, images: slice) -> Request:
    """The request for some images of a batch whose targets are resolved."""
    targets = request.targets.some(images)
    return replace(request, x=request.x[images], targets=targets, seeds=request.seeds[images])


def _answers(job: Job, request: Request) -> _Answers:
    """What a job answers to a request, checked."""
    result = job.method.run(request, job.params)
    _ = request.objectives  # by a clean pass, if the method made none
    return _Answers(job, request.targets, result, upsample(result.map, tuple(request.x.shape[-2:])))


def targets_of(model: Model, network: BlackBox, specs: Sequence[Target]) -> Targets:
    """The targets of a batch, one an image, to be resolved on its clean pass."""
    return Targets(specs, network.outputs, model.names)


def each_once(answers: Sequence[Answer]) -> list[Answer]:
    """Answers in their order, those of an objective that two targets name once."""
    by_slug: dict[str, Answer] = {}
    for answer in answers:
        by_slug.setdefault(answer.objective.slug, answer)
    return list(by_slug.values())


class _Answers:
    """A checked attribution, cut into answers."""

    def __init__(self, job: Job, targets: Targets, result: Attribution, maps: Tensor) -> None:
        objectives, values = targets.objectives, targets.values
        assert objectives is not None and values is not None
        self.job, self.result, self.targets, self.objectives = job, result, targets, objectives
        self.values_finite = values.flatten(1).isfinite().all(1).tolist()
        self.scores = objectives.scores(values, job.kind).tolist()
        self.probabilities = objectives.scores(values, "prob").tolist() if targets.outputs.has_probabilities else None
        columns = objectives.columns(values)
        self.columns = None if columns is None else values.gather(1, columns).tolist()
        self.maps = maps.float().cpu().numpy()
        flat = result.map.flatten(2)
        low, high = flat.amin(2), flat.amax(2)  # NaN and infinity show in these, and upsampling adds none
        self.finite = (low.isfinite() & high.isfinite()).tolist()
        self.empty = ((low == 0) & (high == 0)).tolist()
        self.flat = (high - low <= FLAT * torch.maximum(high.abs(), low.abs())).tolist()
        native = result.native if result.native is not None else result.map if result.map.shape != maps.shape else None
        self.native = native.float().cpu().numpy() if native is not None else None
        self.channels = result.channels.float().cpu().numpy() if result.channels is not None else None

    def image(self, b: int) -> list[Answer] | VisxError:
        if not self.values_finite[b]:
            hint = "are the weights right? fp16 overflows on some networks: try --precision fp32 or bf16"
            return VisxError("the model's logits for this image are not finite (NaN or infinity)", hint=hint)
        if b in self.targets.errors:
            return self.targets.errors[b]
        own = range(self.maps.shape[1] if self.result.subjects else len(self.targets.asked[b]))
        if not all(self.finite[b][t] for t in own):
            return VisxError(
                f"the {self.job.method.name} map of this image is not finite (NaN or infinity)",
                hint="; ".join(dict.fromkeys(w for t in own for w in self.result.warned(b, t)))
                or "try --precision fp32",
            )
        return [self.answer(b, t) for t in own]

    def answer(self, b: int, t: int) -> Answer:
        subject = self.result.subjects[b][t] if self.result.subjects else None
        return Answer(
            map=self.maps[b, t],
            native=self.native[b, t] if self.native is not None else None,
            channels=self.channels[b, t] if self.channels is not None else None,
            objective=subject.identity if subject else self.objectives.rows[b][t].identity,
            score=subject.score if subject else self.scores[b][t],
            score_kind=subject.score_kind if subject else self.job.kind,
            probability=None if subject or self.probabilities is None else self.probabilities[b][t],
            extras=self.result.extra(b, t),
            warnings=self._warnings(b, t),
            attachments=self.result.attachments[b][t] if self.result.attachments else {},
            asked=0 if subject else self.targets.asked[b][t],
        )

    def _warnings(self, b: int, t: int) -> list[str]:
        """What the method says of a map, what is said of its score, and that it shows nothing where it does not."""
        warnings = self.result.warned(b, t)
        if self.columns is not None and not self.result.subjects:
            cut = self.targets.outputs.cut_off(self.columns[b][t], self.job.kind)
            warnings += [cut] if cut else []
        if self.empty[b][t] and not warnings:
            warnings.append("the map is zero everywhere: the score does not depend on the input here")
        elif self.flat[b][t] and not warnings:
            warnings.append("the map is the same everywhere: it tells no place from another")
        return warnings
