"""A folder end to end: decode, explain, render, write PNG, npy and manifest, against bare forward passes and a plain script.

    python benchmarks/folder.py PHOTOS [--copies 10] [--model efficientnet_lite0] [--rounds 3] [--peer]

The bare loop runs the same number of batched no-grad forward passes, channels-last, on preloaded tensors, and nothing
else, in the same process. `--peer` also times, in a process of its own, a plain script that loops the grad-cam package
over the folder and writes the same files. Processor time of the parts is measured on one thread.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import visx
from visx.cli.common import Talk
from visx.engine import plan
from visx.inputs import find
from visx.memory import keep_freed_memory
from visx.methods import get_method
from visx.results import Settings
from visx.runner import Run
from visx.targets import parse_target

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
        times: dict[str, list[float]] = {"bare": [], "visx": []}
        for number in range(options.rounds):
            times["bare"].append(bare(model, len(items)))
            times["visx"].append(run(model, items, Path(folder, f"out{number}")))
        medians = {name: statistics.median(values) for name, values in times.items()}
        for name, seconds in medians.items():
            print(f"{name:5} {len(items) / seconds:7.1f} images/s", flush=True)
        print(f"visx reaches {medians['bare'] / medians['visx']:.2f} of the bare forward passes' images/s")
        if options.peer:
            out = Path(folder, "peer")
            out.mkdir()
            command = [sys.executable, "-c", PEER, str(photos), str(out), options.model, weights]
            seconds = float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])
            print(
                f"grad-cam in a plain script: {len(items) / seconds:.1f} images/s; visx {seconds / medians['visx']:.1f} x"
            )


def bare(model: visx.Model, count: int) -> float:
    """Seconds of `count` images' forward passes in batches of 16."""
    batches = [torch.randn(16, 3, *model.input_size).contiguous(memory_format=torch.channels_last) for _ in range(4)]
    begun = time.perf_counter()
    with torch.no_grad():
        for number in range(-(-count // 16)):
            model.module(batches[number % 4])
    return time.perf_counter() - begun


def run(model: visx.Model, items: list, out: Path) -> float:  # type: ignore[type-arg]
    """Seconds of a whole run over the folder."""
    jobs = plan(model, [get_method("gradcam")])
    settings = Settings(out=out, target=parse_target("top1", model.labels, model.classes))
    begun = time.perf_counter()
    Run(model, jobs, settings, torch.device("cpu"), said=Talk().say)(items)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
