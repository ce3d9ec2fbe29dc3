"""Occlusion: patch sums of a linear model, slow replicas of both variants, captum, and everything a user may get wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import visx
from oracles import class_targets
from visx.engine.batch import explain_batch
from visx.engine.jobs import plan
from visx.errors import ExitCode, VisxError
from visx.methods import get_method
from visx.methods.contract import Attribution, Request
from visx.network.memory import BatchSize
from visx.network.scorer import Scorer
from visx.ops.blur import gaussian_blur
from visx.params import parse
from visx.targets.classes import TargetSpec

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


class Counted:
    """A module as a black box that counts the copies it scores."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.copies = module.eval(), 0

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        self.copies += len(x)
        return self.module(x)


def toy(channels: int = 3) -> nn.Module:
    """A net that is not linear and takes any size."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, 2), nn.Tanh(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5),
        ).double()  # fmt: skip


class Weighted(nn.Module):
    """Two linear scores: (N, C, H, W) -> (N, 2)."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.weight = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,kchw->nk", x, self.weight)


def image(height: int, width: int, count: int = 1) -> Tensor:
    return torch.randn(count, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(height))


def explain(forward, x: Tensor, ids, batch: int = 7, kind: str = "logit", **params) -> Attribution:
    """Run without a network: scores are all that the method gets."""
    ids = torch.as_tensor(ids).expand(len(x), -1)
    forward = Counted(forward) if isinstance(forward, nn.Module) else forward
    method, params = get_method("occlusion"), {"fill": "zero", **params}
    req = Request(x, class_targets(ids), (0,) * len(x), Scorer(forward, BatchSize(batch)), kind, mean=MEAN, std=STD)
    return method.run(req, parse(method.params, params, "occlusion"))


@pytest.mark.parametrize("fill", ["zero", "mean", "grey", "black", "blur", "0.25"])
def test_disjoint_patches_of_a_linear_model_are_its_patch_sums(fill):
    net, x = Weighted(8, 12), image(8, 12)
    pixel = {"grey": 0.5, "black": 0.0, "0.25": 0.25}.get(fill, 0.0)
    hidden = (pixel - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    hidden = hidden[:, None, None].expand(3, 8, 12)
    hidden = {"zero": x[0] * 0, "mean": x[0].mean((1, 2), True), "blur": gaussian_blur(x, 10.0)[0]}.get(fill, hidden)
    found = explain(net, x, [1, 0], patch=4, stride=4, fill=fill)
    parts = net.weight * (x[0] - hidden)
    sums = parts.sum(1).view(2, 2, 4, 3, 4).sum((2, 4))[[1, 0]]
    torch.testing.assert_close(found.native[0], sums, rtol=0, atol=1e-6)
    assert torch.allclose(found.map[0], sums.repeat_interleave(4, 1).repeat_interleave(4, 2), atol=1e-6)
    assert found.map.shape == (1, 2, 8, 12) and found.native.shape == (1, 2, 2, 3)


def replica(net: nn.Module, x: Tensor, target: int, patch: int, stride: int) -> Tensor:
    """The definition, pixel by pixel: each pixel's mean over the patches that cover it, the last ones at the border."""
    height, width = x.shape[-2:]
    total, count = torch.zeros(height, width).double(), torch.zeros(height, width).double()
    clean = net(x)[0, target]
    for i in [*range(0, height - patch, stride), height - patch]:
        for j in [*range(0, width - patch, stride), width - patch]:
            y = x.clone()
            y[..., i : i + patch, j : j + patch] = 0
            total[i : i + patch, j : j + patch] += clean - net(y)[0, target]
            count[i : i + patch, j : j + patch] += 1
    return total / count


@pytest.mark.parametrize(
    ("height", "width", "patch", "stride"), [(10, 10, 4, 3), (11, 9, 4, 3), (9, 13, 5, 1), (8, 8, 8, 8)]
)
@torch.no_grad()
def test_overlapping_patches_as_defined(height, width, patch, stride):
    net, x = toy(), image(height, width)
    found = explain(net, x, [2], patch=patch, stride=stride)
    torch.testing.assert_close(found.map[0, 0], replica(net, x, 2, patch, stride), rtol=0, atol=1e-12)


def test_the_map_is_positive_where_hiding_hurts():
    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen = x[:, :, :4, :4].sum((1, 2, 3))
            return torch.stack([seen, -seen], 1)

    found = explain(Corner(), torch.ones(1, 3, 12, 12).double(), [0, 1], patch=4, stride=2)
    assert found.map[0, 0, 0, 0] == 48 and found.map[0, 1, 0, 0] == -48
    assert (found.map[0, :, 6:, 6:] == 0).all()


def test_the_last_patches_reach_the_border():
    class LastPixel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, -1, -1], x[:, 1, 0, 0]], 1)

    found = explain(LastPixel(), torch.ones(1, 3, 12, 12).double(), [0], patch=5, stride=4)
    assert found.native.shape[-2:] == (3, 3) and found.map[0, 0, -1, -1] == 1


@torch.no_grad()
def test_pad_centres_a_patch_on_every_pixel():
    """The definition of demo 3, with its sign and its row offset put right; the frame holds the fill."""
    net, x, patch = toy(), image(9, 8), 5
    frame = (0.5 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    canvas = frame[None, :, None, None].expand(1, 3, 13, 12).clone()
    canvas[..., 2:-2, 2:-2] = x
    want = torch.zeros(9, 8).double()
    for i in range(9):
        for j in range(8):
            y = canvas.clone()
            y[..., i : i + patch, j : j + patch] = frame[:, None, None]
            want[i, j] = (net(canvas) - net(y))[0, 3]
    found = explain(net, x, [3], patch=patch, stride=1, fill="grey", pad=True)
    torch.testing.assert_close(found.map[0, 0], want, rtol=0, atol=1e-6)
    coarse = explain(net, x, [3], patch=patch, stride=3, fill="grey", pad=True)
    rows, columns = [0, 3, 6, 8], [0, 3, 6, 7]
    torch.testing.assert_close(coarse.native[0, 0], want[rows][:, columns], rtol=0, atol=1e-6)
    torch.testing.assert_close(coarse.map[0, 0][rows][:, columns], want[rows][:, columns], rtol=0, atol=1e-6)
    between = want[0, 0] * 2 / 3 + want[3, 0] / 3
    torch.testing.assert_close(coarse.map[0, 0, 1, 0], between, rtol=0, atol=1e-6)


@pytest.mark.parametrize("patch", [4, 5, 9])
def test_pad_keeps_the_size_of_the_map(patch):
    found = explain(toy(), image(9, 9), [3], patch=patch, stride=1, pad=True)
    assert found.map.shape == found.native.shape == (1, 1, 9, 9)


@pytest.mark.parametrize(("patch", "stride", "same"), [(4, 2, 12), (3, 3, 12), (5, 3, 6)])
@torch.no_grad()
def test_agrees_with_captum(patch, stride, same):
    """But for the last patches where the stride does not divide the way: captum clips them, visx shifts them."""
    occluder = pytest.importorskip("captum.attr").Occlusion
    net, x = toy(), image(12, 12)
    peer = occluder(net).attribute(x, (3, patch, patch), (3, stride, stride), baselines=0, target=1).mean((0, 1))
    ours = explain(net, x, [1], patch=patch, stride=stride).map[0, 0]
    ours, peer = ours[:same, :same], peer[:same, :same].double()
    assert np.corrcoef(peer.flatten(), ours.flatten())[0, 1] >= 0.999999
    torch.testing.assert_close(ours, peer, rtol=0, atol=1e-6)  # captum answers in float32


def test_defaults_follow_the_input_and_sams_settings_are_its_3364_patches():
    class Cheap(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    net = Counted(Cheap())
    found = explain(net, image(224, 224).float(), [0], batch=64)
    assert found.extras[0][0] == {"patch": 64, "stride": 16, "passes": 122} and net.copies == 122
    assert found.native.shape == (1, 1, 11, 11)
    assert explain(net, image(32, 32).float(), [0]).extras[0][0] == {"patch": 9, "stride": 2, "passes": 170}
    assert explain(net, image(3, 5).float(), [0]).extras[0][0]["patch"] == 1
    assert [explain(net, image(*size).float(), [0]).extras[0][0]["patch"] for size in ((28, 56), (56, 28))] == [8, 8]
    from visx.methods.occlusion import _starts

    assert len(_starts(224, 53, 3)) ** 2 == 3364


def test_three_targets_are_three_runs_at_the_cost_of_one():
    net, x = Counted(toy()), image(10, 10)
    together = explain(net, x, [4, 0, 2], patch=4, stride=2, kind="prob")
    assert net.copies == 17
    for t, target in enumerate([4, 0, 2]):
        alone = explain(net, x, [target], patch=4, stride=2, kind="prob")
        torch.testing.assert_close(alone.map[:, 0], together.map[:, t], rtol=0, atol=1e-12)


def test_a_batch_is_its_images_alone_whatever_the_batch_size():
    net, x = toy(), image(10, 10, 3)
    batch = explain(net, x, [4, 1], patch=3, stride=2, fill="mean", kind="prob")
    for size in (1, 5, 64):
        for b in (2, 0, 1):
            alone = explain(net, x[b : b + 1], [4, 1], size, patch=3, stride=2, fill="mean", kind="prob")
            torch.testing.assert_close(alone.map[0], batch.map[b], rtol=0, atol=1e-12)
            torch.testing.assert_close(alone.native[0], batch.native[b], rtol=0, atol=1e-12)


def test_running_out_of_memory_changes_nothing():
    net, x, said = toy(), image(10, 10), []

    def small(batch: Tensor) -> Tensor:
        if len(batch) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return net(batch).detach()

    method = get_method("occlusion")
    p = parse(method.params, {"patch": 4, "stride": 2, "fill": "zero"}, "occlusion")
    req = Request(x, class_targets(torch.tensor([[1]])), (0,), Scorer(small, BatchSize(16, said.append)), "logit")
    torch.testing.assert_close(method.run(req, p).map, explain(net, x, [1], patch=4, stride=2).map)
    assert len(said) == 3


def test_the_image_is_not_changed_and_copies_may_be():
    net, x = toy(), image(10, 10)

    def in_place(batch: Tensor) -> Tensor:
        out = net(batch).detach()
        batch.zero_()
        return out

    before = x.clone()
    found = explain(in_place, x, [1], patch=4, stride=2)
    assert torch.equal(x, before)
    torch.testing.assert_close(found.map, explain(net, x, [1], patch=4, stride=2).map)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"patch": 13}, "patch=13 is larger than the input of 12 x 16"),
        ({"patch": 0}, "greater than or equal to 1"),
        ({"stride": 0}, "greater than or equal to 1"),
        ({"patch": 3, "stride": 4}, "leaves pixels between patches"),
        ({"fill": "1.5"}, "between 0"),
        ({"fill": "-0.1"}, "between 0"),
        ({"fill": "purple"}, "zero"),
        ({"fill": "nan"}, "fill"),
    ],
)
def test_bad_values_are_usage_errors(params, message):
    with pytest.raises(VisxError, match=message) as error:
        explain(toy(), image(12, 16), [0], **params)
    assert error.value.code == ExitCode.USAGE


def test_a_model_of_one_size_cannot_be_padded():
    with pytest.raises(VisxError, match="framed image of 12 x 12") as error:
        explain(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double(), image(8, 8), [0], patch=4, pad=True)
    assert error.value.code == ExitCode.UNSUPPORTED


@pytest.mark.parametrize("pad", [False, True])
def test_a_model_that_fails_for_reasons_of_its_own_says_so_itself(pad):
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("boom") if not pad else MemoryError

    with pytest.raises(VisxError if pad else RuntimeError, match="out of memory" if pad else "boom"):
        explain(broken, image(8, 8), [0], patch=4, pad=pad)


class Blind(nn.Module):
    """NaN for a copy whose first pixel is hidden (all of them, if told so); else a toy."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.net, self.always = toy(), always

    def forward(self, x: Tensor) -> Tensor:
        lost = (x[:, 0, 0, 0] == 0) | (torch.tensor(self.always) & (x == 0).flatten(1).any(1))
        return self.net(x).masked_fill(lost[:, None], torch.nan)


def test_scores_that_are_not_finite_are_left_out_with_a_warning():
    net, x = Blind(), image(8, 8)
    found = explain(net, x, [1, 2], patch=4, stride=2)
    full = explain(net.net, x, [1, 2], patch=4, stride=2)
    assert found.map.isfinite().all() and found.native[0, 0, 0, 0] == 0
    assert found.warned(0, 1) == ["the score of 1 of 9 occluded copies is not finite: they are left out"]
    torch.testing.assert_close(found.map[..., 4:, 4:], full.map[..., 4:, 4:])
    # pixel (2, 2) is covered by four patches, the first of which is lost
    four = full.native[0, :, :2, :2].flatten(1)
    torch.testing.assert_close(found.map[0, :, 2, 2], four[:, 1:].mean(1))
    assert (found.map[0, :, :2, :2] == 0).all(), "nothing is known of pixels that no other patch covers"


def test_no_finite_score_at_all_is_an_error_of_that_image():
    model = visx.wrap(Blind(always=True), size=8)
    picture = np.random.default_rng(0).integers(1, 255, (8, 8, 3), dtype=np.uint8)
    with pytest.raises(VisxError, match=r"not finite.*9 of 9 occluded copies"):
        visx.explain(model, picture, "occlusion", patch=4, stride=2, fill="zero")


def test_a_constant_image_that_is_its_own_fill_is_zero_with_a_reason():
    net = Counted(toy())
    found = explain(net, torch.full((1, 3, 8, 8), 0.3).double(), [1], fill="mean", patch=4)
    assert (found.map == 0).all() and "is the fill everywhere" in found.warned(0, 0)[0]
    assert net.copies == 0
    large = torch.tensor([0.1, -1.7, 2.3])[None, :, None, None].expand(1, 3, 64, 64)
    assert (explain(net, large, [1], fill="mean").map == 0).all(), "though a float32 mean is off by a bit"
    assert explain(net, torch.full((1, 3, 8, 8), 0.3).double(), [1], patch=4).warned(0, 0) == []


def test_through_the_api_the_map_has_the_size_of_the_input_and_the_module_is_untouched():
    module = toy().float().train()
    state = {k: v.clone() for k, v in module.state_dict().items()}
    picture = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    results = visx.explain(visx.wrap(module, size=(24, 20)), picture, "occlusion", target="top2", patch=6, stride=3)
    assert [r.map.shape for r in results] == [(24, 20)] * 2 and results[0].native.shape == (7, 6)
    assert results[0].score_kind == "prob" and results[0].method == "occlusion"
    assert module.training and all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    assert not any(m._forward_hooks for m in module.modules())


class Viewing(nn.Module):
    """A forward that only the plain memory layout survives; counts the images it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.seen = nn.Linear(3 * 8 * 8, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.head(x.view(len(x), -1))


@pytest.mark.parametrize("method", ["occlusion", "rise"])
def test_a_module_handed_in_gets_copies_in_the_plain_layout(method):
    model = visx.wrap(Viewing(), size=8)
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    params = {"patch": 4} if method == "occlusion" else {"masks": 5}
    assert visx.explain(model, picture, method, **params).map.shape == (8, 8)


def test_images_that_pad_a_batch_cost_no_copies():
    model = visx.wrap(Viewing(), size=8)
    (job,) = plan(model, [get_method("occlusion")], params={"occlusion": {"patch": 4, "stride": 4}})
    x, network = image(8, 8, 3).float(), model.network()
    specs = [TargetSpec("top1", top=1)] * 5
    with network.session():
        full = explain_batch(model, network, job, x, specs[:3], (1, 2, 3))
        padded, model.module.seen = x[[0, 1, 2, 2, 2]], 0
        answers = explain_batch(model, network, job, padded, specs, (1, 2, 3, 3, 3), count=3)
        assert model.module.seen == 5 + 3 * 5 and len(answers) == 3
    for one, other in zip(answers, full, strict=True):
        np.testing.assert_allclose(one[0].map, other[0].map, rtol=0, atol=1e-6)
        assert one[0].objective.index == other[0].objective.index


@pytest.mark.parametrize("score", ["prob", "logit"])
def test_scores_that_only_rounding_moves_are_said_so(score: str):
    class Saturated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((1, 2, 3))[:, None] * torch.tensor([1e-9, 0.0]) + torch.tensor([12.0, 0.0])

    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    result = visx.explain(visx.wrap(Saturated(), size=16), picture, "occlusion", score=score, target=0)
    (warning,) = result.warnings
    assert "rounding" in warning and ("--score logit" in warning) == (score == "prob")
