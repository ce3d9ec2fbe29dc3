"""A model at work: pictures are prepared, batches of them explained, with one rule for memory.

The commands, the Python API, sheets, the bench of the metrics and Ray's workers all explain through `Explainer`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visx.engine.batch import Answer, explain_batch
from visx.engine.jobs import Job
from visx.errors import VisxError
from visx.images.decode import Picture
from visx.images.geometry import Placement
from visx.models import Model
from visx.network.blackbox import BlackBox
from visx.network.memory import BatchSize
from visx.network.scorer import Scorer
from visx.seeds import image_seed
from visx.targets.contract import Target, Targets

AUTO_BATCH = 16  # images or copies at a time, where nothing else is asked for


@dataclass(frozen=True)
class Prepared:
    """A picture and the network's input made from it: `x` (C, H, W) float32, normalised. `place` says which part of the
    picture `x` shows; `seed` is what methods draw from for this picture."""

    picture: Picture
    x: np.ndarray
    place: Placement
    seed: int


def prepare(model: Model, picture: Picture, seed: int) -> Prepared:
    """The network's input of a picture, in a run with this seed."""
    x, place = model.preprocess(picture.pixels)
    return Prepared(picture, x, place, image_seed(seed, picture.digest))


def stacked(images: Sequence[Prepared]) -> Tensor:
    """The inputs of several pictures as one (B, C, H, W)."""
    return torch.from_numpy(np.stack([image.x for image in images]))


class Explainer:
    """Explains batches of images on one network, in smaller batches from the moment on that memory runs out.

    `size` is how many images, and how many perturbed copies, go through the network at a time; `on_message` gets a line
    when memory makes it smaller, `on_passes` how many of how many passes of a batch are done.
    """

    def __init__(
        self,
        model: Model,
        network: BlackBox,
        size: int | None = None,
        on_message: Callable[[str], None] = lambda text: None,
        on_passes: Callable[[int, int], None] = lambda done, count: None,
    ) -> None:
        self.model, self.network = model, network
        self.images = BatchSize(size or AUTO_BATCH, on_message, what="image")
        self.copies = BatchSize(size or AUTO_BATCH, on_message, on_passes)

    def on(self, network: BlackBox) -> Explainer:
        """The same on another network of the model."""
        other = copy.copy(self)
        other.network = network
        other.images, other.copies = copy.copy(self.images), copy.copy(self.copies)
        return other

    def explain(
        self,
        job: Job,
        x: Tensor,
        specs: Sequence[Target],
        seeds: Sequence[int],
        *,
        padded: int = 0,
        targets: Targets | None = None,
    ) -> list[list[Answer] | VisxError]:
        """For each image of (B, C, H, W): a list of answers, one an objective, or the error it met.

        `padded` fills every batch up to so many images with copies of its last one, so that what an image shares its batch
        with changes no bit of its maps. `targets` may be shared by the jobs on a single image, so that its objectives are found
        once. Call inside `network.session()`. Raises a `VisxError` where memory does not suffice for one image.
        """
        alone = self.network.behaviour.one_row  # then images go one by one anyway
        size = BatchSize(1, self.images.on_message, what="image") if alone else self.images

        def work(start: int, stop: int) -> list[list[Answer] | VisxError]:
            rows = list(range(start, stop))
            rows += rows[-1:] * (min(padded, size.rows) - len(rows))
            part = x[start:stop]
            if len(rows) > len(part):
                part = torch.cat([part, part[-1:].expand(len(rows) - len(part), *part.shape[1:])])
            return explain_batch(
                self.model,
                self.network,
                job,
                self._moved(part),
                [specs[row] for row in rows],
                [seeds[row] for row in rows],
                targets=targets if len(x) == 1 else None,
                count=stop - start,
                copies=self.copies,
            )

        return [answers for batch in size.split(len(x), work, padded) for answers in batch]

    def scorer(self, seed: int) -> Scorer:
        """What scores copies of one picture, whose seed this is, for the metrics."""
        net = self.network
        return Scorer(
            lambda copies: net.scores_of_many(copies, [seed] * len(copies)),
            self.copies,
            layout=net.layout,
        )

    def _moved(self, x: Tensor) -> Tensor:
        """A batch on the network's device; the copy to an accelerator does not wait for what it is doing."""
        device = self.network.device
        return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and not x.is_cuda else x
