"""The time of perturbation methods over that of their bare passes: the cost of making copies and summing scores.

    python benchmarks/perturbation.py [--models efficientnet_lite0,resnet50] [--precisions fp32,bf16]
                                      [--batches 8,16,32] [--copies 64] [--repeats 5]
    python benchmarks/perturbation.py --memory

Prints, for every model, precision and batch size, medians over interleaved repeats of whole methods divided by as many bare
passes (no gradients, channels-last, same batch size, the module as it is). A ratio below 1 means that folding pays for
more than the method's own work. Ratios of processor time are steadier than those of wall time where others use the
machine (then with OMP_NUM_THREADS=1: idle threads spin). `--memory` prints the peak memory of RISE with 8000 masks over that with 500, each in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

COPIES_OF = {"occlusion": None, "rise": "masks", "lime": "samples", "meaningful_perturbation": "iterations"}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall and of all this process's threads."""
    begun, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - cpu


def compare(spec: str, precision: str, batch: int, copies: int, repeats: int) -> None:
    """Interleaved timings of one model at one precision and batch size."""
    import torch

    from visx.engine.batch import explain_batch
    from visx.engine.jobs import plan
    from visx.methods import NAMES, get_method
    from visx.models import load_model
    from visx.network.memory import BatchSize
    from visx.targets.classes import TargetSpec

    model = load_model(spec, "default" if spec == "efficientnet_lite0" else "random")
    network = model.network(precision)
    x = torch.randn(1, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    target = TargetSpec("0", index=0)

    def bare(forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        ready = network.prepare(x.expand(batch, -1, -1, -1))
        for start in range(0, copies, batch):
            forward(ready[: min(batch, copies - start)])

    @torch.no_grad()
    def module(x: torch.Tensor) -> torch.Tensor:
        return network.module(x)

    def backward(x: torch.Tensor) -> None:
        leaf = x.clone().requires_grad_()
        with torch.enable_grad():
            torch.autograd.grad(network.module(leaf)[:, 0].sum(), leaf)

    def whole(name: str) -> Callable[[], object]:
        side = round(copies**0.5)
        patch = max(53, model.input_size[0] // side)
        patches = {"patch": patch, "stride": -(-(model.input_size[0] - patch) // (side - 1))}
        counted = COPIES_OF[name]
        (job,) = plan(model, [get_method(name)], params={name: patches if counted is None else {counted: copies}})
        return lambda: explain_batch(model, network, job, x, [target], [0], copies=BatchSize(batch))

    works: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(module),
        "bare folded": lambda: bare(network.scores_of),
        **{name: whole(name) for name in COPIES_OF if name in NAMES and name != "meaningful_perturbation"},
    }
    if "meaningful_perturbation" in NAMES and batch == 1:
        works |= {"bare backward": lambda: bare(backward), "meaningful_perturbation": whole("meaningful_perturbation")}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    with network.session():
        for work in works.values():
            work()
        for _ in range(repeats):
            for name, work in works.items():
                seconds[name].append(timed(work))
    for name, times in seconds.items():
        base = seconds["bare backward" if name == "meaningful_perturbation" else "bare"]
        wall, cpu = ([own[i] / other[i] for own, other in zip(times, base, strict=True)] for i in (0, 1))
        print(
            f"{spec:20} {precision} batch {batch:3}  {name:24} {statistics.median(t for t, _ in times) / copies * 1e3:7.2f} ms a copy"
            f"  wall x{statistics.median(wall):.3f} ({min(wall):.3f} to {max(wall):.3f})  processor x{statistics.median(cpu):.3f}",
            flush=True,
        )


def peak(masks: int) -> None:
    """Explain with RISE on a toy network in this process; print its peak memory in MiB, before and after."""
    import torch
    from torch import nn

    import visx
    from visx.engine.batch import explain_batch
    from visx.engine.jobs import plan
    from visx.methods import get_method
    from visx.targets.classes import TargetSpec

    net = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = visx.wrap(net)
    network, x = model.network(), torch.randn(1, 3, 224, 224)
    (job,) = plan(model, [get_method("rise")], params={"rise": {"masks": masks}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with network.session():
        explain_batch(model, network, job, x, [TargetSpec("0", index=0)], [0])
    print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="efficientnet_lite0,resnet50")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--batches", default="16")
    parser.add_argument("--copies", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        return peak(asked.peak)
    if asked.memory:
        few, many = (
            [float(v) for v in subprocess.check_output([sys.executable, __file__, "--peak", str(n)], text=True).split()]
            for n in (500, 8000)
        )
        print(f"RISE, peak memory: 500 masks {few[1]:.0f} MiB, 8000 masks {many[1]:.0f} MiB, x{many[1] / few[1]:.3f}")
        print(f"of which the method's own: {few[1] - few[0]:.0f} and {many[1] - many[0]:.0f} MiB")
        return None
    for spec in asked.models.split(","):
        for precision in asked.precisions.split(","):
            for batch in asked.batches.split(","):
                compare(spec, precision, int(batch), asked.copies, asked.repeats)
    return None


if __name__ == "__main__":
    main()
