"""Plain gradients of models that visx loads against a plain PyTorch program: the lowest Pearson r over photographs.

    python benchmarks/originals.py [FOLDER] [--models resnet18,vgg11_bn,densenet121,squeezenet1_1,googlenet] [--batch 16]

The program has the same weights (seeded, random), takes one image at a time, and keeps torchvision's memory layout. Plain
gradients are the hard case, and random weights are: they move most where rounding moves a ReLU's input across zero.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import visx
from visx.images.decode import as_picture

MODELS = "resnet18,vgg11_bn,densenet121,squeezenet1_1,googlenet"
TARGET = 3


def program(module: nn.Module, x: Tensor) -> np.ndarray:
    """The gradient of one image's score: (3, H, W)."""
    leaf = x[None].requires_grad_()
    (grad,) = torch.autograd.grad(module(leaf)[0, TARGET], leaf)
    return grad[0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("samples"))
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    photographs = sorted(p for p in options.folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    print(
        f"{len(photographs)} photographs in batches of {options.batch}\n\n| | 1 - r, highest | median |\n| --- | ---: | ---: |"
    )
    for name in options.models.split(","):
        model = visx.load_model(name, "random")
        plain = copy.deepcopy(model.module).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        found = visx.explain(model, photographs, "backprop", target=TARGET, batch_size=options.batch)
        apart = []
        for photograph, result in zip(photographs, found, strict=True):
            array, _ = model.preprocess(as_picture(photograph).rgb)
            wanted = program(plain, torch.from_numpy(array))
            apart.append(1 - np.corrcoef(wanted.ravel().astype(float), result.channels.ravel().astype(float))[0, 1])
        print(f"| {name} | {max(apart):.1e} | {np.median(apart):.1e} |", flush=True)


if __name__ == "__main__":
    main()
