"""Predictions: the likeliest classes of images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from visx.errors import VisxError
from visx.files import SCHEMA_VERSION
from visx.images.find import Item
from visx.models import Model
from visx.seeds import image_seed


def predictions(
    model: Model, items: Sequence[Item], top: int, precision: str = "fp32", batch_size: int | None = None
) -> Iterator[dict[str, Any]]:
    """One record an image in order: {image, model, outputs, remarks, predictions: [{target, label, probability,
    logit}]} or an error. `probability` and `logit` are the scores of these names; a regression's values stand, in their order,
    under `logit`, and `probability` is null."""
    size = min(batch_size or 16, len(items))
    for start in range(0, len(items), size):
        yield from _batch(model, items[start : start + size], top, precision)


def _batch(model: Model, items: Sequence[Item], top: int, precision: str) -> Iterator[dict[str, Any]]:
    loaded: list[np.ndarray | VisxError] = []
    remarks: dict[Item, list[str]] = {}
    seeds: list[int] = []  # those that `explain` has by default
    for item in items:
        try:
            picture = model.preprocess.decode(item.read())
            remarks[item] = list(picture.remarks)
            loaded.append(model.preprocess(picture.pixels)[0])
            seeds.append(image_seed(0, picture.digest))
        except VisxError as broken:
            loaded.append(broken)
    arrays = [x for x in loaded if isinstance(x, np.ndarray)]
    network, outputs = model.network(precision), model.outputs
    rows: Iterator[torch.Tensor] = iter(())
    if arrays:
        with network.session():
            rows = iter(network.scores_of(torch.from_numpy(np.stack(arrays)), seeds).float().cpu())
    for item, x in zip(items, loaded, strict=True):
        record: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "image": str(item.path), "model": model.name}
        record |= {"outputs": outputs.identity, "remarks": remarks.get(item, []) + network.behaviour.warnings()}
        error = x if isinstance(x, VisxError) else None
        if error is None:
            logits = next(rows)
            if logits.isfinite().all():
                record["predictions"] = _likeliest(model, logits, top)
            else:
                error = VisxError("the model's logits for this image are not finite (NaN or infinity)")
        if error is not None:
            record["error"] = {"code": int(error.code), "message": error.message, "hint": error.hint}
        yield record


def _likeliest(model: Model, columns: torch.Tensor, top: int) -> list[dict[str, Any]]:
    """The `top` classes of an image by its columns (K,), or all values of a regression."""
    outputs = model.outputs
    values = outputs.table(columns[None], "logit")[0].tolist()
    chances = outputs.table(columns[None], "prob")[0].tolist() if outputs.has_probabilities else [None] * len(values)
    ids = columns.topk(top).indices.tolist() if outputs.of_classes else range(len(values))
    return [{"target": i, "label": model.label(i), "probability": chances[i], "logit": values[i]} for i in ids]
