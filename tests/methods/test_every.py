"""What holds for every registered method: see the fixture `method`. Parameters that keep it quick are in `oracles.CHEAP`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nets import CLASSES, images, seeded
from oracles import ANY_CLASS, CHEAP, PRODUCTS, answers, fingerprint, maps_of, model_of, net_for, same
from visx import Model, VisxError, methods
from visx.methods import NAMES, all_methods, get_method
from visx.methods.contract import Method

SIZE = 12


@pytest.fixture
def model(method: Method) -> Model:
    return model_of(seeded(net_for(method)), SIZE)


def test_registry_lists_every_method_file_once() -> None:
    """A file of its own for every method, and none that is forgotten in the list."""
    assert [m.name for m in all_methods()] == list(NAMES) and len(set(NAMES)) == len(NAMES)
    files = {path.stem for path in Path(methods.__file__).parent.glob("*.py")} - {"__init__", "contract"}
    assert files == set(NAMES)


def test_map_is_raw_finite_and_of_the_input_size(method: Method, model: Model) -> None:
    found = answers(model, method.name, images(2, SIZE), "top3", **CHEAP.get(method.name, {}))
    for image in found:
        assert not isinstance(image, VisxError) and len(image) == 3
        assert len({answer.objective.index for answer in image}) == 3
        for answer in image:
            assert answer.map.shape == (SIZE, SIZE) and answer.map.dtype == np.float32
            assert np.isfinite(answer.map).all()
            assert answer.channels is None or answer.channels.shape == (3, SIZE, SIZE)
            assert method.signed or answer.map.min() >= 0
            assert answer.score_kind == method.score
            assert answer.probability is not None and 0 < answer.probability < 1
    assert any(answer.map.max() > answer.map.min() for image in found for answer in image)  # type: ignore[union-attr]
    if method.signed:
        assert any(answer.map.min() < 0 for image in found for answer in image)  # type: ignore[union-attr]


def test_batch_equals_singles(method: Method, model: Model) -> None:
    x, params = images(3, SIZE), CHEAP.get(method.name, {})
    together = maps_of(answers(model, method.name, x, "2", seeds=(7, 8, 9), **params))
    for b in (2, 0, 1):
        alone = maps_of(answers(model, method.name, x[b : b + 1], "2", seeds=(7 + b,), **params))
        assert same(together[b : b + 1], alone, 1e-5)


def test_a_broken_neighbour_changes_nothing(method: Method) -> None:
    """The logits are NaN for an image whose first value is above 50, as an overflow would have it."""

    class Touchy(net_for(method)):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * torch.where(x[:, :1, :1, :1] > 50, torch.nan, 1.0))

    model = model_of(seeded(Touchy), SIZE)
    x, params = images(2, SIZE), CHEAP.get(method.name, {})
    broken = x.clone()
    broken[1, 0, 0, 0] = 100
    found = answers(model, method.name, broken, "2", **params)
    assert isinstance(found[1], VisxError) and "not finite" in found[1].message
    assert same(maps_of(found[:1]), maps_of(answers(model, method.name, x, "2", **params))[:1], 1e-5)


def test_seed_repeats_whatever_was_drawn_before(method: Method, model: Model) -> None:
    x, params = images(1, SIZE), CHEAP.get(method.name, {})
    first = maps_of(answers(model, method.name, x, "2", seeds=(3,), **params))
    torch.manual_seed(99)
    np.random.seed(99)
    again = maps_of(answers(model, method.name, x, "2", seeds=(3,), **params))
    assert np.array_equal(first, again)


@pytest.mark.parametrize("copies", [1, 3])
def test_copies_at_a_time_do_not_matter(method: Method, model: Model, copies: int) -> None:
    x, params = images(1, SIZE), CHEAP.get(method.name, {})
    few = maps_of(answers(model, method.name, x, "2", copies=copies, **params))
    assert same(few, maps_of(answers(model, method.name, x, "2", copies=64, **params)), 1e-5)


def test_top3_is_three_single_targets(method: Method, model: Model) -> None:
    x, params = images(2, SIZE), CHEAP.get(method.name, {})
    top = answers(model, method.name, x, "top3", **params)
    for b in range(2):
        for answer in top[b]:  # type: ignore[union-attr]
            (single,) = answers(model, method.name, x[b : b + 1], str(answer.objective.index), seeds=(b,), **params)
            scale = float(np.abs(single[0].map).max())  # type: ignore[index]
            assert np.abs(answer.map - single[0].map).max() <= 1e-5 * scale  # type: ignore[index]
            assert answer.score == pytest.approx(single[0].score, rel=1e-6)  # type: ignore[index]
            assert answer.objective.index == single[0].objective.index  # type: ignore[index]


def test_score_and_probability_are_the_target_s(method: Method, model: Model) -> None:
    x = images(1, SIZE)
    with torch.no_grad():
        logits = model.module(x)[0]
    (found,) = answers(model, method.name, x, "top5", **CHEAP.get(method.name, {}))
    assert [a.objective.index for a in found] == logits.argsort(descending=True).tolist() and len(found) == CLASSES  # type: ignore[union-attr]
    expected = logits if method.score == "logit" else logits.softmax(0)
    for answer in found:  # type: ignore[union-attr]
        assert answer.score == pytest.approx(float(expected[answer.objective.index]), rel=1e-6)
        assert answer.probability == pytest.approx(float(logits.softmax(0)[answer.objective.index]), rel=1e-6)


def test_maps_grow_with_the_logits(method: Method, model: Model) -> None:
    """Twice the classifier's weights, twice the map: nothing in a method rescales what it found."""
    if method.name == "meaningful_perturbation":
        pytest.skip("its map is a mask between 0 and 1")
    if method.name in ANY_CLASS | PRODUCTS:
        pytest.skip("it looks at no score" if method.name in ANY_CLASS else "it multiplies gradients of several blocks")
    x, params = images(1, SIZE), CHEAP.get(method.name, {})
    once = maps_of(answers(model, method.name, x, "2", score="logit", **params))
    with torch.no_grad():
        model.module.fc.weight *= 2
        model.module.fc.bias *= 2
    twice = maps_of(answers(model, method.name, x, "2", score="logit", **params))
    assert same(twice, (4 if method.name == "guided_gradcam" else 2) * once, 1e-5)  # a product of two gradients


@pytest.mark.parametrize(
    "name",
    [
        m.name
        for m in all_methods()
        if m.single_pass and m.score == "logit" and m.name not in ANY_CLASS | PRODUCTS | {"cam", "legrad"}
    ],
)
def test_probability_and_log_probability_are_explained(name: str) -> None:
    """dp = p d(log p), through any rule; and the logit's gradient is neither. (LeGrad's are probabilities of blocks.)"""
    model, x = model_of(seeded(net_for(get_method(name))), SIZE), images(1, SIZE)
    found = {kind: answers(model, name, x, "1", score=kind)[0][0] for kind in ("logit", "prob", "logprob")}  # type: ignore[index]
    p = found["prob"].probability
    assert found["prob"].score == p and found["logprob"].score == pytest.approx(np.log(p), rel=1e-5)
    assert same(found["prob"].map, p * found["logprob"].map, 1e-5)
    assert not same(found["logit"].map, found["logprob"].map, 1e-3)


def test_model_is_unchanged_by_an_answer(method: Method, model: Model) -> None:
    _ = model.anatomy
    before = fingerprint(model.module)
    answers(model, method.name, images(2, SIZE), "top2", **CHEAP.get(method.name, {}))
    assert fingerprint(model.module) == before
