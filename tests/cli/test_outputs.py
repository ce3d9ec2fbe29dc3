"""What the output means, by the commands: said, overruled, in the manifest, the recipe and the metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from in_process import visx as command
from visx.metrics.names import METRICS

FACTORIES = """
import torch, visx
from torch import nn
import torch.nn.functional as F

class Net(nn.Module):
    def __init__(self, change, classes=6):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.head, self.change = nn.Linear(12, classes), change
    def forward(self, x):
        return self.change(8 * self.head(self.body(x).mean((2, 3))))

def made(change, **options):
    torch.manual_seed(0)
    return visx.wrap(Net(change), size=32, resize=32, **options)

def logits(): return made(lambda z: z)
def softmax(): return made(lambda z: z.softmax(1))
def sequential(): return visx.wrap(nn.Sequential(logits().module, nn.Softmax(1)), size=32, resize=32)
def sigmoid(): return made(lambda z: z.sigmoid())
def one(): return made(lambda z: z[:, :1])
def named(): return made(lambda z: z[:, :1], labels=["dog"])
def flat(): return made(lambda z: z[:, 0].sigmoid())
def regressor(): return made(lambda z: 100 * z[:, :1])
def ages(): return made(lambda z: 100 * z[:, :2], means="regression", labels=["age", "height"])
def pair(): return made(lambda z: (z, z[:, :3].softmax(1)))
def wrapped_pair(): return made(lambda z: (z, z[:, :3].softmax(1)), head=1)
def dict_(): return made(lambda z: {"logits": z, "features": z[:, None].expand(-1, 4, -1)})
def backbone():
    model = logits()
    model.module.head, model.module.change = nn.Identity(), lambda z: z
    return visx.wrap(nn.Sequential(model.module.body, nn.BatchNorm2d(12), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=32, resize=32)
def timm_features():
    import timm
    return visx.wrap(timm.create_model("resnet18", num_classes=0), size=64)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("f.py").write_text(FACTORIES)
    random = np.random.default_rng(0)
    Path("in").mkdir()
    for name in "ab":
        coarse = Image.fromarray(random.integers(0, 255, (5, 5, 3), dtype=np.uint8))
        coarse.resize((40, 40)).save(f"in/{name}.png")
    return tmp_path


def rows(run: Any) -> list[dict[str, Any]]:
    assert run.code == 0, run.err
    return [json.loads(line) for line in run.out.splitlines()]


def predicted(factory: str, *more: str) -> list[list[dict[str, Any]]]:
    return [row["predictions"] for row in rows(command("predict", "in", "-M", f"f.py:{factory}", "--json", *more))]


def explain(factory: str, *more: str, method: str = "backprop") -> list[dict[str, Any]]:
    return rows(command("explain", "in", "-M", f"f.py:{factory}", "-m", method, "--json", *more))


@pytest.mark.parametrize("factory", ["softmax", "sequential"])
def test_predict_shows_the_models_own_probabilities(work: Path, factory: str) -> None:
    for mine, plain in zip(predicted(factory), predicted("logits"), strict=True):
        for a, b in zip(mine, plain, strict=True):
            assert a["target"] == b["target"] and a["probability"] == pytest.approx(b["probability"], rel=1e-5)
            assert a["logit"] == pytest.approx(np.log(b["probability"]), rel=1e-4)


def test_predict_of_labels_one_logit_and_values(work: Path) -> None:
    logits = [{p["target"]: p["logit"] for p in row} for row in predicted("logits", "-k", "6")]
    for row, z in zip(predicted("sigmoid", "-k", "6"), logits, strict=True):
        assert [p["target"] for p in row] == sorted(z, key=lambda k: -z[k]), "the likeliest label first"
        assert [p["probability"] for p in row] == pytest.approx(
            [1 / (1 + np.exp(-z[p["target"]])) for p in row], rel=1e-4
        )
    for factory in ("one", "flat", "named"):
        for row, z in zip(predicted(factory), logits, strict=True):
            assert [p["target"] for p in row] == ([1, 0] if z[0] > 0 else [0, 1])
            assert sum(p["probability"] for p in row) == pytest.approx(1)
            assert {p["target"]: p["logit"] for p in row} == pytest.approx({0: -z[0], 1: z[0]}, rel=1e-4)
    assert {p["label"] for p in predicted("named")[0]} == {"dog", "not dog"}
    for row, z in zip(predicted("regressor", "--means", "regression"), logits, strict=True):
        assert [(p["label"], p["probability"]) for p in row] == [("out:0", None)]
        assert row[0]["logit"] == pytest.approx(100 * z[0], rel=1e-5)
    run = command("predict", "in", "-M", "f.py:ages")
    assert "age" in run.out and "%" not in run.out


def test_it_is_said(work: Path) -> None:
    for factory, says in (
        ("softmax", "probabilities that sum to one: a softmax is inside"),
        ("sigmoid", "independent labels (probabilities): a sigmoid is inside"),
        ("one", "one logit, that of class 1 (class 0 is its opposite)\n"),
        ("dict_", "(--head logits)\n"),
    ):
        for name, args in (
            ("predict", ("in", "-M")), ("layers", ()), ("explain", ("in", "-m", "backprop", "-M")),
            ("compare", ("in/a.png", "-M")), ("evaluate", ("in", "--metrics", "completeness", "-M")),
            ("sensitivity", ("in", "-m", "backprop", "--vary", "seed=0,1", "--metrics", "pearson", "-M")),
        ):  # fmt: skip
            run = command(name, *args, f"f.py:{factory}")
            assert run.code == 0, run.err
            assert run.err.count(says) == 1, (name, factory, run.err)
    assert "gives" not in command("explain", "in", "-M", "f.py:logits", "-m", "backprop").err
    assert "output: 6 logits, one a class\n" in command("layers", "f.py:logits").err
    run = command("explain", "in", "-M", "f.py:softmax", "-m", "backprop", "-o", "o")
    assert run.err.count("log p is explained as the logit") == 1
    assert "log p is" not in command("explain", "in", "-M", "f.py:softmax", "-m", "occlusion", "-o", "o").err


def test_the_manifest_the_recipe_and_resuming(work: Path) -> None:
    plain, told = explain("logits"), explain("logits", "--means", "sigmoid")
    assert plain[0]["outputs"] == {"kind": "logits"}
    assert told[0]["outputs"] == {"kind": "sigmoid", "values": "logits"}
    assert not {r["files"]["npy"] for r in plain} & {r["files"]["npy"] for r in told}, "no two results meet"
    assert told[0]["probability"] != plain[0]["probability"]
    again = command("explain", "in", "-M", "f.py:logits", "-m", "backprop", "--means", "sigmoid")
    assert "2 already there" in again.err
    first, second = explain("pair", "--head", "0"), explain("pair", "--head", "1")
    assert first[0]["outputs"] == {"kind": "logits", "head": "0"}
    assert second[0]["outputs"] == {"kind": "probabilities", "head": "1"}
    assert {r["files"]["npy"] for r in first}.isdisjoint(r["files"]["npy"] for r in second)
    assert explain("wrapped_pair")[0]["outputs"] == {"kind": "probabilities", "head": "1"}
    assert explain("wrapped_pair", "--head", "0")[0]["outputs"] == {"kind": "logits", "head": "0"}, "the option counts"


def test_a_regression_has_values_and_no_classes(work: Path) -> None:
    (a, b) = explain("ages", "-t", "out:1")[:2]
    assert (a["target"], a["objective"], a["label"], a["probability"]) == (
        None,
        {"kind": "out", "index": 1},
        "height",
        None,
    )
    assert Path(a["files"]["npy"]).name == Path(b["files"]["npy"]).name
    assert Path(a["files"]["npy"]).name.startswith("backprop.out-1-height.")
    assert [r["label"] for r in explain("ages", "-t", "age", "-t", "out:1", "-o", "both")] == ["age", "height"] * 2
    for text in ("top1", "top2", "out:2"):
        run = command("explain", "in", "-M", "f.py:ages", "-t", text)
        assert run.code == 2 and ("0 to 1" in run.err or "out:0 to out:1" in run.err)
    assert explain("regressor", "--means", "regression")[0]["label"] == "out:0"
    assert command("explain", "in", "-M", "f.py:logits", "-t", "out:1").code == 2
    for score in ("logit", "prob"):
        (row, *_) = explain("regressor", "--means", "regression", "--score", score, method="occlusion")
        assert row["score"] == pytest.approx(predicted("regressor", "--means", "regression")[0][0]["logit"], rel=1e-5)
    run = command("explain", "in", "-M", "f.py:ages", "-t", "out:0", "-m", "backprop", "--score", "logprob")
    assert run.code == 4 and "no probability" in run.err
    run = command("evaluate", "in", "-M", "f.py:ages", "-t", "out:1", "--metrics", "insertion,completeness,infidelity")
    assert run.code == 3 and "measures a probability" in run.err
    values = json.loads(Path("visx-out/evaluation.json").read_text())["values"]
    assert {(v["metric"], v["target"]) for v in values} == {("completeness", 1), ("infidelity", 1)}
    run = command("evaluate", "in", "-M", "f.py:ages", "-t", "out:1", "--metrics", "grid_pointing")
    assert run.code == 1 and "probabilities" in run.err


def test_of_several_members_one_is_asked_for(work: Path) -> None:
    run = command("explain", "in", "-M", "f.py:pair", "-m", "backprop")
    assert run.code == 4 and "0 (N, 6), 1 (N, 3)" in run.err and "--head 0" in run.err
    assert command("layers", "f.py:pair").code == 4 and command("layers", "f.py:pair", "--head", "1").code == 0
    assert command("predict", "in", "-M", "f.py:pair", "--head", "2").code == 2
    assert [p["target"] for p in predicted("pair", "--head", "0")[0]] == [p["target"] for p in predicted("logits")[0]]


@pytest.mark.parametrize("factory", ["backbone", "timm_features"])
def test_features_are_refused_for_classes(work: Path, factory: str) -> None:
    for args in (("explain", "in", "-m", "backprop"), ("predict", "in"), ("compare", "in/a.png"), ("evaluate", "in")):
        run = command(*args, "-M", f"f.py:{factory}")
        assert run.code == 4 and "no classifier" in run.err and "a model with a head" in run.err, args
    assert command("layers", f"f.py:{factory}").code == 0
    assert "features, without a classifier" in command("layers", f"f.py:{factory}").err
    assert command("predict", "in", "-M", f"f.py:{factory}", "--means", "logits").code == 0


def test_a_units_picture_asks_for_no_classes(work: Path) -> None:
    run = command("explain", "in", "-M", "f.py:backbone", "-m", "deconvnet", "-l", "0.2", "-p", "unit=max", "--json")
    assert [row["score_kind"] for row in rows(run)] == ["activation"] * 2
    for row in rows(run):
        unit = row["objective"]
        assert row["target"] is None and unit["kind"] == "unit" and set(unit) == {"kind", "index", "y", "x"}
        assert f"unit-{unit['index']}-{unit['y']}-{unit['x']}." in row["files"]["npy"]


def test_kinds_of_a_later_day_and_of_none(work: Path) -> None:
    for means, code in (("embedding", 4), ("boxes", 4), ("masks", 4), ("logit", 2)):
        for args in (("explain", "in", "-M", "f.py:logits"), ("layers", "f.py:logits")):
            run = command(*args, "--means", means)
            assert run.code == code and "logits" in run.err


# All that ask the model, without the game of mosaics, which needs four classes.
MODEL_METRICS = [name for name, m in METRICS.items() if m.kind in ("map", "set") and name != "grid_pointing"]


@pytest.mark.parametrize("method", ["occlusion", "input_x_gradient"])
def test_metrics_of_probabilities_are_those_of_the_logits(work: Path, method: str) -> None:
    """The same network with its softmax inside and outside, the same scalar explained."""

    def measured(factory: str) -> dict[tuple[str, str], float]:
        args = ("-m", method, "--score", "prob", "-o", factory, "-p", "insertion.steps=8", "-p", "deletion.steps=8")
        run = command("evaluate", "in", "-M", f"f.py:{factory}", "--metrics", ",".join(MODEL_METRICS), *args)
        assert run.code == 0, run.err
        values = json.loads(Path(factory, "evaluation.json").read_text())["values"]
        return {(v["metric"], v["image"]): v["value"] for v in values}

    inside, outside = measured("softmax"), measured("logits")
    for key, value in inside.items():
        if key[0] != "randomization":  # other random heads
            assert value == pytest.approx(outside[key], rel=1e-3, abs=1e-5), key
    assert len(inside) == 2 * len(MODEL_METRICS)


def test_a_network_in_another_lane_knows_the_meaning(work: Path) -> None:
    import visx
    from visx.network.fast.lanes import twin

    model = visx.load_model("f.py:one")
    assert twin(model.network()).outputs == model.outputs != visx.load_model("f.py:logits").outputs


def test_metrics_follow_the_meaning(work: Path) -> None:
    """Of one logit the clean end of the insertion curve is its sigmoid."""
    run = command(
        "evaluate",
        "in",
        "-M",
        "f.py:one",
        "-m",
        "occlusion",
        "--metrics",
        "insertion,completeness,randomization",
        "-t",
        "0",
    )
    assert run.code == 0
    values = json.loads(Path("visx-out/evaluation.json").read_text())["values"]
    chances = {p["target"]: p["probability"] for p in predicted("one")[0]}
    curve = next(v for v in values if v["metric"] == "insertion" and v["image"].endswith("a.png"))["curve"]
    assert curve[-1][1] == pytest.approx(chances[0], rel=1e-4)
