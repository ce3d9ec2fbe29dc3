"""LIME here against the `lime` package: the same picture, superpixels, settings and network, 10 seeds each.

    python benchmarks/lime_agreement.py [--model toy|efficientnet_lite0|...] [--image samples/chelsea.png]

Needs `pip install lime`. The weights of the superpixels are compared by Spearman's rank correlation: the mean over all
pairs of seeds of the package with itself, of visx with itself, and of the package with visx. The last should reach the
first within 0.02. `toy` is a small convolutional network with random weights, for a run of seconds.
"""

from __future__ import annotations

import argparse
import itertools
import time

import numpy as np
import torch
from lime.lime_image import LimeImageExplainer
from PIL import Image
from scipy.stats import spearmanr
from torch import nn

import visx
from visx.methods.lime import LimeParams, superpixels

SETTINGS = {"samples": 1000, "hide": "mean", "significance": 0}


def toy() -> visx.Model:
    """A random convolutional network of 10 classes on 64 x 64 pixels."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10)
    )
    module(torch.zeros(1, 3, 64, 64))
    module[-1].weight.data *= 5
    return visx.wrap(module, size=64, name="toy")


def main() -> None:
    """Print the three correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy")
    parser.add_argument("--image", default="samples/chelsea.png")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--precision", default="fp32", help="of both sides' passes")
    args = parser.parse_args()
    model = toy() if args.model == "toy" else visx.load_model(args.model)
    picture = np.asarray(Image.open(args.image).convert("RGB"))
    x, _ = model.preprocess(picture)
    mean, std = np.array(model.preprocess.mean), np.array(model.preprocess.std)
    pixels = np.clip(np.rint((x.transpose(1, 2, 0) * std + mean) * 255), 0, 255) / 255
    labels = superpixels(pixels, LimeParams())
    network = model.network(args.precision)
    target = visx.explain(model, picture, method="lime", samples=2).target

    def classify(batch: np.ndarray) -> np.ndarray:
        normalised = torch.from_numpy(((np.asarray(batch) - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
        with network.session():
            return network.scores_of(normalised).softmax(1).numpy()

    def package(seed: int) -> np.ndarray:
        found = LimeImageExplainer(random_state=seed).explain_instance(
            pixels, classify, labels=(target,), top_labels=None, num_samples=1000, batch_size=16,
            segmentation_fn=lambda _: labels,
        )  # fmt: skip
        return np.array([weight for _, weight in sorted(found.local_exp[target])])

    def ours(seed: int) -> np.ndarray:
        values = visx.explain(
            model, picture, method="lime", target=target, seed=seed, precision=args.precision, **SETTINGS
        ).map
        return np.array([values[labels == number][0] for number in range(labels.max() + 1)])

    theirs, mine, seconds = [], [], [0.0, 0.0]
    for seed in range(args.seeds):
        for side, (found, run) in enumerate(((theirs, package), (mine, ours))):
            begun = time.perf_counter()
            found.append(run(seed))
            seconds[side] += time.perf_counter() - begun

    def agreement(pairs) -> str:
        values = [spearmanr(a, b)[0] for a, b in pairs]
        return f"{np.mean(values):.4f} (n={len(values)})"

    print(f"{model.name}, {labels.max() + 1} superpixels, mean Spearman:")
    print(f"  lime with lime, other seeds: {agreement(itertools.combinations(theirs, 2))}")
    print(f"  visx with visx, other seeds: {agreement(itertools.combinations(mine, 2))}")
    print(f"  visx with lime:              {agreement(itertools.product(mine, theirs))}")
    print(f"  seconds a map: lime {seconds[0] / args.seeds:.2f}, visx {seconds[1] / args.seeds:.2f}")


if __name__ == "__main__":
    main()
