"""How well maps localise: 2x2 mosaics and insertion, for any methods and parameters, on your own photographs.

    python benchmarks/localisation.py PHOTOS LABELS.csv gradcam lime lime:alpha=10,hide=grey meaningful_perturbation

LABELS.csv has rows image,target (a class index). A mosaic is four photographs of different classes as cells of 128
pixels; the class of one of them is explained, and the figure is the share of the map's positive part that lies in its
cell (chance 0.25; the network sees the central 224 of 256 pixels, so every cell loses its outer 16). `--least 0.5` takes
photographs alone that the network is so sure of, and `--half 0` or `1` every other one of these, so that what was tuned on
the one half can be confirmed on the other. Insertion is on single
photographs: pixels appear from the strongest down over the blurred image, ties in a seeded order, and the figure is the
mean probability of the class. `captum_lime` runs captum's LIME on the same superpixels, where captum is installed.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

import visx
from visx.ops.blur import gaussian_blur

CELL, SIDE = 128, 256


def photographs(folder: Path, labels: Path) -> list[tuple[Path, int]]:
    """(file, class index) of the rows of a CSV whose files are in the folder."""
    with labels.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[1].strip().isdigit()]
    return [(folder / name, int(target)) for name, target in rows if (folder / name).is_file()]


def mosaics(photos: list[tuple[Path, int]], count: int, seed: int) -> list[tuple[np.ndarray, int, int]]:
    """(picture (256, 256, 3) uint8, class, cell) of `count` mosaics; the explained cell goes round."""
    draw = np.random.default_rng(seed)
    made = []
    for number in range(count):
        picked = [photos[i] for i in draw.choice(len(photos), 4, replace=False)]
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        for cell, (path, _) in enumerate(picked):
            tile = ImageOps.fit(Image.open(path).convert("RGB"), (CELL, CELL), Image.Resampling.BICUBIC)
            top, left = CELL * (cell // 2), CELL * (cell % 2)
            picture[top : top + CELL, left : left + CELL] = np.asarray(tile)
        made.append((picture, picked[number % 4][1], number % 4))
    return made


def cell_share(values: np.ndarray, cell: int) -> float:
    """The share of a map's positive part in one of its quarters; 0 where nothing is positive."""
    positive = np.clip(values, 0, None)
    height, width = (side // 2 for side in values.shape)
    rows, columns = slice(cell // 2 * height, (cell // 2 + 1) * height), slice(cell % 2 * width, (cell % 2 + 1) * width)
    return float(positive[rows, columns].sum() / max(positive.sum(), 1e-30))


def insertion(model: visx.Model, x: torch.Tensor, values: np.ndarray, target: int, steps: int = 56) -> float:
    """Mean probability of `target` while the pixels of x (1, C, H, W) appear over its blurred copy."""
    order = np.random.default_rng(0).permutation(values.size)
    order = order[np.argsort(-values.ravel()[order], kind="stable")]
    rank = np.empty(values.size)
    rank[order] = np.arange(values.size)
    ranks = torch.from_numpy(rank.reshape(values.shape))
    blurred, network = gaussian_blur(x, 10.0), model.network()
    parts = torch.linspace(0, values.size, steps + 1)
    with network.session():
        scores = [
            network.scores_of(torch.where(ranks < chunk[:, None, None, None], x, blurred)).softmax(1)[:, target]
            for chunk in parts.split(16)
        ]
    return float(torch.trapezoid(torch.cat(scores), dx=1 / steps))


def known(model: visx.Model, photos: list[tuple[Path, int]], least: float) -> list[tuple[Path, int]]:
    """The photographs whose class has at least this probability."""
    kept = []
    for path, target in photos:
        x = torch.from_numpy(model.preprocess(np.asarray(Image.open(path).convert("RGB")))[0])[None]
        with (network := model.network()).session():
            kept += [(path, target)] if network.scores_of(x).softmax(1)[0, target] >= least else []
    return kept


def explain(model: visx.Model, picture: np.ndarray, target: int, spec: str, precision: str = "fp32") -> np.ndarray:
    """The map (H, W) of one picture by METHOD or METHOD:KEY=VALUE,..."""
    name, _, rest = spec.partition(":")
    params = dict(pair.split("=", 1) for pair in rest.split(",") if pair)
    if name == "captum_lime":
        return captum_lime(model, picture, target, int(params.get("samples", 1000)))
    return visx.explain(model, picture, method=name, target=target, precision=precision, **params).map


def captum_lime(model: visx.Model, picture: np.ndarray, target: int, samples: int) -> np.ndarray:
    """captum's LIME with its own defaults (Lasso 0.01, zero baseline) on SLIC superpixels; probabilities."""
    from captum.attr import Lime

    from visx.methods.lime import LimeParams, superpixels

    array, _ = model.preprocess(picture)
    x = torch.from_numpy(array)[None]
    mean, std = np.array(model.preprocess.mean), np.array(model.preprocess.std)
    labels = torch.from_numpy(superpixels(array.transpose(1, 2, 0) * std + mean, LimeParams()))
    torch.manual_seed(0)
    network = model.network()
    with network.session():
        lime = Lime(lambda batch: network.scores_of(batch).softmax(1))
        found = lime.attribute(
            x, target=target, feature_mask=labels[None, None], n_samples=samples, perturbations_per_eval=16
        )
    return found[0, 0].numpy()


def main() -> None:
    """Print one line a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("methods", nargs="+", metavar="METHOD[:KEY=VALUE,...]")
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--mosaics", type=int, default=8)
    parser.add_argument("--singles", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--least", type=float, default=0.0, help="least probability of a photograph's class")
    parser.add_argument("--half", type=int, choices=(0, 1), help="every other photograph alone")
    parser.add_argument("--precision", default="fp32", help="of the maps; insertion is in fp32")
    args = parser.parse_args()
    model = visx.load_model(args.model)
    photos = known(model, photographs(args.photos, args.labels), args.least)
    photos = photos if args.half is None else photos[args.half :: 2]
    made = mosaics(photos, args.mosaics, args.seed)
    order = np.random.default_rng(args.seed).permutation(len(photos))[: args.singles]
    singles = [(np.asarray(Image.open(photos[i][0]).convert("RGB")), photos[i][1]) for i in order]
    for spec in args.methods:
        begun = time.perf_counter()
        shares = [cell_share(explain(model, *one, spec, args.precision), cell) for *one, cell in made]
        areas = []
        for picture, target in singles:
            x = torch.from_numpy(model.preprocess(picture)[0])[None]
            areas.append(insertion(model, x, explain(model, picture, target, spec, args.precision), target))
        seconds = (time.perf_counter() - begun) / max(1, len(made) + len(singles))
        figures = [
            f"{title} {np.mean(found):.3f} (n={len(found)}, {' '.join(f'{v:.2f}' for v in found)})"
            for title, found in (("cell share", shares), ("insertion", areas))
            if found
        ]
        print(f"{spec}: {'; '.join(figures)}; {seconds:.1f} s an image", flush=True)


if __name__ == "__main__":
    main()
