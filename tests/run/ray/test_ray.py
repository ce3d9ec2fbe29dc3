"""`--engine ray` on a cluster of two workers: the bytes and the manifest of the local engine, whoever dies."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from in_process import visx
from onnx_files import write

if find_spec("ray") is None:
    pytest.skip("the extra visx[ray] is not installed", allow_module_level=True)

from visx.engine.jobs import plan
from visx.errors import VisxError
from visx.images.find import find
from visx.methods import get_method
from visx.models import load_model
from visx.models.model import Weights
from visx.run.pipeline import Run
from visx.run.ray.driver import (
    RayWorkers,
    check_address,
    ray,
)  # before anything else imports ray: it keeps ray off standard output
from visx.run.ray.worker import ATTEMPTS, RayWorker, Task
from visx.store.record import Failure, Record
from visx.store.settings import Settings
from visx.targets.classes import parse_target

# Every process that builds it leaves its number; a black picture takes the process down that looks at it.
NET = """
import os, time
from pathlib import Path
from torch import nn
import visx

class Net(nn.Sequential):
    def forward(self, x):
        if (x.amax((1, 2, 3)) < -1.7).any():
            os._exit(1)
        time.sleep(0.02)
        return super().forward(x)

def build():
    with Path("pids", str(os.getpid())).open("a") as file:
        file.write("built ")
    return visx.wrap(
        Net(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), size=32
    )
"""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    dice = np.random.default_rng(0)
    for name in ("photos", "pids"):
        Path(name).mkdir()
    for number in range(21):
        Image.fromarray(dice.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(f"photos/{number}.png")
    Path("photos/broken.jpg").write_bytes(b"not an image")
    Path("net.py").write_text(NET)
    return tmp_path


def explain(out: str, *more: str) -> Any:
    arguments = ["-M", "net.py:build", "-m", "gradcam,rise", "-p", "rise.masks=20", "-t", "top2", "--batch-size", "4"]
    return visx("explain", "photos", *arguments, "--device", "cpu", "-q", "-o", out, *more)


def files(out: str) -> dict[str, bytes]:
    return {
        str(p.relative_to(out)): p.read_bytes() for p in Path(out).rglob("*") if p.is_file() and p.suffix != ".jsonl"
    }


def lines(out: str) -> list[str]:
    records = map(json.loads, Path(out, "manifest.jsonl").read_text().splitlines())
    return sorted(json.dumps({k: v for k, v in r.items() if k not in ("seconds", "written")}) for r in records)


def test_files_and_manifest_are_the_local_engines(folder: Path) -> None:
    assert explain("local").code == 3  # one image is broken
    done = explain("far", "--engine", "ray")
    assert done.code == 3, done.err
    assert files("far") == files("local")
    assert lines("far") == lines("local")
    assert len(lines("far")) == 21 * 2 * 2 + 1
    built = {int(p.name): p.read_text() for p in Path("pids").iterdir()}
    assert built.pop(os.getpid()) == "built built "  # once for each run
    assert list(built.values()) == ["built ", "built "]  # two workers


def test_the_images_of_a_killed_worker_are_done(folder: Path) -> None:

    assert explain("local").code == 3
    model = load_model("net.py:build")
    methods = [get_method("gradcam"), get_method("rise")]
    jobs = plan(model, methods, (), {"rise": {"masks": 20}})
    target = parse_target("top2", model.names, model.classes)
    settings = Settings(Path("far"), target, batch_size=4)
    killed: list[int] = []

    def on_record(record: Record | Failure) -> None:
        workers = [int(p.name) for p in Path("pids").iterdir() if int(p.name) != os.getpid()]
        if isinstance(record, Record) and len(workers) == 2 and not killed:
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)

    workers = RayWorkers(model, jobs, settings, partial(load_model, "net.py:build"), "cpu")
    summary = Run(model, jobs, settings, workers, on_record)(find(["photos"]))
    assert killed
    assert summary.images == 22 and list(summary.failed) == ["broken.jpg"]
    assert files("far") == files("local")
    assert lines("far") == lines("local")


def test_a_run_goes_on_where_the_local_engine_stopped_and_past_a_picture_that_no_worker_survives(folder: Path) -> None:
    assert explain("local").code == 3
    shutil.copytree("local", "far")
    for path in [*Path("far").glob("1*.png/gradcam*.npy"), *Path("far").glob("2.png/rise*.npy")]:
        path.unlink()
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save("photos/black.png")
    done = explain("far", "--engine", "ray", "--json")
    shown = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 3
    assert {r["image"] for r in shown if "error" in r} == {"photos/black.png", "photos/broken.jpg"}
    assert f"{ATTEMPTS} workers died" in done.err
    assert len(shown) == 21 * 2 * 2 + 2
    assert len(lines("far")) == 21 * 2 * 2 + 11 * 2 + 2 + 2  # what was missing has a second line
    assert files("far") == files("local")


def test_a_worker_with_other_weights_is_refused(folder: Path) -> None:
    model = load_model("net.py:build")
    settings = Settings(Path("far"), parse_target("top1", model.names, model.classes))
    task = Task(lambda: model, Weights("other", "0" * 64), [], settings, 4, 1, folder, None)
    report = pickle.loads(RayWorker(task)({"number": 0, "assignments": pickle.dumps([])})["report"])
    assert report.stop is not None and "other weights" in report.stop.message


def test_an_address_where_nothing_listens_is_told_at_once() -> None:
    with pytest.raises(VisxError, match=r"cannot reach Ray at 127\.0\.0\.1:1"):
        check_address("127.0.0.1:1")
    for address in (None, "auto", "local", "ray://127.0.0.1:1"):
        check_address(address)


SCORES = """
import numpy as np, visx
def score(x): return np.stack([x[:, :, :16].mean((1, 2, 3)), x.mean((1, 2, 3))], 1)
def make(): return visx.wrap(score, size=32)
"""


@pytest.mark.parametrize("spec", ["scores.py:make", "net.onnx"])
def test_what_only_scores_is_loaded_in_every_worker(folder: Path, spec: str) -> None:
    Path("scores.py").write_text(SCORES, encoding="utf-8")
    methods = ["-m", "occlusion", "-p", "occlusion.patch=16", "-p", "occlusion.stride=16"]
    if spec == "net.onnx":
        pytest.importorskip("onnxruntime", reason="the extra visx[onnx] is not installed")
        write(Path("net.onnx"))
        methods += ["-m", "gradcam"] if find_spec("onnx2torch") else []
    for engine in ("local", "ray"):
        done = visx("explain", "photos", "-M", spec, *methods, "-o", engine, "--engine", engine)
        assert done.code == 3 and "broken.jpg" in done.err, done.err
    maps = sorted(path.relative_to("local") for path in Path("local").rglob("*.npy"))
    assert len(maps) >= 21 and all((Path("local") / m).read_bytes() == (Path("ray") / m).read_bytes() for m in maps)
