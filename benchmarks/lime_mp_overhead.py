"""The time of LIME and meaningful perturbation over that of their bare passes through the network, in one run.

    python benchmarks/lime_mp_overhead.py [--model efficientnet_lite0] [--samples 200] [--iterations 20] [--repeats 5]

LIME against as many bare forward passes without gradients, in batches of the same size, layout and precision; meaningful
perturbation (of `--images` images at once) against bare forward and backward passes to the input, one a step. The whole
method is timed: segmentation, composition, regression, the start and the end. Repeats are interleaved; the ratio is of
the medians, and each repeat's is printed too. Segmentation, the disc start and the regression are paid once a map, so
few samples or iterations overstate the ratio at the defaults (1000 samples, 300 iterations).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

import visx
from visx.engine.batch import explain_batch
from visx.engine.jobs import plan
from visx.methods import get_method
from visx.network.memory import BatchSize
from visx.targets.classes import TargetSpec


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call: processor time on a processor, which other programs disturb least."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    begun = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - begun


def main() -> None:
    """Print one line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--image", default="samples/chelsea.png")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    model = visx.load_model(args.model)
    network = model.network()
    one = torch.from_numpy(model.preprocess(np.asarray(Image.open(args.image).convert("RGB")))[0])[None]

    def method(name: str, images: int, **params: object) -> Callable[[], object]:
        (job,) = plan(model, [get_method(name)], (), {name: params})
        x, specs = one.repeat(images, 1, 1, 1), [TargetSpec("top1", top=1)] * images
        return lambda: explain_batch(model, network, job, x, specs, range(images), copies=BatchSize(args.batch))

    def forwards() -> None:
        for start in range(0, args.samples, args.batch):
            with torch.no_grad():
                network.module(network.prepare(one.repeat(min(args.batch, args.samples - start), 1, 1, 1)))

    def backwards() -> None:
        for _ in range(args.iterations):
            x = network.prepare(one.repeat(args.images, 1, 1, 1)).requires_grad_()
            torch.autograd.grad(network.module(x).softmax(1)[:, 0].sum(), x)

    pairs = {
        f"lime, {args.samples} samples": (method("lime", 1, samples=args.samples), forwards),
        f"meaningful_perturbation, {args.iterations} iterations of {args.images} images": (
            method("meaningful_perturbation", args.images, iterations=args.iterations, init="ones"),
            backwards,
        ),
    }
    with network.session():
        for name, (whole, bare) in pairs.items():
            whole(), bare()
            times = np.array([(timed(whole), timed(bare)) for _ in range(args.repeats)])
            ratio = np.median(times[:, 0]) / np.median(times[:, 1])
            print(f"{model.name} {name}: {ratio:.3f}x ({' '.join(f'{a / b:.3f}' for a, b in times)})", flush=True)


if __name__ == "__main__":
    main()
