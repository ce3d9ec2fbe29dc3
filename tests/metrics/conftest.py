"""Trials around toy models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metric_toys import SIDE, Counted
from visx.metrics.contract import Trial
from visx.network.memory import BatchSize
from visx.network.outputs import LOGITS
from visx.network.scorer import Scorer
from visx.targets.classes import Column
from visx.targets.contract import Objectives


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    """make_trial(net, x, values, ...) -> a trial of class 0; its scorer's `forward` is `Counted`."""

    def make(net: nn.Module, x: Tensor, values: np.ndarray, explain: Any = None, **changed: Any) -> Trial:
        fields = {"seed": 11, "kind": "logit", "batch": 7, **changed}
        objectives = Objectives([[Column.of(fields.pop("target", 0), LOGITS, None)]], LOGITS)
        score = Scorer(Counted(net), BatchSize(fields.pop("batch")))
        return Trial(
            x=x, values=values, objectives=objectives, score=score, explain=explain or (lambda inputs: None), **fields
        )

    return make


@pytest.fixture
def pixels() -> Tensor:
    """An image (3, SIDE, SIDE) float64 with values in (0.05, 0.95)."""
    random = torch.Generator().manual_seed(1)
    return torch.rand(3, SIDE, SIDE, generator=random, dtype=torch.float64) * 0.9 + 0.05
