"""What `visx.wrap` takes, and what it says of anything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import visx
from odd_networks import Base
from visx.errors import ExitCode, VisxError

NAMES = [f"c{i}" for i in range(10)]


@pytest.mark.parametrize(
    "labels",
    [
        NAMES,
        tuple(NAMES),
        np.array(NAMES),
        (name for name in NAMES),
        dict(enumerate(NAMES)),
        {np.int64(i): name for i, name in enumerate(NAMES)},
        {str(i): name for i, name in enumerate(NAMES)},
        {name: i for i, name in reversed(list(enumerate(NAMES)))},
        {name: np.int64(i) for i, name in enumerate(NAMES)},
    ],
)
def test_labels_of_any_kind(labels: Any) -> None:
    assert visx.wrap(Base(), labels=labels).labels == tuple(NAMES)


def test_labels_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    assert visx.wrap(Base(), labels=tmp_path / "names.txt").labels == tuple(NAMES)
    assert visx.wrap(Base(), labels=str(tmp_path / "names.txt")).labels == tuple(NAMES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": set(NAMES)}, "which class has which name"),
        ({"labels": b"ab"}, "which class has which name"),
        ({"labels": {1: "a"}}, "the indices are not 0, 1, 2"),
        ({"labels": 3}, "labels are 3"),
        ({"labels": []}, "no names"),
        ({"labels": ["a", None]}, "a class has no name"),
        ({"labels": "nowhere.txt"}, "cannot read the labels nowhere.txt"),
        ({"size": 0}, "size 0"),
        ({"size": True}, "size True"),
        ({"size": "224"}, "size '224'"),
        ({"size": (64, 64, 3)}, "size (64, 64, 3)"),
        ({"size": 64.5}, "size 64.5"),
        ({"resize": (1, 2, 3)}, "resize (1, 2, 3)"),
        ({"mean": 0.5}, "mean has 1 numbers and std 3"),
        ({"mean": "abc", "std": "abc"}, "mean 'abc'"),
        ({"mean": [0.5, 0.5, float("nan")]}, "mean [0.5, 0.5, nan]"),
        ({"std": [1, 1, 0]}, "std 0"),
        ({"interpolation": 3}, "unknown interpolation"),
        ({"name": 3}, "name is 3"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], words: str) -> None:
    with pytest.raises(VisxError) as caught:
        visx.wrap(Base(), **options)
    assert caught.value.code == ExitCode.USAGE
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("module", "words"),
    [(Base, "the class Base"), ("resnet50", "the name 'resnet50'"), (None, "a NoneType"), (2.5, "a float")],
)
def test_what_is_no_module(module: Any, words: str) -> None:
    with pytest.raises(VisxError, match=words) as caught:
        visx.wrap(module)
    assert "visx.wrap(Net())" in caught.value.hint


@pytest.mark.parametrize("size", [np.int64(64), torch.Size((64, 64)), [64, np.int32(64)]])
def test_sizes_of_any_whole_number(size: Any) -> None:
    assert visx.wrap(Base(), size=size).input_size == (64, 64)


@pytest.mark.parametrize("mean", [np.full(3, 0.5), torch.full((3,), 0.5), [0.5] * 3, (0.5 for _ in range(3))])
def test_means_of_any_sequence(mean: Any) -> None:
    assert visx.wrap(Base(), mean=mean).preprocess.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("lazy", [False, True])
def test_a_module_made_inside_inference_mode_has_scores_alone(lazy: bool) -> None:
    with torch.inference_mode():
        conv, head = (nn.LazyConv2d(4, 3), nn.LazyLinear(5)) if lazy else (nn.Conv2d(3, 4, 3), nn.Linear(784, 5))
        model = visx.wrap(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head), size=16, resize=16)
    picture = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    assert np.ptp(visx.explain(model, picture, "occlusion", patch=8, stride=8).map) > 0
    with pytest.raises(VisxError, match=r"fails where gradients are recorded.*[Ii]nference tensors") as caught:
        visx.explain(model, picture, "backprop")
    assert caught.value.code == ExitCode.UNSUPPORTED
