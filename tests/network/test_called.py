"""Black boxes around Python callables: what they are given, what they may return, what they depend on, and what is said."""

from __future__ import annotations

import random
import threading
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import visx
from visx.errors import VisxError
from visx.models import Model
from visx.models.telling import notes
from visx.network.called import raw_of
from visx.network.function import Function

SIZE = 16
RISE = {"masks": 24, "cells": 4}


def corner(x: Any) -> Any:
    """(N, 3, H, W) -> (N, 3), arrays and tensors alike: the upper left quarter, its opposite, and 0."""
    bright = x[:, :, : SIZE // 2, : SIZE // 2].mean((1, 2, 3)) * 5
    stack = torch.stack if isinstance(x, Tensor) else np.stack
    return stack([bright, -bright, 0 * bright], 1)


def picture() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 120, (SIZE, SIZE, 3))
    pixels[: SIZE // 2, : SIZE // 2] += 120
    return pixels.astype(np.uint8)


def box(model: Model) -> Function:
    assert isinstance(model.source, Function)
    _ = model.anatomy
    return model.source


def rise(call: Callable[[Any], Any], **options: Any) -> Any:
    return visx.explain(visx.wrap(call, size=SIZE, **options), picture(), "rise", **RISE)


class Same(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return corner(x)


@pytest.mark.parametrize("batch", [None, 1, 5])
@pytest.mark.parametrize("takes", [None, "numpy", "torch"])
def test_it_is_explained_as_the_module_that_computes_the_same(takes: Any, batch: int | None) -> None:
    sizes: list[int] = []

    def call(x: Any) -> Any:
        assert type(x) is (Tensor if takes == "torch" else np.ndarray) and x.dtype in (torch.float32, np.float32)
        sizes.append(len(x))
        return corner(x)

    result = rise(call, takes=takes, batch=batch)
    wanted = rise(Same(), means="logits")
    np.testing.assert_allclose(result.map, wanted.map, rtol=0, atol=1e-6 * np.ptp(wanted.map))
    assert result.score == pytest.approx(wanted.score) and max(sizes) == (batch or 16)


def test_what_bears_no_array_gets_a_tensor() -> None:
    layer = nn.Linear(3, 4)
    model = visx.wrap(lambda x: layer(x.mean((2, 3))), size=SIZE)
    assert "tensors" not in box(model).about or box(model).takes == "torch"  # type: ignore[attr-defined]
    assert box(model).takes == "torch" and model.classes == 4  # type: ignore[attr-defined]


def test_channels_last_when_asked() -> None:
    shapes = set()

    def call(x: np.ndarray) -> np.ndarray:
        shapes.add(x.shape[1:])
        assert x.flags.c_contiguous
        return corner(x.transpose(0, 3, 1, 2))

    result, wanted = rise(call, layout="NHWC"), rise(corner)
    assert shapes == {(SIZE, SIZE, 3)}
    np.testing.assert_allclose(result.map, wanted.map, atol=1e-6)


Pair = namedtuple("Pair", "aux scores")


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (lambda v: v, (2, 3)),
        (lambda v: v.tolist(), (2, 3)),
        (lambda v: list(v), (2, 3)),
        (lambda v: [torch.from_numpy(row) for row in v], (2, 3)),
        (lambda v: tuple(map(tuple, v.tolist())), (2, 3)),
        (lambda v: v[:, 0], (2,)),
        (lambda v: list(v[:, 0]), (2,)),
        (lambda v: v[:, :1], (2, 1)),
        (lambda v: memoryview(v), (2, 3)),
    ],
)
def test_arrays_tensors_and_lists_are_scores(made: Callable[[np.ndarray], Any], shape: tuple[int, ...]) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    raw = raw_of(made(values), 2)
    assert isinstance(raw, Tensor) and tuple(raw.shape) == shape
    np.testing.assert_array_equal(raw.numpy().reshape(2, -1), values[:, : shape[1] if len(shape) > 1 else 1])


def test_of_several_outputs_the_head_is_picked() -> None:
    def several(x: np.ndarray) -> dict[str, Any]:
        return {"aux": corner(x)[:, :2], "scores": corner(x), "note": "text"}

    with pytest.raises(VisxError, match=r"aux \(N, 2\), scores \(N, 3\)") as caught:
        rise(several)
    assert caught.value.code == 4 and "--head" in caught.value.hint
    assert visx.wrap(several, size=SIZE, head="scores").classes == 3
    assert visx.wrap(lambda x: Pair(*(corner(x)[:, :2], corner(x))), size=SIZE, head="scores").classes == 3


@pytest.mark.parametrize(
    ("call", "options", "meaning"),
    [
        (corner, {}, "3 logits"),
        (lambda x: np.exp(corner(x)) / np.exp(corner(x)).sum(1, keepdims=True), {}, "3 probabilities that sum to one"),
        (lambda x: 1 / (1 + np.exp(-corner(x)[:, 0])), {}, "one probability"),
        (lambda x: 10 * corner(x)[:, :1], {}, "one logit"),
        (lambda x: 1 / (1 + np.exp(-corner(x))), {"means": "sigmoid"}, r"3 independent labels \(probabilities\)"),
        (lambda x: corner(x), {"means": "regression"}, "3 values of a regression"),
    ],
)
def test_the_values_decide_what_they_mean_unless_it_is_said(call: Any, options: Any, meaning: str) -> None:
    model = visx.wrap(call, size=SIZE, **options)
    assert str(model.outputs).startswith(meaning.replace("\\", "")) and not notes(model)


def test_values_within_0_and_1_that_may_be_labels_are_remarked() -> None:
    model = visx.wrap(lambda x: 1 / (1 + np.exp(-corner(x))), size=SIZE)
    assert str(model.outputs).startswith("3 logits") and "--means sigmoid" in " ".join(notes(model))


def test_global_random_numbers_follow_the_seed_and_are_restored() -> None:
    def noisy(x: np.ndarray) -> np.ndarray:
        return corner(x) + np.random.rand(len(x), 3) + random.random() + torch.rand(1).item()

    model = visx.wrap(noisy, size=SIZE)
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    maps = [visx.explain(model, picture(), "rise", seed=seed, **RISE) for seed in (0, 0, 1)]
    assert (np.random.get_state()[1] == before).all()
    assert np.array_equal(maps[0].map, maps[1].map) and not np.array_equal(maps[0].map, maps[2].map)
    assert box(model).behaviour.random and "draws random numbers" in maps[0].warnings[0]


def test_its_own_random_numbers_and_the_batch_are_noticed() -> None:
    own = np.random.default_rng(0)
    unrepeatable = visx.wrap(lambda x: corner(x) + own.random((len(x), 3)), size=SIZE)
    coupled = visx.wrap(lambda x: corner(x) - corner(x).mean(0), size=SIZE)
    assert box(unrepeatable).behaviour.unrepeatable and box(coupled).behaviour.coupled
    assert any("batch" in w for w in visx.explain(coupled, picture(), "rise", **RISE).warnings)


def test_one_picture_at_a_time_is_found_without_a_warning() -> None:
    def single(x: np.ndarray) -> np.ndarray:
        if len(x) != 1:
            raise ValueError("one picture")
        return corner(x)

    result = rise(single)
    np.testing.assert_allclose(result.map, rise(corner).map, atol=1e-6)
    assert not result.warnings


def test_what_it_writes_to_is_a_copy() -> None:
    def rude(x: np.ndarray) -> np.ndarray:
        scores = corner(x)
        x[:] = 0
        return scores

    np.testing.assert_array_equal(rise(rude).map, rise(corner).map)


def fails(x: Any) -> Any:
    raise KeyError("no such model")


def wants_two(x: Any, y: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("call", "code", "text"),
    [
        (fails, 1, r"fails on an input of 1x3x16x16: KeyError: 'no such model'"),
        (wants_two, 1, r"takes \(x: Any, y: Any\)|one batch alone"),
        (lambda x: None, 4, "returned a NoneType"),
        (lambda x: "cat", 4, "returned a str"),
        (lambda x: np.zeros((len(x), 2, 5, 5), np.float32), 4, r"\(1, 2, 5, 5\) for one image"),
        (lambda x: np.zeros(len(x), np.int64), 4, "int64"),
        (lambda x: exit(3), 1, "SystemExit"),
    ],
)  # fmt: skip
def test_failures_are_told_in_words(call: Any, code: int, text: str) -> None:
    with pytest.raises(VisxError, match=text) as caught:
        rise(call)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "size of the pictures"), ({"size": 8, "takes": "jax"}, "unknown takes"), ({"size": 8, "batch": 0}, "batch is 0"),
        ({"size": 8, "batch": True}, "batch is True"),
    ],
)  # fmt: skip
def test_wrong_arguments(options: Any, text: str) -> None:
    with pytest.raises(VisxError, match=text) as caught:
        visx.wrap(corner, **options)
    assert caught.value.code == 2


def test_takes_and_batch_are_of_a_callable() -> None:
    with pytest.raises(VisxError, match="of a callable"):
        visx.wrap(Same(), batch=2)


def test_memory_that_runs_out_halves_the_batch() -> None:
    def greedy(x: np.ndarray) -> np.ndarray:
        if len(x) > 4:
            raise MemoryError
        return corner(x)

    with pytest.warns(RuntimeWarning, match="batches of 4"):
        result = rise(greedy)
    np.testing.assert_allclose(result.map, rise(corner).map, atol=1e-6)


def test_threads_take_turns() -> None:
    inside, most = [], []

    def call(x: np.ndarray) -> np.ndarray:
        inside.append(1)
        most.append(len(inside))
        values = corner(x)
        inside.pop()
        return values

    model = visx.wrap(call, size=SIZE)
    maps: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: maps.append(visx.explain(model, picture(), "rise", **RISE).map))
        for _ in range(4)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert max(most) == 1 and len(maps) == 4 and all(np.array_equal(maps[0], m) for m in maps)


def test_the_callers_settings_do_not_hold() -> None:
    grads = set()

    def call(x: Tensor) -> Tensor:
        grads.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()))
        return corner(x)

    with torch.autocast("cpu"), torch.inference_mode():
        rise(call, takes="torch")
    assert grads == {(False, False, False)}
