"""Lanes: whole batches side by side, and nothing of it shows in the results."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import visx
from visx.engine.jobs import plan
from visx.images.find import Item, find
from visx.methods import NAMES, get_method
from visx.models import Model
from visx.network.fast.lanes import MOST_LANES, threads_of
from visx.run import pipeline, threads
from visx.store.record import Failure, Record
from visx.store.settings import Settings
from visx.targets.classes import parse_target

pytestmark = pytest.mark.usefixtures("two_threads")

COUNT, SIZE = 72, 4  # images, and images a batch
meet: Callable[[], None] | None = None  # what two passes do in their middle, to be there at the same time


class Net(nn.Module):
    """A folded convolution, a reused ReLU in place, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.last, self.drop, self.head = nn.Conv2d(6, 8, 3), nn.Dropout(0.5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.last(self.relu(self.norm(self.conv(x)))))
        if meet is not None:
            meet()
        return self.head(self.drop(x.mean((2, 3))))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    net = Net()
    net.norm.running_mean.uniform_(-0.2, 0.2)
    net.norm.running_var.uniform_(0.5, 1.5)
    return dataclasses.replace(visx.wrap(net, size=24, resize=24), owned=True)


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    dice = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(COUNT):
        pixels = dice.integers(0, 256, (30, 36, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number:02}.png")
    (tmp_path / "photos" / "07.png").write_bytes(b"not an image")
    return find([str(tmp_path / "photos")])


def run_of(model: Model, out: Path, methods: str = "gradcam,guided_backprop", **more: Any) -> pipeline.Run:
    jobs = plan(model, [get_method(name) for name in methods.split(",")], ["last"])
    settings = Settings(out, parse_target("top2", None, 5), batch_size=SIZE)
    return pipeline.Run(model, jobs, settings, threads.Threads(model, jobs, settings, torch.device("cpu")), **more)


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and "manifest" not in p.name}


def lines(out: Path) -> list[dict[str, Any]]:
    """The manifest in its order, without what time and place decide."""
    records = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k not in ("seconds", "image_stat", "written")} for r in records]


def alone(
    model: Model,
    items: list[Item],
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    methods: str = "gradcam,guided_backprop",
) -> None:
    """The same run with one lane, which has both threads."""
    with monkeypatch.context() as patch:
        patch.setattr(threads, "count_lanes", lambda *_: 1)
        run_of(model, out, methods)(items)


@pytest.mark.accelerated
def test_two_lanes_write_what_one_writes(
    model: Model, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are in the middle of a pass at once, so that a hook, a rule or a folded weight of one could reach the other."""
    alone(model, items, tmp_path / "one", monkeypatch)
    both, met = threading.Barrier(2), threading.Semaphore(6)

    def wait() -> None:
        if threading.current_thread().name.startswith("visx-lane") and met.acquire(blocking=False):
            both.wait(timeout=60)

    monkeypatch.setitem(globals(), "meet", wait)
    summary = run_of(model, tmp_path / "two")(items)
    assert (summary.images, len(summary.failed), summary.written) == (COUNT, 1, (COUNT - 1) * 4)
    assert not met.acquire(blocking=False), "the lanes have met"
    assert files(tmp_path / "two") == files(tmp_path / "one")
    assert lines(tmp_path / "two") == lines(tmp_path / "one"), "in the same order"


def test_scores_do_not_depend_on_what_else_is_left_to_do(model: Model, items: list[Item], tmp_path: Path) -> None:
    """Grad-CAM's pass folds ReLUs too and rounds otherwise: after a resume it may be done already, and another one first."""
    run_of(model, tmp_path / "both")(items)
    run_of(model, tmp_path / "one", "guided_backprop")(items)
    both = [record for record in lines(tmp_path / "both") if record["method"] != "gradcam"]
    assert sorted(map(str, both)) == sorted(map(str, lines(tmp_path / "one")))


def test_the_process_and_the_model_are_left_as_they_were(model: Model, items: list[Item], tmp_path: Path) -> None:
    model.module.train()
    state = {
        name: (value, value._version, value.detach().clone())
        for name, value in model.module.state_dict(keep_vars=True).items()
    }
    wanted = [p.requires_grad for p in model.module.parameters()]
    run_of(model, tmp_path / "out")(items)
    assert all(m.training for m in model.module.modules())
    assert not any(m._forward_hooks for m in model.module.modules())
    assert [p.requires_grad for p in model.module.parameters()] == wanted
    after = model.module.state_dict(keep_vars=True)
    assert after.keys() == state.keys()
    for name, (tensor, version, values) in state.items():
        assert after[name] is tensor and tensor._version == version and torch.equal(tensor, values)
    threads = [torch.get_num_threads()]
    fresh = threading.Thread(target=lambda: threads.append(torch.get_num_threads()))
    fresh.start()
    fresh.join()
    assert threads == [2, 2]
    assert not [t for t in threading.enumerate() if t.name.startswith("visx")]


def test_interrupted_lanes_keep_what_is_finished(
    model: Model, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone(model, items, tmp_path / "one", monkeypatch, "gradcam")
    heard: list[str] = []

    def interrupt(record: Record | Failure) -> None:
        heard.append(record.line)
        if len(heard) == 60:
            raise KeyboardInterrupt

    model.module.train()
    out = tmp_path / "two"
    with pytest.raises(KeyboardInterrupt):
        run_of(model, out, "gradcam", on_record=interrupt)(items)
    assert model.module.training
    assert torch.get_num_threads() == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("visx-lane")]
    kept = [record for record in lines(out) if "error" not in record]
    assert 60 <= len(kept) + 1 < COUNT * 2, "those that were heard of, and what was finished besides"
    assert all((out / record["files"]["npy"]).is_file() for record in kept)
    assert not [p for p in out.rglob("*") if "tmp" in p.name or "lock" in p.name]
    summary = run_of(model, out, "gradcam")(items)
    assert summary.skipped == len(kept)
    assert files(out) == files(tmp_path / "one")
    assert sorted(map(str, lines(out))) == sorted(map(str, lines(tmp_path / "one")))


@pytest.mark.accelerated
def test_how_many_lanes(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(methods: str = "gradcam", inputs: int = COUNT) -> int:
        return threads.count_lanes(network, plan(model, map(get_method, methods.split(",")), ["last"]), inputs)

    network = model.network()
    assert (count(), threads_of(2)) == (2, 1)
    assert count(inputs=threads.LANES_FROM - 1) == 1
    assert count("gradcam,occlusion") == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert (count(), threads_of(MOST_LANES)) == (MOST_LANES, 16 // MOST_LANES)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert count() == 1
    network.owned = False
    monkeypatch.undo()
    assert count() == 1


def test_methods_say_whether_they_take_many_passes() -> None:
    many = {name for name in NAMES if get_method(name).passes == "many"}
    perturbations = {name for name in NAMES if get_method(name).family == "perturbation"}
    assert many == perturbations | {"integrated_gradients", "smoothgrad"}
