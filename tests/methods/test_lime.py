"""LIME: closed-form answers on models that are linear in superpixels, the ridge regression re-derived, and its repeatability."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import visx
from visx.engine.batch import explain_batch
from visx.engine.jobs import plan
from visx.errors import ExitCode, VisxError
from visx.images.geometry import Placement
from visx.methods import get_method
from visx.methods.lime import LimeParams, fit, random_visibility, superpixels
from visx.network.memory import BatchSize
from visx.network.network import Network
from visx.targets.classes import TargetSpec

SIZE = 32


class Counted(nn.Module):
    """Counts the images that pass; float64."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).double())
        self.passed = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passed += len(x)
        return self.read(x)

    def read(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", x, self.weight)


class Curved(Counted):
    def read(self, x: Tensor) -> Tensor:
        return torch.tanh(super().read(x) / 40) * 3


class Chaotic(Counted):
    """A score in which no superpixel has a part of its own."""

    def read(self, x: Tensor) -> Tensor:
        return torch.sin(super().read(x) * 1e5)


class NoBlack(Counted):
    """Not finite as soon as the top left pixel is black; with `always`, wherever anything is."""

    always = False

    def read(self, x: Tensor) -> Tensor:
        black = (x == 0).flatten(1).any(1) if self.always else (x[:, :, 0, 0] == 0).all(1)
        return torch.where(black[:, None], torch.nan, super().read(x))


def pictures(count: int = 2) -> Tensor:
    """Smooth coloured images with structure, (count, 3, SIZE, SIZE) float64 on 8-bit levels, none black."""
    draws = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(2)).double()
    smooth = torch.nn.functional.interpolate(draws, (SIZE, SIZE), mode="bilinear")
    return (smooth * 200 + 20).round() / 255


def ask(module: nn.Module, x: Tensor, target="0", seeds=(11, 12), copies=16, score="logit", **params):
    """The engine's answers, `[image][target]`, for pixels as input (mean 0, deviation 1)."""
    model = visx.wrap(module, size=SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    (job,) = plan(
        model,
        [get_method("lime")],
        (),
        {"lime": {"segments": 9, "samples": 60, "hide": "mean", "significance": 0, **params}},
        score,
    )
    spec = TargetSpec(target, top=3) if target == "top3" else TargetSpec(target, index=int(target))
    network = Network(module)
    if isinstance(module, Counted):
        module.passed = 0
    with network.session():
        return explain_batch(model, network, job, x, [spec] * len(x), seeds[: len(x)], copies=BatchSize(copies))


def labels_of(image: Tensor, **params) -> np.ndarray:
    return superpixels(image.permute(1, 2, 0).numpy(), LimeParams(segments=9, **params))


def sums(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The sum of values (H, W) over each superpixel, painted back: (H, W)."""
    return np.bincount(labels.ravel(), values.ravel())[labels]


@pytest.mark.parametrize("hide,pixel", [("0.25", 0.25), ("grey", 0.5), (0.0, 0.0)])
def test_recovers_the_weights_of_a_model_that_is_linear_in_superpixels(hide, pixel):
    module, x = Counted(), pictures()
    answers = ask(module, x, hide=hide, alpha=1e-9)
    for image, (answer,) in zip(x, answers, strict=True):
        expected = sums(((image - pixel) * module.weight[0]).sum(0).detach().numpy(), labels_of(image))
        np.testing.assert_allclose(answer.map, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        assert answer.extras["r2"] == pytest.approx(1, abs=1e-9)
        assert answer.extras["local_prediction"] == pytest.approx(answer.score, abs=1e-5)
        assert answer.extras["superpixels"] == labels_of(image).max() + 1
        assert not answer.warnings


def test_hides_with_the_mean_colour_of_each_superpixel():
    module, (image,) = Counted(), pictures(1)
    labels = labels_of(image)
    means = torch.stack([torch.from_numpy(sums(c.numpy(), labels) / sums(np.ones_like(labels), labels)) for c in image])
    ((answer,),) = ask(module, image[None], alpha=1e-9)
    expected = sums(((image - means) * module.weight[0]).sum(0).detach().numpy(), labels)
    np.testing.assert_allclose(answer.map, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_random_hiding_is_seeded_by_the_image():
    module, x = Curved(), pictures(1)
    first, again, other = (ask(module, x, seeds=(s,), hide="random")[0][0].map for s in (3, 3, 4))
    assert (first == again).all() and not np.allclose(first, other)
    assert not np.allclose(first, ask(module, x, seeds=(3,), hide="grey")[0][0].map)


def test_superpixels_are_found_on_the_pixels_and_not_on_the_normalised_input():
    module, x = Curved(), pictures(1)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.1, 0.3)
    normalised = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    model = visx.wrap(module, size=SIZE, mean=mean, std=std)
    (job,) = plan(model, [get_method("lime")], (), {"lime": {"segments": 9, "significance": 0}}, "logit")
    network = Network(module)
    with network.session():
        ((answer,),) = explain_batch(model, network, job, normalised, [TargetSpec("0", index=0)], [1])
    labels = labels_of(x[0])
    for number in range(labels.max() + 1):
        assert np.ptp(answer.map[labels == number]) == 0
    assert len(np.unique(answer.map)) == labels.max() + 1


def test_the_default_map_ranks_superpixels_exactly_as_the_fit_does():
    module, x = Curved(), pictures(1)
    ((fitted,),) = ask(module, x, samples=200, significance=0)
    ((told,),) = ask(module, x, samples=200, significance=LimeParams().significance)
    order = np.argsort(fitted.map, axis=None, kind="stable")
    assert (np.diff(told.map.ravel()[order]) >= 0).all()
    assert (np.sign(told.map) == np.sign(fitted.map)).all() and not np.allclose(told.map, fitted.map)


def test_the_map_shrinks_what_does_not_stand_out():
    module, x = Curved(), pictures(1)
    ((fitted,),) = ask(module, x, samples=200)
    ((told,),) = ask(module, x, samples=200, significance=10)
    same = told.map == fitted.map
    assert 0 < len(np.unique(told.map[same])) < told.extras["significant"] < len(np.unique(fitted.map))
    assert (np.abs(told.map[~same]) < np.abs(fitted.map[~same])).all()
    assert told.extras["r2"] == fitted.extras["r2"] and told.extras["significant"] == fitted.extras["significant"]
    ((none,),) = ask(Chaotic(), x, segments=30, samples=400, significance=8)
    assert none.extras["significant"] == 0 and "stands out from chance" in none.warnings[-1]


def test_the_first_sample_is_the_whole_image_and_half_of_the_rest_is_seen():
    on = random_visibility(5, 2000, 30)
    assert on[0].all() and abs(on[1:].double().mean() - 0.5) < 0.01
    assert not (on[1] == on[2]).all()
    assert (on == random_visibility(5, 2000, 30)).all() and not (on == random_visibility(6, 2000, 30)).all()


def test_costs_its_samples_and_one_clean_pass_whatever_the_number_of_targets():
    module = Curved()
    ask(module, pictures(1))
    assert module.passed == 61
    ask(module, pictures(2), target="top3")
    assert module.passed == 2 * 61


def test_a_batch_is_its_singles_at_any_batch_size_and_repeats():
    module, x = Curved(), pictures()
    batch = ask(module, x, score="prob", copies=16)
    for b, seed in enumerate((11, 12)):
        ((single,),) = ask(module, x[b : b + 1], score="prob", seeds=(seed,), copies=7)
        np.testing.assert_allclose(batch[b][0].map, single.map, rtol=0, atol=1e-12)
    again = ask(module, x, score="prob", copies=16)
    assert all((one[0].map == two[0].map).all() for one, two in zip(batch, again, strict=True))
    other = ask(module, x, score="prob", seeds=(13, 12))
    assert not np.allclose(other[0][0].map, batch[0][0].map) and (other[1][0].map == batch[1][0].map).all()


def test_three_targets_at_once_are_three_runs():
    module, x = Curved(), pictures()
    for b, answers in enumerate(ask(module, x, target="top3", score="prob")):
        assert len({answer.objective.index for answer in answers}) == 3
        for answer in answers:
            alone = ask(module, x, target=str(answer.objective.index), score="prob")[b][0]
            np.testing.assert_allclose(answer.map, alone.map, rtol=0, atol=1e-12)
            assert answer.extras == pytest.approx(alone.extras)


def test_samples_without_a_finite_score_are_left_out_and_counted():
    module, x = NoBlack(), pictures(1)
    ((answer,),) = ask(module, x, hide="0", alpha=1e-9)
    labels = labels_of(x[0])
    corner = labels[0, 0]
    lost = int((~random_visibility(11, 60, labels.max() + 1)[:, corner]).sum())
    assert answer.warnings[0].startswith(f"{lost} of 60 samples have no finite score")
    expected = sums((x[0] * module.weight[0]).sum(0).detach().numpy(), labels)
    elsewhere = labels != corner  # where every sample shows the corner, its own weight cannot be told
    np.testing.assert_allclose(answer.map[elsewhere], expected[elsewhere], rtol=1e-5, atol=1e-4)


def test_no_finite_score_at_all_is_an_error_of_that_image_alone():
    module, x = NoBlack(), pictures()
    module.always = True
    x[0, :, 5, 5] = 0
    model_error, fine = ask(module, x, hide="0.3")
    assert isinstance(model_error, VisxError) and not isinstance(fine, VisxError)
    surrogate = fit(np.ones((4, 3), bool), np.full(4, np.nan), LimeParams())
    assert np.isnan(surrogate.weights).all() and surrogate.r2 is None


def test_warns_where_the_linear_model_is_poor_or_cannot_be():
    class Parity(Counted):
        def read(self, x: Tensor) -> Tensor:
            return torch.sin(super().read(x) * 50)

    ((poor,),) = ask(Parity(), pictures(1), samples=200)
    assert poor.extras["r2"] < 0.3 and "explains little" in poor.warnings[0]
    ((few,),) = ask(Counted(), pictures(1), samples=5)
    assert any("5 samples for" in warning for warning in few.warnings)
    flat = torch.full((1, 3, SIZE, SIZE), 0.4, dtype=torch.float64)
    ((one,),) = ask(Counted(), flat, segmenter="felzenszwalb")
    assert one.extras["superpixels"] == 1 and any("single superpixel" in warning for warning in one.warnings)
    ((constant,),) = ask(Counted(), flat)
    assert (constant.map == 0).all() and constant.extras["r2"] is None
    assert any("does not change" in warning for warning in constant.warnings)


@pytest.mark.parametrize(
    "bad", [{"samples": "1"}, {"hide": "blue"}, {"hide": "1.5"}, {"segments": "1"}, {"alpha": "-1"}, {"features": "0"}]
)
def test_bad_values_are_usage_errors(bad):
    with pytest.raises(VisxError) as caught:
        ask(Counted(), pictures(1), **bad)
    assert caught.value.code == ExitCode.USAGE and next(iter(bad)) in str(caught.value)


@pytest.mark.parametrize("segmenter", ["slic", "quickshift", "felzenszwalb"])
def test_every_segmenter_cuts_the_image_without_gaps(segmenter):
    labels = labels_of(pictures(1)[0], segmenter=segmenter, kernel_size=2, max_dist=20, min_size=20)
    assert labels.shape == (SIZE, SIZE) and (np.unique(labels) == np.arange(labels.max() + 1)).all()
    assert labels.max() > 0


def test_needs_scores_alone():
    assert get_method("lime").needs == frozenset()
    x = pictures(1)
    module = Curved()
    from visx.methods.contract import Request
    from visx.network.outputs import LOGITS
    from visx.network.scorer import Scorer
    from visx.targets.contract import Targets

    targets = Targets([TargetSpec("0", index=0)], LOGITS)
    request = Request(x, targets, (11,), Scorer(lambda c: module(c).detach()), "prob")
    found = get_method("lime").run(request, LimeParams(segments=9, samples=60, hide="mean", significance=0))
    ((expected,),) = ask(module, x, score="prob")
    np.testing.assert_allclose(found.map[0, 0].numpy(), expected.map, atol=1e-6)


def test_the_picture_shows_the_strongest_positive_superpixels_where_the_network_looked():
    module, x = Curved(), pictures(1)
    ((answer,),) = ask(module, x, show=2)
    rgb = np.full((96, 64, 3), 200, np.uint8)
    place = Placement((0.0, 16.0, 64.0, 80.0), (SIZE, SIZE))
    drawn = np.asarray(Image.open(io.BytesIO(answer.attachments["superpixels.png"](rgb, place))))
    assert drawn.shape == rgb.shape
    assert (drawn[:15] == 80).all() and (drawn[81:] == 80).all()  # not seen by the network
    strongest = np.sort(np.unique(answer.map[answer.map > 0]))[-2:]
    shown = np.kron(np.isin(answer.map, strongest), np.ones((2, 2), bool))
    inside = drawn[16:80]
    outlined = (inside == (255, 255, 0)).all(2)
    assert outlined.any()
    assert (inside[shown & ~outlined] == 200).all() and (inside[~shown & ~outlined] == 100).all()
    assert 0 < (shown & ~outlined).sum() < shown.sum()


def test_a_map_without_positive_superpixels_shows_none():
    from visx.methods.lime import _picture

    draw = _picture(np.zeros((4, 4), int), np.array([-1.0]), 5)
    drawn = np.asarray(Image.open(io.BytesIO(draw(np.full((8, 8, 3), 200, np.uint8), Placement((0, 0, 8, 8), (4, 4))))))
    assert (drawn == 100).all()


def test_agrees_with_the_lime_package():
    """Same superpixels and settings: the package's weights and ours agree as two seeds of the package do."""
    image_module = pytest.importorskip("lime.lime_image")
    from scipy.stats import spearmanr

    module, (image,) = Curved(), pictures(1)
    pixels = image.permute(1, 2, 0).numpy()
    labels = superpixels(pixels, LimeParams(segments=25))
    count = labels.max() + 1

    def classify(batch: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(np.asarray(batch)).permute(0, 3, 1, 2)).softmax(1).numpy()

    def package(seed: int) -> np.ndarray:
        found = image_module.LimeImageExplainer(random_state=seed, verbose=False).explain_instance(
            pixels, classify, labels=(0,), top_labels=None, num_samples=1000, segmentation_fn=lambda _: labels,

        )  # fmt: skip
        weights = dict(found.local_exp[0])
        return np.array([weights[i] for i in range(count)])

    def ours(seed: int) -> np.ndarray:
        ((answer,),) = ask(module, image[None], seeds=(seed,), score="prob", samples=1000, segments=25)
        return np.array([answer.map[labels == i][0] for i in range(count)])

    theirs = [package(seed) for seed in range(4)]
    mine = [ours(seed) for seed in range(4)]
    among = np.mean([spearmanr(a, b)[0] for i, a in enumerate(theirs) for b in theirs[:i]])
    across = np.mean([spearmanr(a, b)[0] for a in theirs for b in mine])
    assert across > among - 0.02
    np.testing.assert_allclose(np.mean(mine, 0), np.mean(theirs, 0), atol=0.02 * np.ptp(theirs[0]))
