"""The black box: what only scores goes through the methods, the metrics and a run, and is asked for nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import visx
from visx.engine.batch import explain_batch
from visx.engine.explainer import Explainer
from visx.engine.jobs import plan
from visx.errors import VisxError
from visx.evaluate.bench import Bench, explain_all
from visx.images.find import Item
from visx.images.geometry import Preprocess
from visx.methods import all_methods, get_method
from visx.methods.contract import Method
from visx.metrics import get_metric
from visx.models.model import Model, Weights
from visx.network.blackbox import BlackBox
from visx.network.network import Network
from visx.network.outputs import Outputs
from visx.params import Params
from visx.store.settings import Settings

SIZE = 24
CHEAP: dict[str, dict[str, Any]] = {
    "occlusion": {"patch": 8, "stride": 4},
    "rise": {"masks": 300, "cells": 4},
    "lime": {"samples": 120, "segments": 16},
}


def bright_corner(x: np.ndarray) -> np.ndarray:
    """Pictures (N, 3, H, W) -> scores (N, 3): how bright the upper left quarter is, its opposite, and 0."""
    corner = x[:, :, : SIZE // 2, : SIZE // 2].mean((1, 2, 3)) * 5
    return np.stack([corner, -corner, 0 * corner], 1)


class Function(BlackBox):
    """A Python function of arrays."""

    outputs = Outputs("logits", classes=3)

    def __init__(self, function: Callable[[np.ndarray], np.ndarray]) -> None:
        self.function, self.pictures = function, 0

    def scores_of(self, x: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        self.pictures += len(x)
        return self.outputs.values(torch.from_numpy(self.function(x.numpy())), len(x))


class Same(nn.Module):
    """The function as a module."""

    def forward(self, x: Tensor) -> Tensor:
        corner = x[:, :, : SIZE // 2, : SIZE // 2].mean((1, 2, 3)) * 5
        return torch.stack([corner, -corner, 0 * corner], 1)


def model_of(source: Any, **fields: Any) -> Model:
    preprocess = Preprocess(SIZE, (SIZE, SIZE), mean=(0.5,) * 3, std=(0.5,) * 3)
    return Model("own", source, preprocess, Weights("own", "0"), **fields)


def picture() -> np.ndarray:
    """(SIZE, SIZE, 3) uint8: noise, brighter in the upper left quarter."""
    pixels = np.random.default_rng(0).integers(0, 120, (SIZE, SIZE, 3))
    pixels[: SIZE // 2, : SIZE // 2] += 120
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("name", CHEAP)
def test_a_python_function_is_explained_as_the_module_that_computes_the_same(name: str) -> None:
    box = Function(bright_corner)
    result = visx.explain(model_of(box), picture(), name, **CHEAP[name])
    wanted = visx.explain(model_of(Same(), means="logits"), picture(), name, **CHEAP[name])
    assert box.pictures > 16 and result.target == wanted.target == 0 and result.score == pytest.approx(wanted.score)
    np.testing.assert_allclose(result.map, wanted.map, rtol=0, atol=1e-5 * np.ptp(wanted.map))
    inside = result.map[: SIZE // 2, : SIZE // 2].mean()
    assert inside > result.map[SIZE // 2 :, SIZE // 2 :].mean()


@pytest.mark.parametrize("method", all_methods(), ids=lambda method: method.name)
def test_what_needs_more_than_scores_is_refused_with_the_reason(method: Method) -> None:
    model = model_of(Function(bright_corner))
    if not method.needs:
        assert plan(model, [method])[0].layer is None
        return
    with pytest.raises(VisxError, match="only gives scores") as caught:
        plan(model, [method])
    assert caught.value.code == 4
    assert all(need in caught.value.message for need in (["gradients"] if "grad" in method.needs else []))
    assert "rise" in str(caught.value.hint)


def test_of_several_methods_the_fitting_ones_are_done() -> None:
    unfit: list[VisxError] = []
    jobs = plan(model_of(Function(bright_corner)), [get_method("gradcam"), get_method("rise")], on_unfit=unfit.append)
    assert [job.method.name for job in jobs] == ["rise"] and len(unfit) == 1


def test_a_need_that_nothing_checks_is_no_need() -> None:
    method = Method(
        "own", "cam", "", "", frozenset({"gard"}), "logit", False, "overlay", "few", Params, lambda r, p: None
    )  # type: ignore[arg-type,return-value]
    with pytest.raises(VisxError, match="gard") as caught:
        plan(model_of(Function(bright_corner)), [method])
    assert caught.value.code == 2


def test_a_run_and_its_metrics(tmp_path: Path) -> None:
    """From a folder to maps, records and measured values; resumed, nothing is scored again."""
    from PIL import Image

    Image.fromarray(picture()).save(tmp_path / "a.png")
    box = Function(bright_corner)
    model, items = model_of(box), [Item(tmp_path / "a.png", "a.png")]
    jobs = plan(model, [get_method("occlusion")], params={"occlusion": CHEAP["occlusion"]})
    settings = Settings(tmp_path / "out", model.targets(["top1"]))
    maps = explain_all(model, jobs, items, settings)
    assert (
        maps.written == 1
        and maps.samples[0].record.target == 0
        and maps.samples[0].record.outputs == {"kind": "logits"}
    )
    seen = box.pictures
    assert explain_all(model, jobs, items, settings).skipped == 1 and box.pictures == seen
    bench = Bench(Explainer(model, model.black_box()))
    values = {}
    for name in ("insertion", "deletion"):
        metric = get_metric(name)
        values[name] = bench.measure(maps.samples[0], metric, metric.params(steps=12)).value
    assert 0 < values["deletion"] < values["insertion"] < 1 and box.pictures >= seen + 2 * 13


def test_labels_are_held_against_what_it_answers() -> None:
    assert visx.explain(model_of(Function(bright_corner), labels=("sky", "cellar", "wall")), picture(), "rise", masks=8).label == "sky"  # fmt: skip
    with pytest.raises(VisxError, match="2 labels for a model of 3"):
        visx.explain(model_of(Function(bright_corner), labels=("sky", "cellar")), picture(), "rise", masks=8)


@pytest.mark.parametrize(
    "ask,code,text",
    [
        ({"layer": "features"}, 4, "no torch module"),
        ({"precision": "fp16"}, 2, "fp16"),
        ({"target": 3}, 2, "0 to 2"),
    ],
)
def test_what_it_has_not(ask: dict[str, Any], code: int, text: str) -> None:
    with pytest.raises(VisxError, match=text) as caught:
        visx.explain(model_of(Function(bright_corner)), picture(), "rise", masks=8, **ask)
    assert caught.value.code == code


def test_a_wrong_answer_is_said() -> None:
    with pytest.raises(VisxError, match=r"float32 of shape \(2, 5, 5\) for 1 images") as caught:
        visx.explain(model_of(Function(lambda x: np.zeros((2, 5, 5), np.float32))), picture(), "rise", masks=8)
    assert caught.value.code == 4


def test_a_network_is_one() -> None:
    assert isinstance(Network(Same()), BlackBox)
    model = visx.wrap(Same(), size=SIZE)
    assert model.black_box() is model.network()


def test_a_method_that_needs_nothing_is_given_no_network() -> None:
    model, seen = model_of(Function(bright_corner)), []

    def run(req: Any, p: Any) -> Any:
        seen.append(req.net)
        return get_method("rise").run(req, get_method("rise").params(masks=4))

    method = Method("own", "perturbation", "", "", frozenset(), "prob", False, "overlay", "many", Params, run)
    (job,) = plan(model, [method])
    box = model.black_box()
    explain_batch(model, box, job, torch.zeros(1, 3, SIZE, SIZE), [model.targets(["top1"])], [0])
    assert seen == [None]
