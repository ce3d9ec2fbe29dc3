"""What the faster ways save: gradients by four ways, and RISE on a module of one's own with and without them.

    python benchmarks/accelerated.py [--models efficientnet_lite0,resnet50] [--batches 1,16] [--own efficientnet_b0] [--masks 192]
                                     [--rounds 5]

Processor time of one thread, in turns, medians. `--own` takes torchvision names, built with random weights and handed in as
bare modules.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch


def in_turns(title: str, ways: Mapping[str, Callable[[], object]], rounds: int) -> None:
    """Print the median seconds of every way over so many rounds, after one of warming up, and its ratio to the first."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            begun = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - begun)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    base = next(iter(medians.values()))
    for name, median in medians.items():
        print(f"{title:32} {name:36} {median * 1000:8.1f} ms  x{median / base:.2f}", flush=True)


def gradients(spec: str, batch: int, rounds: int) -> None:
    """Backprop by four ways."""
    import visx
    from visx.network.network import Network

    model = visx.load_model(spec, "default" if spec == "efficientnet_lite0" else "random")
    module = model.network().module
    plain = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    networks = {
        "as written, backward folded": Network(module, channels_last=True, owned=True, accelerate=True),
        "nothing folded, plain layout": Network(plain),
        "nothing folded, channels last": Network(module, channels_last=True),
        "folded both ways": Network(module, channels_last=True, owned=True, accelerate=True, rounding_safe=True),
    }
    x = torch.randn(batch, 3, *model.input_size, generator=torch.Generator().manual_seed(0))

    def run(network: Network) -> None:
        with network.session():
            network.input_gradients(x, lambda columns: columns[:, :1])

    in_turns(f"{spec}, batch {batch}", {name: partial(run, network) for name, network in networks.items()}, rounds)


def own(name: str, masks: int, rounds: int) -> None:
    """RISE on a bare module, all that is learnt in a call included."""
    from torchvision import models

    import visx

    torch.manual_seed(0)
    module = models.get_model(name, weights=None).eval()
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)

    def run(accelerate: bool) -> None:
        visx.explain(visx.wrap(module, accelerate=accelerate), image, "rise", target=3, masks=masks)

    in_turns(f"{name}, RISE, {masks} masks", {"as it is": lambda: run(False), "accelerated": lambda: run(True)}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="efficientnet_lite0,resnet50")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--own", default="efficientnet_b0")
    parser.add_argument("--masks", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for spec in filter(None, asked.models.split(",")):
        for batch in asked.batches.split(","):
            gradients(spec, int(batch), asked.rounds)
    for name in filter(None, asked.own.split(",")):
        own(name, asked.masks, asked.rounds)


if __name__ == "__main__":
    main()
