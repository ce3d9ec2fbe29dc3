"""Networks as people have them (tests/odd_networks.py): a row each, what must hold by the command and in Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import odd_networks
import visx
from in_process import visx as command
from oracles import of_transformers
from visx.errors import ExitCode, VisxError
from visx.methods import all_methods
from visx.models.seeded import seeded

FILE = Path(odd_networks.__file__)
CHEAP: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 4},
    "smoothgrad": {"samples": 2},
    "meaningful_perturbation": {"iterations": 2},
    "occlusion": {"patch": 32, "stride": 32},
    "lime": {"samples": 64},
    "rise": {"masks": 16},
}
METHODS = {m.name: CHEAP.get(m.name, {}) for m in all_methods() if not of_transformers(m)}
SCORES = {m.name for m in all_methods() if not m.needs}
LAYER = {m.name for m in all_methods() if m.needs == {"layer"}}
INPUT_GRADIENT = {m.name for m in all_methods() if m.needs == {"grad"}}
ALL = set(METHODS)
NO_HEAD = "no global average pooling"


@dataclass(frozen=True)
class Row:
    """A factory, the methods that work, and what the refusal of all others says; `like` names the factory whose maps
    its own must equal."""

    factory: str
    works: set[str] = field(default_factory=lambda: ALL)
    refusal: str = ""
    like: str = "base"


ROWS = [
    Row("base"),
    Row("no_grad", SCORES | LAYER | {"cam"}, "its forward runs under no_grad"),
    Row("inference_mode", SCORES | {"cam"}, "its forward runs under inference_mode"),
    Row("checkpointed", SCORES | LAYER | {"cam"}, "re-entrant checkpointing"),
    Row("extra_state", like="bare"),
    Row("scripted", SCORES | INPUT_GRADIENT, "scripted or traced module"),
    Row("exported", SCORES | INPUT_GRADIENT, "exported program"),
    Row("lazy", ALL - {"cam"}, NO_HEAD, like=""),
    Row("part_compiled", like="part_plain"),
    Row("double_first", ALL - {"cam"}, NO_HEAD),  # the temperature comes after the head
    Row("quantised", SCORES, "it is quantised", like=""),
]


def bare() -> nn.Module:
    """What `extra_state` is without its extra state."""
    return odd_networks.Base()


def part_plain() -> visx.Model:
    """`part_compiled` before it is compiled."""
    module = odd_networks.PartCompiled()
    module.features = module.features._orig_mod
    return odd_networks.wrapped(module)


def made(factory: str) -> visx.Model:
    """What a factory makes under the seed that the command uses; a bare module is wrapped as the command wraps it."""
    build: Callable[[], Any] = getattr(odd_networks, factory, None) or {"bare": bare, "part_plain": part_plain}[factory]
    result = seeded(build)
    return result if isinstance(result, visx.Model) else visx.wrap(result)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8))
    path = tmp_path_factory.mktemp("odd") / "a.png"
    coarse.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return path


def explain(picture: Path, out: Path, factory: str, method: str, *more: object) -> tuple[int, dict[str, Any], str]:
    """The command's exit code, its record of the one result (empty if there is none), and what it said."""
    params = [part for k, v in METHODS[method].items() for part in ("-p", f"{k}={v}")]
    run = command("explain", picture, "-M", f"{FILE}:{factory}", "-m", method, *params, "-o", out, "--json", *more)
    lines = run.out.splitlines()
    return run.code, json.loads(lines[-1]) if lines else {}, run.err


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.factory)
def test_a_form_in_python(row: Row, method: str, picture: Path) -> None:
    model = made(row.factory)
    if method not in row.works:
        with pytest.raises(VisxError) as refused:
            visx.explain(model, picture, method, **METHODS[method])
        assert refused.value.code == ExitCode.UNSUPPORTED
        others = {"cam": NO_HEAD, **dict.fromkeys(LAYER, "has a feature map")}  # what else may lack
        assert any(text in refused.value.message for text in (row.refusal, others.get(method, row.refusal)))
        assert "occlusion" in refused.value.hint  # says what fits
        return
    result = visx.explain(model, picture, method, **METHODS[method])
    assert np.ptp(result.map) > 0
    if row.like:
        like = visx.explain(made(row.like), picture, method, **METHODS[method])
        # LIME's weights here are 1e-4 of a probability, whose rounding to float32 is 1e-8
        part = 1e-4 if method == "lime" else 1e-6
        np.testing.assert_allclose(result.map, like.map, rtol=1e-4, atol=part * np.abs(like.map).max())
        assert result.label == like.label


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.factory)
def test_a_form_by_the_command(row: Row, picture: Path, tmp_path: Path) -> None:
    for method in ("backprop", "guided_backprop", "gradcam", "occlusion"):
        code, record, said = explain(picture, tmp_path, row.factory, method)
        if method in row.works:
            assert (code, record["method"]) == (0, method)
            assert np.ptp(np.load(tmp_path / record["files"]["npy"])) > 0
        else:
            assert code == ExitCode.UNSUPPORTED
            assert row.refusal in said
    run = command("predict", picture, "-M", f"{FILE}:{row.factory}", "--json")
    assert run.code == 0
    assert len(json.loads(run.out)["predictions"]) > 0
    assert command("layers", f"{FILE}:{row.factory}").code == 0


# ---- what the output means
@pytest.mark.parametrize("factory", ["softmax_inside", "sigmoid_labels"])
def test_probabilities_are_the_models_own(factory: str, picture: Path) -> None:
    model = made(factory)
    x, _ = model.preprocess(np.asarray(Image.open(picture)))
    with torch.no_grad():
        own = model.module.eval()(torch.from_numpy(x)[None])[0]
    run = command("predict", picture, "-M", f"{FILE}:{factory}", "--json")
    for entry in json.loads(run.out)["predictions"]:
        assert entry["probability"] == pytest.approx(float(own[entry["target"]]), rel=1e-5)


def test_one_logit_has_two_classes(picture: Path) -> None:
    model = made("one_logit")
    no, yes = (visx.explain(model, picture, "backprop", target=t) for t in (0, 1))
    assert no.score == pytest.approx(-yes.score)


def test_a_regression_is_explained_in_its_own_unit(picture: Path, tmp_path: Path) -> None:
    code, record, _ = explain(picture, tmp_path, "regressor", "backprop", "--means", "regression")
    assert code == 0
    model = made("regressor")
    x, _ = model.preprocess(np.asarray(Image.open(picture)))
    with torch.no_grad():
        assert record["score"] == pytest.approx(float(model.module.eval()(torch.from_numpy(x)[None])), rel=1e-4)


def test_a_member_of_several_is_asked_for(picture: Path, tmp_path: Path) -> None:
    assert explain(picture, tmp_path, "tuple_output", "backprop")[0] == ExitCode.UNSUPPORTED
    assert explain(picture, tmp_path, "tuple_output", "backprop", "--head", "0")[0] == 0


# ---- layers
def test_channels_last_has_a_default_layer_and_an_eight_by_eight_map(picture: Path, tmp_path: Path) -> None:
    assert explain(picture, tmp_path, "channels_last", "gradcam")[0] == 0
    code, record, _ = explain(picture, tmp_path, "channels_last", "gradcam", "-l", "norm")
    assert code == 0
    assert np.load(tmp_path / record["files"]["native"]).shape == (8, 8)


def test_tokens_have_a_default_layer_and_attention_is_no_picture(picture: Path, tmp_path: Path) -> None:
    code, record, _ = explain(picture, tmp_path, "tokens", "gradcam")
    assert (code, record["layer"]) == (0, "norm")
    assert explain(picture, tmp_path, "tokens", "gradcam", "-l", "drop")[0] == ExitCode.UNSUPPORTED


def test_an_auxiliary_head_is_not_on_the_way(picture: Path, tmp_path: Path) -> None:
    code, record, _ = explain(picture, tmp_path, "auxiliary_head", "gradcam")
    assert code == 0
    assert record["layer"].startswith("features")


# ---- random and batch-coupled forward passes
@pytest.mark.parametrize("factory", ["random_dropout", "batch_statistics", "one_at_a_time"])
@pytest.mark.parametrize("method", ["backprop", "rise"])
def test_a_map_is_the_same_alone_and_in_a_folder(factory: str, method: str, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.open(picture).save(tmp_path / "photos" / "a.png")
    Image.open(picture).rotate(90).save(tmp_path / "photos" / "b.png")
    params = [part for k, v in METHODS[method].items() for part in ("-p", f"{k}={v}")]
    runs = {}
    for name, what in {"one": tmp_path / "photos" / "a.png", "all": tmp_path / "photos"}.items():
        run = command(
            "explain", what, "-M", f"{FILE}:{factory}", "-m", method, *params, "-o", tmp_path / name, "--json"
        )
        assert run.code == 0
        runs[name] = json.loads(run.out.splitlines()[0])
    one, several = (np.load(tmp_path / name / runs[name]["files"]["npy"]) for name in ("one", "all"))
    np.testing.assert_array_equal(one, several)
    assert factory == "one_at_a_time" or runs["one"]["warnings"]


def test_what_a_model_prints_stays_off_standard_output(picture: Path, tmp_path: Path) -> None:
    code, record, _ = explain(picture, tmp_path, "printing", "occlusion")
    assert (code, record["method"]) == (0, "occlusion")
    run = command("explain", picture, "-M", f"{FILE}:printing", "-m", "backprop", "-o", tmp_path, "--json")
    assert all(line.startswith("{") for line in run.out.splitlines())
