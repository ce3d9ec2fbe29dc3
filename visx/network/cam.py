"""One pass that also returns what CAM needs: the features that the classifier averages, and its weight."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from visx.network.head import cam_head
from visx.network.isolation import hooked
from visx.network.network import Network
from visx.network.trace import recording


class CamHead(NamedTuple):
    """The features (B, C', h, w) that a classifier averages over space, what it multiplies the average with (K, C'), and,
    where it divides an image's average by its standard deviation, one over that (B,); each in the dtype that the model
    computed it in, or in float32."""

    features: Tensor
    weight: Tensor
    scale: Tensor | None


def features_and_weight(network: Network, x: Tensor) -> tuple[Tensor, CamHead | None]:
    """One forward pass without gradients over pictures (B, C, H, W): the class columns (B, K), and the head; None where the
    model has no such classifier, or where the features' axis of positions is no grid that is known."""
    raw: list[Any] = []
    hook = hooked(network.module, lambda m, args, output: raw.append(output))
    with torch.no_grad(), hook, recording(network.module, runs=False, operations=False) as record:
        logits = network.logits(x)
    head = cam_head(record, record.state(network.outputs.tensor(raw[-1]))) if raw else None
    if head is None:
        return logits, None
    features, weight = head.features.tensor, head.weight.tensor
    assert features is not None and weight is not None, "a record keeps its tensors until it is closed"
    if head.last_axis:  # features (B, positions, C') or (B, h, w, C'): the grid says how positions lie in the picture
        known = network.record(x.shape[1:])
        recorded = cam_head(known, known.score)
        grid = recorded.grid() if recorded is not None else None
        if grid is None:
            return logits, None
        features = grid.maps(features)
    weight, scale = head.norm.fold(weight.flatten(1)) if head.norm is not None else (weight.flatten(1), None)
    return logits, CamHead(features, torch.cat([-weight, weight]) if network.outputs.single else weight, scale)
