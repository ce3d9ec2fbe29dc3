"""The time of methods that leave hidden tokens out, over that of as many bare whole passes.

    python benchmarks/dropping.py [--model vit_b_16] [--masks 256] [--batch 16] [--rounds 3] [--device cpu] [--all]

Random weights: what a pass costs does not depend on them. The bare passes are of the module itself, without gradients, in
batches of the same size. All take turns; medians, and the median over rounds of each time over that of the bare passes
of its round. Methods are timed with their masks (`tis` with its k-means); whether tokens can be left out is found once
beforehand, as for the first image of a run. `--all` times RISE that fills pixels, and TIS, too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any


def main() -> None:
    import torch

    from visx.engine.batch import explain_batch
    from visx.engine.jobs import plan
    from visx.methods import get_method
    from visx.models import load_model
    from visx.network.memory import BatchSize
    from visx.targets.classes import TargetSpec

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_b_16")
    parser.add_argument("--masks", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--all", action="store_true")
    asked = parser.parse_args()
    model = load_model(asked.model, "random")
    network = model.network(device=torch.device(asked.device))
    x = torch.randn(1, 3, *model.input_size, generator=torch.Generator().manual_seed(0)).to(asked.device)
    ready = network.prepare(x.expand(asked.batch, -1, -1, -1))

    @torch.no_grad()
    def bare() -> None:
        for start in range(0, asked.masks, asked.batch):
            network.module(ready[: min(asked.batch, asked.masks - start)])

    def method(name: str, **params: Any) -> Callable[[], object]:
        (job,) = plan(model, [get_method(name)], params={name: params})
        target = TargetSpec("0", index=0)
        return lambda: explain_batch(model, network, job, x, [target], [0], copies=BatchSize(asked.batch))

    works: dict[str, Callable[[], object]] = {
        f"{asked.masks} bare passes": bare,
        f"rise, {asked.masks} masks, hide=drop": method("rise", masks=asked.masks, hide="drop"),
    }
    if asked.all:
        works[f"rise, {asked.masks} masks, hide=fill"] = method("rise", masks=asked.masks)
        works[f"tis, {asked.masks} masks"] = method("tis", masks=asked.masks)

    def timed(work: Callable[[], object]) -> float:
        begun = time.perf_counter()
        work()
        if asked.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    with network.session():
        for work in works.values():
            timed(work)
        rounds = [{name: timed(work) for name, work in works.items()} for _ in range(asked.rounds)]
    base = next(iter(works))
    print(f"{asked.model}, batches of {asked.batch}, {asked.rounds} rounds, {asked.device}")
    for name in works:
        ratios = [one[name] / one[base] for one in rounds]
        seconds = statistics.median(one[name] for one in rounds)
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"{name:32} {seconds:8.2f} s  x{statistics.median(ratios):.3f} ({spread})", flush=True)


if __name__ == "__main__":
    main()
