"""Insertion and deletion of Grad-CAM maps against the bare forward passes they are made of, medians of interleaved rounds.

python benchmarks/curves.py PHOTOS [--count 8] [--rounds 3]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from timing import table, take_turns

import visx
from visx.images.decode import decode, read
from visx.metrics import get_metric
from visx.metrics.contract import Trial
from visx.network.outputs import LOGITS
from visx.network.scorer import Scorer
from visx.run.allocator import keep_freed_memory
from visx.targets.classes import Column
from visx.targets.contract import Objectives


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_freed_memory()
    model = visx.load_model()
    network = model.network()
    paths = sorted(p for p in options.photos.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))[
        : options.count
    ]
    passes: list[int] = []
    trials = []
    for path in paths:
        result = visx.explain(model, path)
        x = torch.from_numpy(model.preprocess(decode(read(path)).rgb)[0])

        def copies(batch: torch.Tensor) -> torch.Tensor:
            passes.append(len(batch))
            return network.scores_of(batch)

        score = Scorer(copies, layout=network.layout)
        trials.append(
            Trial(
                x,
                result.map,
                Objectives([[Column.of(result.target, LOGITS, None)]], LOGITS),
                0,
                "prob",
                score,
                lambda inputs: inputs.numpy(),
            )
        )
    metrics = [(m, m.params()) for m in (get_metric("insertion"), get_metric("deletion"))]
    batch = torch.randn(16, 3, *model.input_size).contiguous(memory_format=torch.channels_last)

    def curves() -> None:
        passes.clear()
        for trial in trials:
            for metric, params in metrics:
                metric.run(trial, params)

    def bare() -> None:
        with torch.no_grad():
            for _ in range(-(-sum(passes) // 16)):
                model.module(batch)

    with network.session():
        curves()
        medians = take_turns({"bare forward passes": bare, "insertion + deletion": curves}, options.rounds)
    print(f"{sum(passes)} copies of {len(paths)} images")
    print(table("insertion and deletion", medians, "bare forward passes"))


if __name__ == "__main__":
    main()
