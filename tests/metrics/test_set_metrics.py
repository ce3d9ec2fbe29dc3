"""Metrics of a method over many images: the grid pointing game and the randomisation check."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from metric_toys import SIDE, Linear
from visx.errors import VisxError
from visx.metrics import get_metric
from visx.metrics.contract import Measured, Survey, Trial
from visx.network.randomize import cascade, groups

Make = Callable[..., Trial]


def survey(trials: list[Trial], probabilities: list[float] | None = None, maps: Any = None) -> Survey:
    chances = probabilities or [1.0] * len(trials)
    return Survey(trials, [t.objective.identity.index for t in trials], chances, 3, maps or (lambda count: iter(())))


def measure(name: str, of: Survey, **params: Any) -> list[Measured]:
    metric = get_metric(name)
    found: list[Measured] = metric.run(of, metric.params(**params))
    return found


def colours(make_trial: Make, count: int, explain: Any) -> list[Trial]:
    """Images of one grey value each, class i of value (i + 1) / 10."""
    trials = []
    for i in range(count):
        x = torch.full((3, SIDE, SIDE), (i + 1) / 10, dtype=torch.float64)
        trials.append(make_trial(Linear(), x, np.ones((SIDE, SIDE)), explain(i), target=i))
    return trials


def test_a_method_that_finds_its_class_wins_the_grid(make_trial: Make) -> None:
    def finds(i: int) -> Callable[[Tensor], np.ndarray]:
        return lambda mosaic: (mosaic[:, 0] - (i + 1) / 10).abs().lt(1e-9).numpy() * 2.0 - 1

    found = measure("grid_pointing", survey(colours(make_trial, 8, finds)))
    assert [m.value for m in found] == [1.0] * 8  # two mosaics of four cells
    assert [m.details["target"] for m in found] == list(range(8))  # in the order of the images


def test_shrunk_cells_make_a_mosaic_of_the_models_own_size(make_trial: Make) -> None:
    seen = []

    def finds(i: int) -> Callable[[Tensor], np.ndarray]:
        def explain(mosaic: Tensor) -> np.ndarray:
            seen.append(tuple(mosaic.shape))
            return (mosaic[:, 0] - (i + 1) / 10).abs().lt(1e-9).numpy() * 1.0

        return explain

    for grid in (2, 5):  # SIDE is no multiple of 5
        found = measure("grid_pointing", survey(colours(make_trial, 25, finds)), cells="shrunk", grid=grid)
        assert [m.value for m in found] == [1.0] * (24 if grid == 2 else 25)
    assert set(seen) == {(1, 3, SIDE, SIDE)}


def test_a_constant_map_scores_chance_and_a_blind_one_nothing(make_trial: Make) -> None:
    def everywhere(i: int) -> Callable[[Tensor], np.ndarray]:
        return lambda mosaic: np.ones((1, *mosaic.shape[-2:]))

    trials = colours(make_trial, 9, everywhere)
    assert [m.value for m in measure("grid_pointing", survey(trials))] == pytest.approx([0.25] * 8)
    assert [m.value for m in measure("grid_pointing", survey(trials), grid=3)] == pytest.approx([1 / 9] * 9)

    def floored(i: int) -> Callable[[Tensor], np.ndarray]:
        return lambda mosaic: 1 + (mosaic[:, 0] - (i + 1) / 10).abs().lt(1e-9).numpy() * 1e-6

    for one in measure("grid_pointing", survey(colours(make_trial, 4, floored))):  # positive everywhere
        assert one.value == pytest.approx(0.25, abs=1e-5)
        assert one.details["above_mean"] == pytest.approx(1) and one.details["maximum_inside"] is True
    blind = colours(make_trial, 4, lambda i: lambda mosaic: -np.ones((1, *mosaic.shape[-2:])))
    assert [m.value for m in measure("grid_pointing", survey(blind))] == [0.0] * 4


@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
def test_a_model_of_one_size_is_refused_whole_cells_and_told_of_shrunk_ones(
    make_trial: Make, error: type[Exception]
) -> None:
    def strict(mosaic: Tensor) -> np.ndarray:
        if mosaic.shape[-1] != SIDE:
            raise error(f"this model takes {SIDE} pixels")
        return np.ones((1, SIDE, SIDE))

    trials = colours(make_trial, 4, lambda i: strict)
    with pytest.raises(VisxError, match=f"takes {SIDE} pixels") as caught:
        measure("grid_pointing", survey(trials))
    assert caught.value.code == 4 and "cells=shrunk" in (caught.value.hint or "")
    assert len(measure("grid_pointing", survey(trials), cells="shrunk")) == 4


def test_only_confident_images_of_distinct_classes_play(make_trial: Make) -> None:
    trials = colours(make_trial, 4, lambda i: None)
    with pytest.raises(VisxError, match=r"needs 4 images of different classes.*there are 3") as caught:
        measure("grid_pointing", survey(trials, [1.0, 0.95, 0.9, 0.89]))
    assert caught.value.code == 2
    twins = [*trials[:3], replace(trials[3], objectives=trials[0].objectives)]
    with pytest.raises(VisxError, match="there are 3"):
        measure("grid_pointing", survey(twins))


def test_a_method_that_ignores_the_weights_scores_one_and_noise_nothing(make_trial: Make) -> None:
    random = np.random.default_rng(0)
    edges = random.normal(size=(20, 20))
    trial = make_trial(Linear(), torch.zeros(3, 20, 20, dtype=torch.float64), edges)

    def same(count: int) -> Iterator[tuple[str, list[np.ndarray]]]:
        yield from ((f"stage{i}", [edges, edges]) for i in range(count))

    found = measure("randomization", survey([trial, trial], maps=same), stages=3)
    assert [m.value for m in found] == [1.0, 1.0]
    assert [s["stage"] for s in found[0].details["stages"]] == ["stage0", "stage1", "stage2"]
    assert all(s["spearman"] == s["ssim"] == 1.0 for s in found[0].details["stages"])

    def flipped(count: int) -> Iterator[tuple[str, list[np.ndarray]]]:
        yield "head", [-edges]
        yield "all", [random.normal(size=(20, 20))]

    (one,) = measure("randomization", survey([trial], maps=flipped))
    head, everything = one.details["stages"]
    assert (head["spearman"], head["absolute_spearman"]) == (pytest.approx(-1), 1.0)
    assert abs(everything["absolute_spearman"]) < 0.2
    assert one.value == pytest.approx((1 + everything["absolute_spearman"]) / 2)


class Tokens(nn.Module):
    """Parameters where `reset_parameters` does not look: on the root, in a container, one shared, one constant."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.again = self.stem[0]
        self.head = nn.Linear(4, 2)
        self.temperature = nn.Parameter(torch.tensor(2.0))


@pytest.mark.parametrize("count", [1, 2, 3, 99])
def test_the_cascade_reaches_every_parameter_and_not_the_model(count: int) -> None:
    net = Tokens()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    changed: list[set[str]] = []
    for _, stage in cascade(net, count, 0):
        now = dict(stage.named_parameters())
        changed.append({key for key, value in now.items() if not torch.equal(value, before[key])})
    assert len(changed) == min(count, 4)
    assert all(a < b for a, b in itertools.pairwise(changed))
    assert changed[-1] == set(dict(net.named_parameters()))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    if count > 1:
        assert "head.weight" in changed[0] and "cls_token" not in changed[0]


def test_groups_run_from_the_head_and_hold_each_parameter_once() -> None:
    names = [key for _, keys in groups(Tokens(), 2) for key in keys]
    assert len(names) == len(set(names)) == 8
    assert names[0].startswith("head")


def test_randomised_parameters_keep_their_scale_and_repeat() -> None:
    net = nn.Linear(400, 50)
    runs = [dict(next(iter(cascade(net, 1, seed)))[1].named_parameters())["weight"] for seed in (4, 4, 5)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert float(runs[0].detach().std()) == pytest.approx(float(net.weight.detach().std()), rel=0.05)
    assert abs(float(torch.corrcoef(torch.stack([runs[0].flatten(), net.weight.flatten()]).detach())[0, 1])) < 0.05
