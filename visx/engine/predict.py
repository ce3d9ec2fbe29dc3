"""Predictions: the likeliest classes of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from visx.engine.explainer import AUTO_BATCH, Prepared, prepare, stacked
from visx.errors import VisxError
from visx.files import SCHEMA_VERSION
from visx.images.find import Item
from visx.models import Model
from visx.network.memory import BatchSize


def predictions(
    model: Model,
    items: Sequence[Item],
    top: int,
    precision: str = "fp32",
    batch_size: int | None = None,
    on_message: Callable[[str], None] = lambda text: None,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """One record an image in order: {image, model, outputs, remarks, predictions: [{target, label, probability,
    logit}]} or an error. `probability` and `logit` are the scores of these names; a regression's values stand, in their order,
    under `logit`, and `probability` is null. `on_message` gets a line when memory makes the batches smaller.
    A forward that draws random numbers draws those that `explain` has with this `seed`."""
    count = min(batch_size or AUTO_BATCH, len(items))
    size = BatchSize(count, on_message, what="image")
    for start in range(0, len(items), count):
        yield from _batch(model, items[start : start + count], top, precision, size, seed)


def _batch(
    model: Model, items: Sequence[Item], top: int, precision: str, size: BatchSize, seed: int
) -> Iterator[dict[str, Any]]:
    loaded = [_load(model, item, seed) for item in items]
    rows = _columns(model, [image for image in loaded if isinstance(image, Prepared)], precision, size)
    for item, image in zip(items, loaded, strict=True):
        record: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "image": str(item.path), "model": model.name}
        remarks = list(image.picture.remarks) if isinstance(image, Prepared) else []
        remarks += model.black_box(precision).behaviour.warnings()
        record |= {"outputs": model.outputs.identity, "remarks": remarks}
        error = image if isinstance(image, VisxError) else None
        if error is None:
            columns = next(rows)
            if columns.isfinite().all():
                record["predictions"] = _likeliest(model, columns, top)
            else:
                error = VisxError("the model's logits for this image are not finite (NaN or infinity)")
        if error is not None:
            record["error"] = {"code": int(error.code), "message": error.message, "hint": error.hint}
        yield record


def _load(model: Model, item: Item, seed: int) -> Prepared | VisxError:
    """An image decoded into the network's input, or why it is none."""
    try:
        return prepare(model, model.preprocess.decode(item.read()), seed)
    except VisxError as error:
        return error


def _columns(model: Model, images: Sequence[Prepared], precision: str, size: BatchSize) -> Iterator[torch.Tensor]:
    """The class columns (K,) of each image, on the CPU."""
    if not images:
        return iter(())
    network, x = model.black_box(precision), stacked(images)
    seeds = [image.seed for image in images]

    def work(start: int, stop: int) -> torch.Tensor:
        return network.scores_of(x[start:stop], seeds[start:stop]).float().cpu()

    with network.session():
        return iter(torch.cat(list(size.split(len(images), work))))


def _likeliest(model: Model, columns: torch.Tensor, top: int) -> list[dict[str, Any]]:
    """The `top` classes of an image by its columns (K,), or all values of a regression."""
    outputs = model.outputs
    values = outputs.table(columns[None], "logit")[0].tolist()
    chances = outputs.table(columns[None], "prob")[0].tolist() if outputs.has_probabilities else [None] * len(values)
    ids = columns.topk(top).indices.tolist() if outputs.of_classes else range(len(values))
    return [{"target": i, "label": model.label(i), "probability": chances[i], "logit": values[i]} for i in ids]
