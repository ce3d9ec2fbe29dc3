"""A job on a batch of images: the answers. The CLI, the Python API and every other command explain through here.

What a method returns is checked before anyone sees it: maps are finite, and an empty map says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visx.engine.jobs import Job
from visx.errors import VisxError
from visx.methods.contract import Attachment, Attribution, Request
from visx.models import Model
from visx.network.network import Network
from visx.network.outputs import Outputs
from visx.network.scorer import Scorer
from visx.ops.maps import upsample
from visx.targets.classes import Targets, TargetSpec

FLAT = 1e-6  # the part of its largest value within which a map is the same everywhere


@dataclass(frozen=True)
class Answer:
    """One map and what it explains. Arrays are float32 numpy: `map` (H, W) at input size, `native` (h, w) where the
    method is coarse, `channels` (C, H, W) where it has an input gradient."""

    map: Any
    native: Any
    channels: Any
    target: int
    label: str
    slug: str
    score: float
    score_kind: str
    probability: float | None
    extras: dict[str, Any]
    warnings: list[str]
    attachments: dict[str, Attachment]


def explain_batch(
    model: Model,
    network: Network,
    job: Job,
    x: Tensor,
    specs: Sequence[TargetSpec],
    seeds: Sequence[int],
    *,
    targets: Targets | None = None,
    count: int | None = None,
    copies: int = 16,
    said: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> list[list[Answer] | VisxError]:
    """Explain (B, C, H, W) normalised images: for each a list of answers, one a target, or the error it met.

    `targets` may be shared between jobs on the same batch, so that the classes are found once; `count` is how many
    images from the first are wanted (the others pad the batch; None: all), and as many answers come back; `copies` is
    how many perturbed copies go through the network at a time; `progress` is told how many of how many passes are done. Call inside `network.session()`.

    Where an output depends on more than its picture (`network.behaviour`), pictures go through alone, and maps say so.
    """
    if network.behaviour.one_row:
        warnings, found = network.behaviour.warnings(), []
        for b in range(len(x) if count is None else count):
            alone = targets if targets is not None and len(x) == 1 else Targets(specs[b : b + 1])
            with network.of_picture(seeds[b]):
                found += _explain(model, network, job, x[b : b + 1], alone, seeds[b : b + 1], 1, copies, said, progress)
        for answers in found:
            for answer in () if isinstance(answers, VisxError) else answers:
                answer.warnings.extend(warnings)
        return found
    count = len(x) if count is None else count
    return _explain(model, network, job, x, targets or Targets(specs), seeds, count, copies, said, progress)


def _explain(
    model: Model,
    network: Network,
    job: Job,
    x: Tensor,
    targets: Targets,
    seeds: Sequence[int],
    count: int,
    copies: int,
    said: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> list[list[Answer] | VisxError]:
    """One batch in the passes that the method makes."""
    scorer = Scorer(
        network.scores_of,
        copies,
        said,
        progress,
        network.layout,
        network.patched,
        network.outputs,
    )
    x = x.to(network.device, torch.float64 if network.dtype == torch.float64 else torch.float32)
    if not job.method.needs_with(job.params):
        scorer.resolve(x, targets)  # padded, as for any other job; behind it images go their way one by one
        x, targets, seeds = x[:count], targets.first(count), seeds[:count]
    request = Request(
        x, targets, tuple(seeds), scorer, job.kind, network, job.layer, model.preprocess.mean, model.preprocess.std
    )
    found = job.method.run(request, job.params)
    scorer.resolve(x, targets)
    assert targets.ids is not None and targets.logits is not None
    batch = _Answers(
        model, job, network.outputs, found, targets.ids, targets.logits, upsample(found.map, tuple(x.shape[-2:]))
    )
    return [batch.image(b) for b in range(count)]


def each_once(answers: Sequence[Answer]) -> list[Answer]:
    """Answers in their order, those of a class that two targets name once."""
    found: dict[str, Answer] = {}
    for answer in answers:
        found.setdefault(answer.slug, answer)
    return list(found.values())


class _Answers:
    """A checked attribution, cut into answers."""

    def __init__(
        self,
        model: Model,
        job: Job,
        outputs: Outputs,
        found: Attribution,
        ids: Tensor,
        logits: Tensor,
        maps: Tensor,
    ) -> None:
        self.model, self.job, self.found, self.ids = model, job, found, ids.tolist()
        self.logits_finite = logits.isfinite().all(1).tolist()
        self.outputs = outputs
        self.scores = outputs.scores(logits, ids, job.kind).tolist()
        self.probabilities = outputs.scores(logits, ids, "prob").tolist() if outputs.has_probabilities else None
        self.columns = logits.gather(1, ids).tolist()
        self.maps = maps.float().cpu().numpy()
        flat = found.map.flatten(2)
        low, high = flat.amin(2), flat.amax(2)  # NaN and infinity show in these, and upsampling adds none
        self.finite = (low.isfinite() & high.isfinite()).tolist()
        self.empty = ((low == 0) & (high == 0)).tolist()
        self.flat = (high - low <= FLAT * torch.maximum(high.abs(), low.abs())).tolist()
        native = found.native if found.native is not None else found.map if found.map.shape != maps.shape else None
        self.native = native.float().cpu().numpy() if native is not None else None
        self.channels = found.channels.float().cpu().numpy() if found.channels is not None else None

    def image(self, b: int) -> list[Answer] | VisxError:
        if not self.logits_finite[b]:
            hint = "are the weights right? fp16 overflows on some networks: try --precision fp32 or bf16"
            return VisxError("the model's logits for this image are not finite (NaN or infinity)", hint=hint)
        if not all(self.finite[b]):
            return VisxError(
                f"the {self.job.method.name} map of this image is not finite (NaN or infinity)",
                hint="; ".join(dict.fromkeys(w for t in range(self.maps.shape[1]) for w in self.found.warned(b, t)))
                or "try --precision fp32",
            )
        return [self.answer(b, t) for t in range(self.maps.shape[1])]

    def answer(self, b: int, t: int) -> Answer:
        warnings = self.found.warned(b, t)
        cut = self.outputs.cut_off(self.columns[b][t], self.job.kind)
        warnings += [cut] if cut and not self.found.subjects else []
        if self.empty[b][t] and not warnings:
            warnings.append("the map is zero everywhere: the score does not depend on the input here")
        elif self.flat[b][t] and not warnings:
            warnings.append("the map is the same everywhere: it tells no place from another")
        outputs, subject = self.outputs, self.found.subjects[b][t] if self.found.subjects else None
        target = subject.target if subject else self.ids[b][t]
        label = subject.label if subject else self.model.label(target)
        return Answer(
            map=self.maps[b, t],
            native=self.native[b, t] if self.native is not None else None,
            channels=self.channels[b, t] if self.channels is not None else None,
            target=target,
            label=label,
            slug=subject.slug
            if subject
            else class_slug(target, label)
            if outputs.of_classes
            else value_slug(target, label),
            score=subject.score if subject else self.scores[b][t],
            score_kind=subject.score_kind if subject else self.job.kind,
            probability=None if subject or self.probabilities is None else self.probabilities[b][t],
            extras=self.found.extra(b, t),
            warnings=warnings,
            attachments=self.found.attachments[b][t] if self.found.attachments else {},
        )


def class_slug(target: int, label: str) -> str:
    """A class as file names show it: its index and what of its label is safe in any file system."""
    words = "".join(c if c.isascii() and c.isalnum() else "-" for c in label.lower())
    name = "-".join(filter(None, words.split("-")))[:40].strip("-")
    return f"{target}-{name}" if name and name != str(target) else str(target)


def value_slug(target: int, label: str) -> str:
    """A regression's value as file names show it: `out-N`, and its label where it has one."""
    name = class_slug(target, label).removeprefix(f"{target}-").removeprefix("out-")
    return f"out-{target}" if name == str(target) else f"out-{target}-{name}"
