"""A folder end to end: decode, explain, render, write PNG, npy and manifest, against bare forward passes and a plain script.

    python benchmarks/folder.py PHOTOS [--copies 10] [--model efficientnet_lite0] [--rounds 3] [--peer]

The bare loop runs the same number of batched no-grad forward passes, channels-last, on preloaded tensors, and nothing
else, in the same process. `--peer` also times, in a process of its own, a plain script that loops the grad-cam package
over the folder and writes the same files. All take turns; the figures are medians, and the ratios medians of each round's.
Processor time of the parts is measured on one thread, one after the other.

Files go to the folder for temporary files. An ext4 without a journal passes over the inodes of files that were deleted in
the last minutes one by one, so that opening a file takes ten times as long after the runs before: `TMPDIR` names another.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import visx
from visx.cli.talk import Talk
from visx.draw.png import encode_png
from visx.engine.explainer import AUTO_BATCH as BATCH
from visx.engine.explainer import stacked
from visx.engine.jobs import plan
from visx.engine.loaded import Loaded
from visx.engine.picture import draw
from visx.images.find import Item, find
from visx.methods import get_method
from visx.run.allocator import keep_freed_memory
from visx.run.pipeline import Run
from visx.run.threads import Threads
from visx.run.worker import Worker
from visx.store.manifest import Journal
from visx.store.settings import Settings
from visx.targets.classes import parse_target

PEER = """
import sys, time
from pathlib import Path
import cv2, numpy as np, torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
import visx
model = visx.load_model(sys.argv[3], sys.argv[4])
net, out = model.module.requires_grad_(True), Path(sys.argv[2])
layer = net.get_submodule(str(model.anatomy.default_layer))
paths = sorted(p for p in Path(sys.argv[1]).rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
begun = time.perf_counter()
with GradCAM(model=net, target_layers=[layer]) as cam:
    for path in paths:
        rgb = np.asarray(Image.open(path).convert("RGB"))
        x, _ = model.preprocess(rgb)
        map_ = cam(input_tensor=torch.from_numpy(x)[None], targets=None)[0]
        np.save(out / (path.name + ".npy"), map_)
        view = np.clip(x.transpose(1, 2, 0) * 0.5 + 0.5, 0, 1)
        cv2.imwrite(str(out / (path.name + ".png")), show_cam_on_image(view, map_, use_rgb=True)[:, :, ::-1])
print(time.perf_counter() - begun)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    weights = "default" if options.model == "efficientnet_lite0" else "random"
    model = visx.load_model(options.model, weights)
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        for copy in range(options.copies):
            shutil.copytree(options.photos, photos / str(copy), ignore=shutil.ignore_patterns("*.md", "*.csv"))
        items = find([str(photos)])
        times: dict[str, list[float]] = {}
        for number in range(options.rounds):
            out = Path(folder, f"out{number}")
            times.setdefault("bare", []).append(bare(model, len(items)))
            times.setdefault("visx", []).append(run(model, items, out / "visx"))
            if options.peer:
                times.setdefault("grad-cam in a plain script", []).append(
                    peer(photos, out / "peer", options.model, weights)
                )
        for name, seconds in times.items():
            ratio = statistics.median(own / other for own, other in zip(times["visx"], seconds, strict=True))
            print(
                f"{len(items) / statistics.median(seconds):7.1f} images/s: {name}; visx {1 / ratio:.2f} x", flush=True
            )
        cost = parts(model, items[: 12 * BATCH], Path(folder, "parts"))
        for name, milliseconds in cost.items():
            print(f"{milliseconds:7.2f} ms of processor time an image: {name}")
        cores = torch.get_num_threads()
        wall, forward = (statistics.median(times[name]) * 1000 / len(items) for name in ("visx", "bare"))
        print(f"{wall * cores / sum(cost.values()):7.2f} x the sum of these / {cores} cores is the wall time of visx")
        cost["forward pass, map"] = forward * cores
        print(f"{wall * cores / sum(cost.values()):7.2f} x the same with the bare loop's forward passes, on all cores")


def bare(model: visx.Model, count: int) -> float:
    """Seconds of `count` images' forward passes in batches."""
    batches = [torch.randn(BATCH, 3, *model.input_size).contiguous(memory_format=torch.channels_last) for _ in range(4)]
    begun = time.perf_counter()
    with torch.no_grad():
        for number in range(-(-count // BATCH)):
            model.module(batches[number % 4])
    return time.perf_counter() - begun


def run(model: visx.Model, items: list[Item], out: Path) -> float:
    """Seconds of a whole run over the folder."""
    jobs, settings = plan(model, [get_method("gradcam")]), settings_of(model, out)
    begun = time.perf_counter()
    executor = Threads(model, jobs, settings, torch.device("cpu"), Talk().say)
    Run(model, jobs, settings, executor, on_message=Talk().say)(items)
    return time.perf_counter() - begun


def peer(photos: Path, out: Path, model: str, weights: str) -> float:
    """Seconds of the plain script, its imports and its model's loading left out."""
    out.mkdir()
    command = [sys.executable, "-c", PEER, str(photos), str(out), model, weights]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def parts(model: visx.Model, items: list[Item], out: Path) -> dict[str, float]:
    """Milliseconds of processor time an image, by what they are spent on."""
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Any:
        begun = time.thread_time()
        result = function()
        spent[name] = spent.get(name, 0.0) + (time.thread_time() - begun) * 1000 / len(items)
        return result

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    jobs, settings = plan(model, [get_method("gradcam")]), settings_of(model, out)
    (job,) = jobs
    worker = Worker(model, settings, torch.device("cpu"))
    with worker.network.session(), Journal(out) as journal:
        for start in range(0, len(items), BATCH):
            images = [
                Loaded(item, [(job, settings.target.each)], stat=item.stat()) for item in items[start : start + BATCH]
            ]
            for image in images:
                timed("read, decode, resize", partial(worker.decode, image))
            ready = [image.ready for image in images]
            explain = partial(
                worker.explainer.explain,
                job,
                stacked(ready),
                [settings.target] * len(ready),
                [image.seed for image in ready],
                padded=BATCH,
            )
            if not start:
                explain()  # learns what can be folded
            for image, answers in zip(images, timed("forward pass, map", explain), strict=True):
                picture, place = image.ready.picture, image.ready.place
                drawn = timed("draw", partial(draw, picture.rgb, place, job, answers[0].map, None, "turbo", 0.5))
                timed("PNG", partial(encode_png, drawn))
                write = partial(worker.recorder.write, image, job, answers, 0.0)
                timed("files, names, manifest", lambda: journal.append(write()))  # noqa: B023
    torch.set_num_threads(threads)
    spent["files, names, manifest"] -= spent["draw"] + spent["PNG"]  # writing draws and encodes too
    return spent


def settings_of(model: visx.Model, out: Path) -> Settings:
    """Those of `visx explain`."""
    return Settings(out=out, target=parse_target("top1", model.names, model.classes))


if __name__ == "__main__":
    main()
