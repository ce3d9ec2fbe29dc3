"""The perturbation methods against captum's occlusion, the lime package and the original RISE loop, each at its best.

    python benchmarks/perturbation_peers.py [--models efficientnet_lite0,resnet50] [--copies 64] [--rounds 3] [--image FILE]

Every contender runs in a process of its own, as its users run it: the peers in a plain script on an ordinary float32
module in either memory layout (torchvision's own is the contiguous one), at the batch size that is fastest; visx through its engine with the command's settings, in
fp32 and in bf16. Processes take turns; the figures are medians. Model and image are loaded and the network is warm
before the clock starts; both LIMEs segment the picture within their time. Beside the time of bf16 stands the Spearman
correlation of its map with that of fp32. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import visx
from visx.engine.batch import explain_batch
from visx.engine.jobs import plan
from visx.images.decode import as_picture
from visx.methods import get_method
from visx.models import Model
from visx.run.allocator import keep_freed_memory
from visx.targets.classes import TargetSpec

SAMPLE = Path(__file__).parents[1] / "samples" / "coffee.png"
PATCH = 53
NAMES = {torch.contiguous_format: "contiguous", torch.channels_last: "channels-last"}


def stride(model: Model, copies: int) -> int:
    """The stride at which about so many patches cover the input."""
    return -(-(model.input_size[0] - PATCH) // (round(copies**0.5) - 1))


def ours(model: Model, x: Tensor, target: int, precision: str, copies: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    keep_freed_memory()  # as the command does
    network = model.network(precision)
    step = stride(model, copies)
    chosen: dict[str, dict[str, Any]] = {
        "occlusion": {"patch": PATCH, "stride": step},
        "lime": {"samples": copies},
        "rise": {"masks": copies},
    }
    for name, params in chosen.items():
        (job,) = plan(model, [get_method(name)], params={name: params})

        def run(job: Any = job) -> np.ndarray:
            with network.session():
                (answers,) = explain_batch(model, network, job, x[None], [TargetSpec(str(target), index=target)], [0])
            assert isinstance(answers, list)
            return np.asarray(answers[0].map)

        yield name, run


def captum(model: Model, x: Tensor, target: int, copies: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    from captum.attr import Occlusion

    step = stride(model, copies)
    for module, layout in layouts(model):
        for batch in (8, 16, 32):
            yield (
                f"occlusion, {NAMES[layout]}",
                lambda module=module, batch=batch, layout=layout: Occlusion(
                    lambda x: module(x.contiguous(memory_format=layout)).softmax(1)
                ).attribute(
                    x[None],
                    target=target,
                    sliding_window_shapes=(3, PATCH, PATCH),
                    strides=(3, step, step),
                    perturbations_per_eval=batch,
                ),
            )


def lime(model: Model, x: Tensor, target: int, copies: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    from lime.lime_image import LimeImageExplainer
    from skimage.segmentation import slic

    mean, std = (np.array(v, dtype=np.float32)[:, None, None] for v in (model.preprocess.mean, model.preprocess.std))
    picture = (x.numpy() * std + mean).transpose(1, 2, 0).astype(np.float64)
    for module, layout in layouts(model):

        def classify(pictures: list[np.ndarray], module: nn.Module = module, layout: Any = layout) -> np.ndarray:
            stacked = np.stack(pictures).transpose(0, 3, 1, 2).astype(np.float32)
            copies = torch.from_numpy((stacked - mean) / std).contiguous(memory_format=layout)
            with torch.no_grad():
                return module(copies).softmax(1).numpy()

        for batch in (8, 16, 32):
            yield (
                f"lime, {NAMES[layout]}",
                lambda classify=classify, batch=batch: LimeImageExplainer(verbose=False).explain_instance(
                    picture, classify, labels=(target,), top_labels=None, num_samples=copies, batch_size=batch,
                    segmentation_fn=lambda p: slic(p, n_segments=50, compactness=30, sigma=3, start_label=0),
                ),
            )  # fmt: skip


def rise(model: Model, x: Tensor, target: int, copies: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The loop of the RISE paper's program: all masks made beforehand, copies in batches, one product at the end."""
    height, width = model.input_size
    cells, p = 7, 0.5

    def masks(random: np.random.Generator) -> np.ndarray:
        from skimage.transform import resize

        up = (-(-height // cells), -(-width // cells))
        grid = (random.random((copies, cells, cells)) < p).astype(np.float32)
        found = np.empty((copies, 1, height, width), np.float32)
        for number, cell in enumerate(grid):
            top, left = random.integers(0, up[0]), random.integers(0, up[1])
            big = resize(cell, ((cells + 1) * up[0], (cells + 1) * up[1]), order=1, mode="reflect", anti_aliasing=False)
            found[number, 0] = big[top : top + height, left : left + width]
        return found

    @torch.no_grad()
    def run(module: nn.Module, layout: Any, batch: int) -> Tensor:
        drawn = torch.from_numpy(masks(np.random.default_rng(0)))
        stack = drawn * x
        scores = [
            module(stack[i : i + batch].contiguous(memory_format=layout)).softmax(1) for i in range(0, copies, batch)
        ]
        return (torch.cat(scores).T @ drawn.view(copies, -1)).view(-1, height, width)[target] / copies / p

    for module, layout in layouts(model):
        for batch in (8, 16, 32):
            yield f"rise, {NAMES[layout]}", lambda module=module, layout=layout, batch=batch: run(module, layout, batch)


def layouts(model: Model) -> Iterator[tuple[nn.Module, torch.memory_format]]:
    """An ordinary module in either memory layout."""
    import copy

    for layout in (torch.contiguous_format, torch.channels_last):
        yield copy.deepcopy(model.module).to(memory_format=layout), layout  # type: ignore[call-overload]


PEERS: dict[str, Callable[[Model, Tensor, int, int], Iterator[tuple[str, Callable[[], Any]]]]] = {
    "captum": captum,
    "lime": lime,
    "RISE loop": rise,
}


def measure(contender: str, spec: str, image: str, copies: int, repeats: int) -> dict[str, Any]:
    """In this process: the seconds of each method of one contender, the best of its settings, and our maps."""
    model = visx.load_model(spec, "default" if spec == "efficientnet_lite0" else "random")
    picture = as_picture(image)
    x = torch.from_numpy(model.preprocess(picture.rgb)[0])
    with model.network().session():
        target = int(model.network().scores_of(x[None]).argmax())
    _ = model.anatomy
    is_ours = contender in ("fp32", "bf16")
    runs = ours(model, x, target, contender, copies) if is_ours else PEERS[contender](model, x, target, copies)
    found: dict[str, Any] = {}
    for name, run in runs:
        map_ = run()
        times = []
        for _ in range(repeats):
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
        found[name] = min(statistics.median(times), found.get(name, float("inf")))
        if is_ours:
            found[f"{name} map"] = map_.tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="efficientnet_lite0,resnet50")
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--image", default=str(SAMPLE))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(*asked.one, asked.image, asked.copies, 2)))
        return
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in _cpu_flags()]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {', '.join(flags) or 'no bf16 instructions'}")
    for spec in asked.models.split(","):
        rounds: dict[str, list[dict[str, Any]]] = {}
        for _ in range(asked.rounds):
            for contender in ("fp32", "bf16", *PEERS):
                command = [sys.executable, __file__, "--one", contender, spec, "--image", asked.image]
                done = subprocess.run([*command, "--copies", str(asked.copies)], stdout=subprocess.PIPE, text=True)
                if done.returncode == 0:
                    rounds.setdefault(contender, []).append(json.loads(done.stdout.splitlines()[-1]))
        _report(spec, rounds)


def _report(spec: str, rounds: dict[str, list[dict[str, Any]]]) -> None:
    seconds = {c: {k: statistics.median(r[k] for r in rs) for k in rs[0] if "map" not in k} for c, rs in rounds.items()}
    print(f"\n| {spec} | peer | visx fp32 | visx bf16 | fp32 x faster | bf16 x faster | Spearman of the maps |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for peer in PEERS:
        for name, slow in seconds.get(peer, {}).items():
            method, layout = name.split(", ")
            fp32, bf16 = seconds["fp32"][method], seconds["bf16"][method]
            same = spearmanr(*(np.ravel(rounds[p][0][f"{method} map"]) for p in ("fp32", "bf16"))).statistic
            print(
                f"| {method}, {peer}, {layout} | {slow:.2f} s | {fp32:.2f} s | {bf16:.2f} s | {slow / fp32:.2f} | {slow / bf16:.2f} | {same:.4f} |",
                flush=True,
            )


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return set(next((line for line in lines if line.startswith("flags")), "").split())


if __name__ == "__main__":
    main()
