"""Memory that runs out: whoever explains, batches halve, the user is told, and the results are those of whole batches."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visx
from in_process import make_work
from in_process import visx as command
from visx.engine.explainer import Explainer
from visx.engine.jobs import plan
from visx.errors import VisxError
from visx.images.decode import read
from visx.images.find import find
from visx.methods import get_method
from visx.network.memory import BatchSize
from visx.sheet.cells import Comparison, compute

LIMITED = """
import os

class Limited(nn.Sequential):
    def forward(self, x):
        if len(x) > int(os.environ["MOST_IMAGES"]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().forward(x)

def limited():
    return visx.wrap(Limited(*make().module), size=48, resize=48)
"""
NAMES = "abcde"
TOLD = "out of memory: going on with batches of 2"

Limit = Callable[[int], None]


@pytest.fixture
def limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Limit:
    """`limit(n)`: from now on the model `toy.py:limited` runs out of memory above `n` images in a pass."""
    monkeypatch.chdir(make_work(tmp_path, NAMES))
    toy = Path("toy.py")
    toy.write_text(toy.read_text() + LIMITED)
    monkeypatch.setenv("MOST_IMAGES", "1000")
    return lambda most: monkeypatch.setenv("MOST_IMAGES", str(most))


def explain(method: str, out: str, *more: object) -> Any:
    return command("explain", "photos", "-M", "toy.py:limited", "-m", method, "-o", out, "--device", "cpu", *more)


def maps(out: str) -> dict[str, np.ndarray]:
    return {str(p.relative_to(out)): np.load(p) for p in sorted(Path(out).rglob("*.npy"))}


def assert_alike(halved: dict[Any, np.ndarray], whole: dict[Any, np.ndarray]) -> None:
    """The same maps within 1e-5 of their range."""
    assert halved.keys() == whole.keys() and whole
    for key, wanted in whole.items():
        np.testing.assert_allclose(halved[key], wanted, rtol=0, atol=1e-5 * float(np.ptp(wanted)))


@pytest.mark.parametrize("method", ["gradcam", "guided_backprop", "smoothgrad", "integrated_gradients", "rise"])
def test_explain(limit: Limit, method: str) -> None:
    few = {"smoothgrad": ["-p", "samples=6"], "rise": ["-p", "masks=12"]}.get(method, [])
    assert explain(method, "whole", *few).code == 0
    limit(2)
    run = explain(method, "halved", *few)
    assert run.code == 0 and TOLD in run.err and "Traceback" not in run.err
    assert_alike(maps("halved"), maps("whole"))


@pytest.mark.parametrize("method", ["backprop", "smoothgrad"])
def test_python(limit: Limit, method: str) -> None:
    pictures = [f"photos/{name}.png" for name in NAMES]
    params = {"samples": 6} if method == "smoothgrad" else {}

    def explained() -> dict[int, np.ndarray]:
        model = visx.load_model("toy.py:limited")
        return dict(enumerate(r.map for r in visx.explain(model, pictures, method, **params)))

    whole = explained()
    limit(2)
    with pytest.warns(RuntimeWarning, match=TOLD):
        assert_alike(explained(), whole)


def test_a_sheet(limit: Limit) -> None:
    """One picture: what halves are the copies of it."""

    def cells(messages: list[str]) -> dict[Any, np.ndarray]:
        model = visx.load_model("toy.py:limited")
        method = get_method("smoothgrad")
        picture = model.preprocess.decode(read(Path("photos/a.png")))
        ask = Comparison([method], (), {"smoothgrad": {"samples": 6}}, ["top2"])
        rows = compute([model], picture, "photos/a.png", ask, messages.append)
        return {(n, key): cell.answer.map for n, row in enumerate(rows) for key, cell in row.maps.items()}

    messages: list[str] = []
    whole = cells(messages)
    assert messages == []
    limit(2)
    halved = cells(messages)
    assert messages == ["out of memory: going on with batches of 3", "out of memory: going on with batches of 1"]
    assert_alike(halved, whole)
    arguments = ["photos/a.png", "-M", "toy.py:limited", "-m", "smoothgrad", "-p", "samples=6", "-o", "sheet.png"]
    assert "out of memory: going on with batches of 3" in command("compare", *arguments).err


def test_the_bench(limit: Limit) -> None:
    """Its maps are there already: what halves are the batches of inputs that the metrics ask the method about, and copies."""

    def measured(out: str) -> Any:
        metrics = ["--metrics", "max_sensitivity,insertion", "-p", "max_sensitivity.samples=8"]
        return command("evaluate", "photos", "-M", "toy.py:limited", "-m", "gradcam", *metrics, "-o", out, "--json")

    whole = measured("whole")
    assert whole.code == 0 and "memory" not in whole.err
    Path("whole", "measured.jsonl").unlink()
    limit(2)
    halved = measured("whole")
    assert halved.code == 0 and halved.err.count(TOLD) == 2, "one size for images, one for copies"
    rows = [{r["metric"]: r["mean"] for r in map(json.loads, run.out.splitlines())} for run in (halved, whole)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4) and rows[1]


def test_sensitivity(limit: Limit) -> None:
    """With noise, the classes of the clean images are predicted before anything is explained."""

    def moved(out: str) -> Any:
        vary = ["--vary", "noise=0,0.01", "--metrics", "ssim,insertion"]
        return command(
            "sensitivity", "photos", "-M", "toy.py:limited", "-m", "backprop", *vary, "-o", out, "--device", "cpu"
        )

    assert moved("whole").code == 0
    limit(2)
    run = moved("halved")
    assert run.code == 0 and run.err.count(TOLD) >= 3, "predictions, maps and metrics"
    assert_alike(maps("halved"), maps("whole"))


def test_predictions(limit: Limit) -> None:
    whole = command("predict", "photos", "-M", "toy.py:limited", "--json")
    limit(2)
    halved = command("predict", "photos", "-M", "toy.py:limited", "--json")
    assert whole.code == halved.code == 0 and TOLD in halved.err
    rows = [[r["predictions"][0] for r in map(json.loads, run.out.splitlines())] for run in (halved, whole)]
    assert [r["target"] for r in rows[0]] == [r["target"] for r in rows[1]]
    assert [r["logit"] for r in rows[0]] == pytest.approx([r["logit"] for r in rows[1]], rel=1e-5)


def test_a_worker_of_ray(limit: Limit, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    from types import SimpleNamespace

    from visx.run.ray import worker as module
    from visx.store.settings import Settings
    from visx.targets.classes import parse_target

    monkeypatch.setattr(module.ray, "get", lambda value: value)
    attempts = SimpleNamespace(begin=SimpleNamespace(remote=lambda n: 1), end=SimpleNamespace(remote=lambda n: None))

    def work(out: str) -> module.Report:
        model = visx.load_model("toy.py:limited")
        target = parse_target("top1", model.names, model.classes)
        jobs = plan(model, [get_method("backprop")])
        task = module.Task(
            lambda: model, model.weights, jobs, Settings(Path(out), target), len(NAMES), 1, Path.cwd(), attempts
        )
        assignments = [(item, [(0, target.each)]) for item in find(["photos"])]
        row = {"number": 0, "assignments": pickle.dumps(assignments)}
        report: module.Report = pickle.loads(module.RayWorker(task)(row)["report"])
        return report

    assert work("whole").remarks == []
    limit(2)
    report = work("halved")
    assert report.stop is None and report.remarks == [TOLD]
    assert_alike(maps("halved"), maps("whole"))


def test_a_single_image_that_does_not_fit_is_explained(limit: Limit) -> None:
    model = visx.load_model("toy.py:limited")
    (job,) = plan(model, [get_method("backprop")])
    messages: list[str] = []
    explainer = Explainer(model, model.network(), 2, messages.append)
    limit(0)
    with explainer.network.session(), pytest.raises(VisxError, match="out of memory with a single image"):
        explainer.explain(job, torch.zeros(2, 3, 48, 48), [model.targets(["0"])] * 2, [0, 1])
    assert messages == ["out of memory: going on with batches of 1"]


def test_a_halved_size_stays_halved_and_padding_counts() -> None:
    """Five images padded to eight need the memory of eight."""
    messages: list[str] = []
    size = BatchSize(16, messages.append)

    def work(start: int, stop: int) -> tuple[int, int]:
        if min(8, size.rows) > 2:
            raise MemoryError
        return start, stop

    assert list(size.split(5, work, padded=8)) == [(0, 2), (2, 4), (4, 5)]
    assert messages == [f"out of memory: going on with batches of {n}" for n in (4, 2)]
    assert list(size.split(3, work, padded=8)) == [(0, 2), (2, 3)] and len(messages) == 2
