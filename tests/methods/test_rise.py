"""RISE: the exact expectation over all masks, a slow replica of the paper, its standard error, and its random streams."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import visx
from oracles import class_targets
from rise_masks import slow_masks
from visx.errors import ExitCode, VisxError
from visx.methods import get_method
from visx.methods.contract import Attribution, Request
from visx.methods.rise import RandomMasks, filled, weigh
from visx.network.memory import BatchSize
from visx.network.scorer import Scorer
from visx.params import parse
from visx.seeds import generator


def toy() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5), nn.Tanh()
        ).double()


class Weighted(nn.Module):
    """Two linear scores: (N, C, H, W) -> (N, 2)."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.weight = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", x, self.weight)


def image(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(height))


def request(
    forward, x: Tensor, ids, seeds=None, batch: int = 7, kind: str = "logit", said=lambda text: None
) -> Request:
    """Without a network: scores are all that the method gets."""

    def scores(copies: Tensor) -> Tensor:
        with torch.no_grad():
            return forward(copies)

    ids = torch.as_tensor(ids).expand(len(x), -1)
    seeds = seeds or tuple(range(11, 11 + len(x)))
    return Request(
        x, class_targets(ids), seeds, Scorer(scores, BatchSize(batch, said)), kind, mean=(0.4,) * 3, std=(0.2,) * 3
    )


def explain(forward, x: Tensor, ids, params, **asked) -> Attribution:
    method = get_method("rise")
    return method.run(request(forward, x, ids, **asked), parse(method.params, params, "rise"))


@pytest.mark.parametrize("fill", ["zero", "grey"])
def test_all_masks_of_a_linear_model_give_the_exact_expectation(fill):
    """E[S m_j] / p = S(fill) + p sum_i part_i + (1 - p) part_j with p = 1/2, when all 16 masks of 2 x 2 cells weigh alike."""
    net, x = Weighted(4, 6), image(4, 6)
    grids = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)), dtype=torch.float64).view(16, 2, 2)
    masks = grids.repeat_interleave(2, 1).repeat_interleave(3, 2)
    asked = request(net, x, [0, 1])
    sums = weigh(asked, 16, lambda a, b: masks[a:b], filled(asked, 0, fill))
    hidden = torch.full_like(x[0], 0.0 if fill == "zero" else (0.5 - 0.4) / 0.2)
    parts = (net.weight * (x[0] - hidden)).sum(1).view(2, 2, 2, 2, 3).sum((2, 4))
    start = (net.weight * hidden).sum((1, 2, 3))[:, None, None]
    want = start + 0.5 * parts.sum((1, 2), keepdim=True) + 0.5 * parts
    want = want.repeat_interleave(2, 1).repeat_interleave(3, 2)
    torch.testing.assert_close(sums.by_count(0.5), want, rtol=0, atol=1e-6)
    torch.testing.assert_close(sums.by_pixel(), want, rtol=0, atol=1e-6)  # every pixel is shown by 8 of 16


@pytest.mark.parametrize(("height", "width", "cells", "p"), [(14, 21, 7, 0.5), (15, 10, 4, 0.3), (6, 6, 1, 0.5)])
@pytest.mark.parametrize("normalise", ["np", "pixel"])
def test_the_slow_replica_of_the_paper(height, width, cells, p, normalise):
    net, x, count = toy(), image(height, width), 40
    masks = slow_masks(11, count, cells, p, height, width)
    total, shown = torch.zeros(height, width).double(), torch.zeros(height, width).double()
    for m in masks:
        score = net(x * m).softmax(1)[0, 2].item()
        total, shown = total + score * m, shown + m
    want = total / (count * p) if normalise == "np" else total / shown.clamp_min(1e-12)
    params = {"masks": count, "cells": cells, "p": p, "normalise": normalise}
    found = explain(net, x, [2], params, kind="prob")
    assert found.map.shape == (1, 1, height, width)
    torch.testing.assert_close(found.map[0, 0], want, rtol=0, atol=1e-12)
    made = RandomMasks(11, cells, p, x)
    torch.testing.assert_close(torch.cat([made(0, 13), made(13, count)]), masks, rtol=0, atol=1e-12)


def test_masks_keep_p_of_every_pixel_and_use_every_shift():
    made = RandomMasks(0, 4, 0.3, image(18, 22))(0, 4000)
    assert made.min() >= 0 and made.max() <= 1 + 1e-12
    assert (made.mean(0) - 0.3).abs().max() < 0.03
    draws = torch.stack([torch.rand(18, generator=generator(0, i)) for i in range(4000)])[:, -2:]
    assert len((draws * torch.tensor([5, 6])).long().unique(dim=0)) == 30


@pytest.mark.parametrize("normalise", ["np", "pixel"])
def test_the_standard_error_is_the_maps_own_deviation(normalise):
    """Over 60 seeds the maps deviate by what each of them says; for `np` also equal to the formula of a mean."""
    net, x, n = toy(), image(8, 8), 50
    params = {"masks": n, "cells": 3, "stderr": True, "normalise": normalise}
    seeds = tuple(range(60))
    found = explain(net, x.expand(60, -1, -1, -1), [2], params, seeds=seeds, batch=50)
    errors = np.stack([np.load(io.BytesIO(found.attachments[b][0]["stderr.npy"](None, None))) for b in range(60)])
    assert errors.shape == (60, 8, 8) and errors.dtype == np.float32
    ratio = errors.mean() / found.map[:, 0].std(0).mean().item()
    assert 0.85 < ratio < 1.15
    assert found.extras[4][0]["stderr_mean"] == pytest.approx(errors[4].mean(), rel=1e-5)
    if normalise == "np":
        masks = slow_masks(7, n, 3, 0.5, 8, 8)
        values = torch.stack([net(x * m)[0, 2].detach() * m / 0.5 for m in masks])
        np.testing.assert_allclose(errors[7], (values.std(0) / n**0.5).numpy(), rtol=1e-4)


class Saturated(nn.Module):
    """In float32: one score of 0.999 that moves by some 1e-6 with what is seen, one of 0.5 that moves by a tenth."""

    def forward(self, x: Tensor) -> Tensor:
        seen = x.double().mean((1, 2, 3))
        return torch.stack([0.999 + 2e-6 * torch.sin(40 * seen), 0.5 + 0.1 * torch.cos(9 * seen)], 1).float()


@pytest.mark.parametrize("batch", [1, 7, 300])
@pytest.mark.parametrize("normalise", ["np", "pixel"])
def test_scores_that_barely_vary_keep_their_standard_error(normalise, batch):
    """In float32 against two passes in float64: the ratio's own residuals, or the values' own deviation."""
    net, x, n = Saturated(), image(8, 8).float(), 300
    params = {"masks": n, "cells": 3, "stderr": True, "normalise": normalise}
    found = explain(net, x, [0, 1], params, batch=batch)
    masks = RandomMasks(11, 3, 0.5, x)(0, n)
    scores, m = net(x * masks[:, None]).double(), masks.double()
    for target in (0, 1):
        s = scores[:, target, None, None]
        if normalise == "pixel":
            want_map = (s * m).sum(0) / m.sum(0)
            want = ((m * (s - want_map)).square().sum(0) * n / (n - 1)).sqrt() / m.sum(0)
        else:
            want_map = (s * m / 0.5).mean(0)
            want = (s * m / 0.5).std(0) / n**0.5
        error = np.load(io.BytesIO(found.attachments[0][target]["stderr.npy"](None, None)))
        np.testing.assert_allclose(error, want.numpy(), rtol=1e-4)
        np.testing.assert_allclose(found.map[0, target].numpy(), want_map.numpy(), rtol=1.5e-7)


def test_intervals_of_saturated_scores_cover_what_they_say():
    """Of 95 % intervals about the map of few masks, some 95 % hold the map of very many."""
    net, x = Saturated(), image(8, 8).float()
    m = RandomMasks(99, 3, 0.5, x)(0, 20_000).double()
    s = net(x * m[:, None].float())[:, :1, None].double() - 0.999  # float32 maps resolve 6e-8 about 0.999
    truth = (s * m).sum(0) / m.sum(0)
    covered = []
    for seed in range(40):
        asked = request(net, x, [0], (seed,))
        sums = weigh(asked, 400, RandomMasks(seed, 3, 0.5, x), filled(asked, 0), squares=True)
        off = sums.by_pixel()[0] - 0.999 - truth
        covered.append((off.abs() < 1.96 * sums.error_by_pixel()[0]).double().mean())
    assert 0.9 < torch.stack(covered).mean() < 0.99


def test_a_score_that_never_varies_has_no_standard_error():
    found = explain(lambda x: torch.full((len(x), 1), 0.999), image(8, 8).float(), [0],
                    {"masks": 50, "stderr": True, "normalise": "pixel"})  # fmt: skip
    assert found.extras[0][0]["stderr_mean"] == 0
    torch.testing.assert_close(found.map, torch.full_like(found.map, 0.999), rtol=1e-7, atol=0)


def test_a_first_batch_without_a_finite_score_is_no_reference():
    net, x = toy(), image(14, 14)
    calls = []

    def late(copies: Tensor) -> Tensor:
        calls.append(len(copies))
        return net(copies) if len(calls) > 1 else net(copies) * torch.nan

    found = explain(late, x, [2], {"masks": 30, "cells": 4, "normalise": "pixel"}, batch=10)
    kept = slow_masks(11, 30, 4, 0.5, 14, 14)[10:]
    want = torch.einsum("n,nhw->hw", net(x * kept[:, None])[:, 2].detach(), kept) / kept.sum(0)
    torch.testing.assert_close(found.map[0, 0], want, rtol=0, atol=1e-12)


def test_without_stderr_there_is_no_further_file():
    found = explain(toy(), image(8, 8), [2], {"masks": 4})
    assert found.attachments is None and found.extras[0][0] == {"masks": 4}


def test_neither_batch_size_nor_order_nor_company_nor_memory_changes_a_map():
    net, x, params = toy(), image(14, 14, 3), {"masks": 30, "cells": 4}
    whole = explain(net, x, [1, 3], params, seeds=(5, 6, 7), batch=30)
    for size in (1, 4, 16, 64):
        for b in (2, 0, 1):
            alone = explain(net, x[b : b + 1], [1, 3], params, seeds=(5 + b,), batch=size)
            torch.testing.assert_close(alone.map[0], whole.map[b], rtol=0, atol=1e-12)

    def small(copies: Tensor) -> Tensor:
        if len(copies) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return net(copies)

    said: list[str] = []
    halved = explain(small, x, [1, 3], params, seeds=(5, 6, 7), batch=16, said=said.append)
    torch.testing.assert_close(halved.map, whole.map, rtol=0, atol=1e-12)
    assert len(said) == 3


def test_another_seed_is_another_map_and_the_same_seed_the_same():
    net, x, params = toy(), image(14, 14), {"masks": 10}
    one, again, other = (explain(net, x, [1], params, seeds=(s,)).map for s in (5, 5, 6))
    assert torch.equal(one, again) and not torch.allclose(one, other)


def test_three_targets_are_three_runs_at_the_cost_of_one():
    net, x, sizes = toy(), image(14, 14), []

    def counted(copies: Tensor) -> Tensor:
        sizes.append(len(copies))
        return net(copies)

    together = explain(counted, x, [4, 0, 2], {"masks": 20}, kind="prob", batch=8)
    assert sizes == [8, 8, 4]
    for t, target in enumerate([4, 0, 2]):
        alone = explain(net, x, [target], {"masks": 20}, kind="prob")
        torch.testing.assert_close(alone.map[:, 0], together.map[:, t], rtol=0, atol=1e-12)


def test_what_is_hidden_shows_the_fill():
    seen: list[Tensor] = []

    def spy(copies: Tensor) -> Tensor:
        seen.append(copies.clone())
        return copies.mean((2, 3))

    explain(spy, image(8, 8), [0], {"masks": 6, "cells": 2, "fill": "0.9"}, batch=6)
    masks = RandomMasks(11, 2, 0.5, image(8, 8))(0, 6)[:, None]
    torch.testing.assert_close(seen[0], image(8, 8) * masks + (0.9 - 0.4) / 0.2 * (1 - masks))


@pytest.mark.parametrize("normalise", ["np", "pixel"])
def test_scores_that_are_not_finite_count_as_not_drawn(normalise):
    net, x, masks = toy(), image(14, 14), slow_masks(11, 30, 4, 0.5, 14, 14)
    lost = masks[:, 0, 0] < 0.5
    assert 5 < lost.sum() < 25

    def partly(copies: Tensor) -> Tensor:
        hidden = (copies[:, 0, 0, 0] / x[0, 0, 0, 0]) < 0.5
        return net(copies).masked_fill(hidden[:, None], torch.nan)

    found = explain(partly, x, [2], {"masks": 30, "cells": 4, "normalise": normalise, "stderr": True})
    kept = masks[~lost]
    total = torch.einsum("n,nhw->hw", net(x * kept[:, None])[:, 2].detach(), kept)
    want = total / (len(kept) * 0.5) if normalise == "np" else total / kept.sum(0)
    torch.testing.assert_close(found.map[0, 0], want, rtol=0, atol=1e-12)
    assert found.warned(0, 0) == [f"the score of {lost.sum()} of 30 masked copies is not finite: they are left out"]
    assert found.extras[0][0]["masks"] == len(kept) and np.isfinite(found.extras[0][0]["stderr_mean"])


@pytest.mark.parametrize("normalise", ["np", "pixel"])
def test_no_finite_score_at_all_is_an_error_of_that_image(normalise):
    class Blind(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)).masked_fill((x == 0).flatten(1).any(1, keepdim=True), torch.inf)

    picture = np.full((8, 8, 3), 200, np.uint8)
    with pytest.raises(VisxError, match=r"not finite.*12 of 12 masked copies"):
        visx.explain(visx.wrap(Blind(), size=8), picture, "rise", masks=12, cells=8, p=0.01, normalise=normalise)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"cells": 13}, "cells=13 are more than the input of 12 x 16"),
        ({"cells": 0}, "greater than or equal to 1"),
        ({"masks": 1}, "greater than or equal to 2"),
        ({"p": 0}, "greater than 0"),
        ({"p": 1}, "less than 1"),
        ({"fill": "2"}, "between 0"),
        ({"normalise": "sum"}, "np"),
    ],
)
def test_bad_values_are_usage_errors(params, message):
    with pytest.raises(VisxError, match=message) as error:
        explain(toy(), image(12, 16), [0], params)
    assert error.value.code == ExitCode.USAGE


def test_a_constant_image_has_a_finite_map():
    found = explain(toy(), torch.full((1, 3, 8, 8), 0.3).double(), [1], {"masks": 10, "stderr": True})
    assert found.map.isfinite().all()


def test_through_the_api_the_map_has_the_size_of_the_input_and_the_module_is_untouched():
    module = toy().float().train()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    picture = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    results = visx.explain(visx.wrap(module, size=(24, 20)), picture, "rise", target="top2", masks=9)
    assert [r.map.shape for r in results] == [(24, 20)] * 2 and results[0].score_kind == "prob"
    assert module.training and all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
