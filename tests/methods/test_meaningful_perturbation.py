"""Meaningful perturbation: it finds the square that a model reads, and equals the paper's loop written plainly."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

import visx
from visx.engine.batch import explain_batch
from visx.engine.jobs import plan
from visx.errors import ExitCode, VisxError
from visx.images.geometry import Placement
from visx.methods import get_method
from visx.network.memory import BatchSize
from visx.network.network import Network
from visx.ops.blur import gaussian_blur
from visx.seeds import generator
from visx.targets.classes import TargetSpec

SIZE = 32
SQUARE = (slice(8, 16), slice(16, 28))
SEEDS = (21, 22)


class Counted(nn.Module):
    """Counts passes and the images in them; float64. Three classes: two linear in textures, one constant."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double()
        self.weight = nn.Parameter(draw / 12)
        self.passed: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passed.append(len(x))
        return self.read(x)

    def read(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.einsum("bchw,kchw->bk", x, self.weight)) * 2


class ReadsSquare(Counted):
    """Sure of class 0 where the square has the texture of the first picture; blurred, it is gone."""

    def read(self, x: Tensor) -> Tensor:
        texture = pictures()[0][:, SQUARE[0], SQUARE[1]]
        seen = (x[:, :, SQUARE[0], SQUARE[1]] * texture).mean((1, 2, 3)) / (texture**2).mean()
        return torch.stack([12 * seen - 6, 0 * seen], 1)


def pictures(count: int = 2) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)).double()


def ask(module: nn.Module, x: Tensor, target="0", seeds=SEEDS, copies=16, score="prob", **params):
    """The engine's answers, `[image][target]`."""
    model = visx.wrap(module, size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    params = {"mask_size": 8, "iterations": 12, "blur_radius": 3.0, **params}
    (job,) = plan(model, [get_method("meaningful_perturbation")], (), {"meaningful_perturbation": params}, score)
    spec = TargetSpec(target, top=3) if target == "top3" else TargetSpec(target, index=int(target))
    network = Network(module)
    if isinstance(module, Counted):
        module.passed = []
    with network.session():
        return explain_batch(model, network, job, x, [spec] * len(x), seeds[: len(x)], copies=BatchSize(copies))


@pytest.mark.parametrize("tv,leaked", [(0.0, 0.0), (1e-3, 0.2)])
def test_finds_the_square_that_the_model_reads(tv, leaked):
    ((answer,),) = ask(
        ReadsSquare(), pictures(1), mask_size=16, iterations=80, l1=1e-3, tv=tv, jitter=0, final_blur=0, init="ones",
        tv_beta=3, upsample="nearest",
    )  # fmt: skip
    inside = np.zeros((SIZE, SIZE), bool)
    inside[SQUARE] = True
    found = answer.map > 0.5
    assert not (found & ~inside).any() and found.sum() > 0.4 * inside.sum()
    assert answer.map[~inside].sum() <= leaked * answer.map.sum()
    assert answer.extras["score_start"] > 0.99 and answer.extras["score_end"] < 0.1
    assert answer.extras["score_start"] == pytest.approx(answer.score)
    assert answer.extras["area"] == pytest.approx(answer.map.mean(), abs=1e-6)
    assert not answer.warnings


class HardlySees(ReadsSquare):
    """As sure of the square as a probability of a hundredth lets it be."""

    def read(self, x: Tensor) -> Tensor:
        return torch.cat([super().read(x) + torch.tensor([1.4, 0.0]), x.new_full((len(x), 1), 12.0)], 1)


def test_weights_left_out_go_with_what_there_is_to_gain():
    """A class of probability 0.01 is found as one of 0.99 is; fixed weights let its mask melt away."""
    params = {"mask_size": 16, "iterations": 150, "jitter": 0, "final_blur": 0}
    inside = np.zeros((SIZE, SIZE), bool)
    inside[SQUARE] = True
    for module, seen in ((ReadsSquare(), 0.99), (HardlySees(), 0.01)):
        ((answer,),) = ask(module, pictures(1), **params)
        assert answer.score == pytest.approx(seen, rel=0.2)
        assert answer.extras["score_end"] < 0.2 * answer.score
        assert answer.map[inside].sum() > 0.6 * answer.map.sum()
    ((fixed,),) = ask(HardlySees(), pictures(1), **params, l1=2e-3, tv=1e-2)
    assert fixed.extras["score_end"] > 0.9 * fixed.score


@pytest.mark.parametrize("given", [{}, {"l1": 0.01}, {"tv": 0.03}])
def test_weights_left_out_are_parts_of_the_fall_that_blurring_everything_brings(given):
    x = pictures()
    blurred = gaussian_blur(x, 3.0)
    with torch.no_grad():
        clean, gone = (Counted().read(v).softmax(1) for v in (x, blurred))
    answers = ask(Counted(), x, target="top3", **given)
    for b, of_image in enumerate(answers):
        for answer in of_image:
            gain = float((clean - gone)[b, answer.objective.index].abs())
            weights = {"l1": 2e-3 * gain, "tv": 1e-2 * gain, **given}
            alone = ask(Counted(), x, target=str(answer.objective.index), **weights)[b][0]
            np.testing.assert_allclose(answer.map, alone.map, rtol=0, atol=1e-5)


def naive(module: Counted, x: Tensor, seed: int, p: dict, start: Tensor) -> np.ndarray:
    """One image, one target, the paper's loop with Adam written out; the coarse mask (s, s) it ends with."""
    blurred = gaussian_blur(x[None], p["blur_radius"])[0]
    jitter, size = p["jitter"], x.shape[-1]
    draws = torch.randint(0, max(1, jitter), (p["iterations"], 2), generator=generator(seed, "jitter"))
    pad = ((0, 0), (jitter // 2, jitter - jitter // 2), (jitter // 2, jitter - jitter // 2))
    wide, wide_blurred = (torch.from_numpy(np.pad(v.numpy(), pad, mode="edge")) for v in (x, blurred))
    mask, first, second = start.clone(), 0.0, 0.0
    for step in range(p["iterations"]):
        mask = mask.detach().requires_grad_()
        grown = F.interpolate(mask[None, None], (size, size), mode=p["upsample"])[0]
        top, left = draws[step].tolist()
        window = (slice(None), slice(top, top + size), slice(left, left + size))
        copy = wide[window] * grown + wide_blurred[window] * (1 - grown)
        loss = module(copy[None]).softmax(1)[0, 0]
        loss = loss + p["l1"] * (1 - mask).abs().sum()
        loss = loss + p["tv"] * ((mask[1:] - mask[:-1]).abs() ** p["tv_beta"]).sum()
        loss = loss + p["tv"] * ((mask[:, 1:] - mask[:, :-1]).abs() ** p["tv_beta"]).sum()
        (grad,) = torch.autograd.grad(loss, mask)
        first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
        hat = (first / (1 - 0.9 ** (step + 1))) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        mask = (mask.detach() - p["lr"] * hat).clamp(0, 1)
    return mask.numpy()


def plain_discs(mask_size: int) -> list[np.ndarray]:
    """Masks (mask_size, mask_size) that keep everything but a blurred disc, by growing radius."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    unit, cell = SIZE / 224, SIZE // mask_size
    sigma = 10 * unit
    masks = []
    for radius in np.arange(0, 171, 5) * unit:
        disc = gaussian_filter((x**2 + y**2 <= radius**2).astype(float), sigma, mode="nearest", radius=int(np.ceil(3 * sigma)))  # fmt: skip
        masks.append(1 - disc.reshape(mask_size, cell, mask_size, cell).mean((1, 3)))
    return masks


@pytest.mark.parametrize("init", ["circular", "ones", "random"])
@pytest.mark.parametrize("jitter,upsample", [(0, "nearest"), (4, "nearest"), (3, "bilinear")])
def test_equals_the_loop_of_the_paper(init, jitter, upsample):
    module, (x,) = Counted(), pictures(1)
    p = {"iterations": 12, "blur_radius": 3.0, "jitter": jitter, "upsample": upsample, "tv_beta": 2.5, "tv": 0.02,
         "l1": 3e-3, "lr": 0.07}  # fmt: skip
    start = torch.ones(8, 8).double()
    if init == "random":
        start = torch.rand(1, 8, 8, generator=generator(SEEDS[0], "mask"))[0].double()
    if init == "circular":
        blurred = gaussian_blur(x[None], 3.0)[0]
        masks = plain_discs(8)

        @torch.no_grad()
        def scored(mask: np.ndarray) -> float:
            grown = F.interpolate(torch.from_numpy(mask)[None, None], (SIZE, SIZE), mode=upsample)[0]
            return float(module((x * grown + blurred * (1 - grown))[None]).softmax(1)[0, 0])

        scores, clean = np.array([scored(mask) for mask in masks]), scored(np.ones((8, 8)))
        left = (scores - scores[-1]) / (clean - scores[-1])
        smallest = next(i for i, part in enumerate(left) if part < 0.01)
        assert 0 < smallest < len(masks) - 1
        start = torch.from_numpy(masks[smallest])
    ((answer,),) = ask(module, x[None], init=init, **p)
    expected = naive(module, x, SEEDS[0], p, start)
    assert np.abs(expected - start.numpy()).mean() > 0.02
    np.testing.assert_allclose(answer.native, 1 - expected, rtol=0, atol=1e-6)
    grown = F.interpolate(torch.from_numpy(expected)[None, None], (SIZE, SIZE), mode=upsample)
    np.testing.assert_allclose(answer.map, 1 - gaussian_blur(grown, 1.0)[0, 0].numpy(), rtol=0, atol=1e-6)


def test_the_end_score_is_of_the_map_that_is_returned():
    module, x = Counted(), pictures(1)
    ((answer,),) = ask(module, x)
    mask = 1 - torch.from_numpy(answer.map).double()
    copy = x * mask + gaussian_blur(x, 3.0) * (1 - mask)
    assert answer.extras["score_end"] == pytest.approx(module(copy).softmax(1)[0, 0].item(), abs=1e-6)


def test_the_map_lies_between_zero_and_one():
    for init in ("circular", "random"):
        for (answer,) in ask(Counted(), pictures(), init=init, lr=0.5):
            assert answer.map.min() >= 0 and answer.map.max() <= 1 and answer.map.std() > 0.01


def test_a_batch_is_its_singles_at_any_batch_size_and_repeats():
    module, x = Counted(), pictures()
    batch = ask(module, x, target="top3", copies=4)
    for b in range(2):
        (single,) = ask(module, x[b : b + 1], target="top3", seeds=SEEDS[b : b + 1], copies=1)
        for one, two in zip(batch[b], single, strict=True):
            np.testing.assert_allclose(one.map, two.map, rtol=0, atol=1e-6)
            assert one.extras == pytest.approx(two.extras, abs=1e-6)
    again = ask(module, x, target="top3", copies=4)
    assert all((one.map == two.map).all() for a, b in zip(batch, again, strict=True) for one, two in zip(a, b, strict=True))  # fmt: skip


def test_the_seed_moves_the_jitter_and_the_random_start_alone():
    module, x = Counted(), pictures(1)

    def maps(**params) -> tuple[np.ndarray, np.ndarray]:
        return tuple(ask(module, x, seeds=(seed,), **params)[0][0].map for seed in (1, 2))

    for params in ({"jitter": 4}, {"jitter": 0, "init": "random"}):
        one, two = maps(**params)
        assert not np.allclose(one, two, atol=1e-3)
    one, two = maps(jitter=0)
    assert (one == two).all()


def test_three_targets_at_once_are_three_runs():
    module, x = Counted(), pictures()
    for b, answers in enumerate(ask(module, x, target="top3")):
        assert len({answer.objective.index for answer in answers}) == 3
        for answer in answers:
            alone = ask(module, x, target=str(answer.objective.index))[b][0]
            np.testing.assert_allclose(answer.map, alone.map, rtol=0, atol=1e-6)
            assert answer.extras == pytest.approx(alone.extras, abs=1e-6)


def test_images_and_targets_share_each_pass():
    module, x = Counted(), pictures()
    fixed = {"iterations": 7, "l1": 1e-3, "tv": 1e-2}
    ask(module, x, target="top3", init="ones", **fixed)
    assert module.passed == [2] + 7 * [6] + 2 * [4]  # clean, the steps, then start and three ends an image
    ask(module, x, target="top3", init="ones", **fixed, copies=4)
    assert module.passed == [2] + 7 * [4] + 7 * [2] + 2 * [4]
    ask(module, x, target="top3", init="circular", **fixed, copies=36)
    assert module.passed == [2, 36, 36] + 7 * [6] + 2 * [4]
    ask(module, x, target="top3", init="ones", iterations=7)
    assert module.passed == [2, 2, 2] + 7 * [6] + 2 * [4]  # what there is to gain, an image


def test_frames_show_the_mask_on_its_way():
    module, x = Counted(), pictures(1)
    ((answer,),) = ask(module, x, frames=4, iterations=9, init="ones", target="0")
    rgb = np.full((900, 600, 3), 120, np.uint8)
    data = answer.attachments["evolution.gif"](rgb, Placement((0.0, 150.0, 600.0, 750.0), (SIZE, SIZE)))
    with Image.open(io.BytesIO(data)) as animation:
        assert animation.format == "GIF" and animation.is_animated and animation.n_frames == 4
        assert animation.size == (267, 400)
        frames = []
        for number in range(4):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")).astype(int))
    assert np.ptp(frames[0][70:330].reshape(-1, 3), axis=0).max() <= 8  # it starts with nothing hidden anywhere
    assert np.ptp(frames[-1][70:330].reshape(-1, 3), axis=0).max() > 60
    assert not ask(module, x)[0][0].attachments


def test_warns_where_no_mask_lowers_the_score():
    class Sure(Counted):
        def read(self, x: Tensor) -> Tensor:
            return super().read(x) * 1e-3 + torch.tensor([3.0, 0.0, 0.0]).double()

    ((answer,),) = ask(Sure(), pictures(1))
    assert "lowers the score from 0.909 to 0.909 only" in answer.warnings[0]


def test_warning_says_where_blurring_raises_the_score():
    class Likes(Counted):
        def read(self, x: Tensor) -> Tensor:
            rough = x.diff(dim=-1).abs().mean((1, 2, 3))  # blurring makes it smaller
            return torch.stack([-rough, rough, 0 * rough], 1) * 1e-3

    ((answer,),) = ask(Likes(), pictures(1), target=0)
    assert answer.extras["score_end"] > answer.extras["score_start"]
    assert "does not lower the score" in answer.warnings[0]


def test_one_image_without_numbers_leaves_the_others_alone():
    class Breaks(Counted):
        def read(self, x: Tensor) -> Tensor:
            marked = (x[:, 0, 0, 0] > 5)[:, None]  # the first image; not finite, and without a gradient, once blurred
            blended = marked & (x[:, 0, :1, 0] != 50)
            scores = super().read(x)
            return scores * torch.where(blended, torch.nan, 1.0)

    module, x = Breaks(), pictures()
    x[:, 0, 0, 0] = torch.tensor([50.0, 0.0])
    broken, (fine,) = ask(module, x, init="random", jitter=0)
    assert isinstance(broken, VisxError) and "not finite" in broken.message
    ((alone,),) = ask(module, x[1:], init="random", jitter=0, seeds=SEEDS[1:])
    np.testing.assert_allclose(fine.map, alone.map, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [{"mask_size": 33}, {"mask_size": 1}, {"init": "square"}, {"tv_beta": 0.5}, {"lr": 0}])
def test_bad_values_are_usage_errors(bad):
    with pytest.raises(VisxError) as caught:
        ask(Counted(), pictures(1), **bad)
    assert caught.value.code == ExitCode.USAGE and next(iter(bad)) in str(caught.value)


def test_the_model_keeps_no_gradients():
    module = Counted()
    ask(module, pictures(1))
    assert module.weight.grad is None and module.weight.requires_grad and module.training
