"""Maps of models that visx loads against a plain PyTorch program: the lowest Pearson r over photographs.

    python benchmarks/originals.py [FOLDER] [--models resnet18,vgg11_bn,densenet121,squeezenet1_1,googlenet] [--batch 16]

Plain gradients, and Grad-CAM (before its ReLU) and Guided Grad-CAM at the default layer and at one in the middle. The
program has the same weights (seeded, random), takes one image at a time, and keeps torchvision's memory layout. Gradients
are the hard case, and random weights are: they move most where rounding moves a ReLU's input across zero. A layer behind
which no convolution comes hides nothing of that kind.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visx
from visx.images.decode import as_picture

MODELS = "resnet18,vgg11_bn,densenet121,squeezenet1_1,googlenet"
MIDDLE = {
    "resnet18": "layer2", "resnet50": "layer3", "vgg11_bn": "features.14", "densenet121": "features.denseblock3",
    "squeezenet1_1": "features.7", "googlenet": "inception4d", "efficientnet_lite0": "blocks.4",
}  # fmt: skip
TARGET = 3


class GuidedReLU(torch.autograd.Function):
    """A ReLU with the backward pass of guided backpropagation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        output = x.clamp(min=0)
        ctx.save_for_backward(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (output,) = ctx.saved_tensors
        return grad.clamp(min=0) * (output > 0)


def backprop(module: nn.Module, x: Tensor) -> Tensor:
    """The gradient of one image's score: (3, H, W)."""
    leaf = x[None].requires_grad_()
    (grad,) = torch.autograd.grad(module(leaf)[0, TARGET], leaf)
    return grad[0]


def guided_backprop(module: nn.Module, x: Tensor) -> Tensor:
    """The same by the guided rule: networks of ReLUs alone, which all go through one function."""
    with mock.patch.object(F, "relu", lambda x, inplace=False: GuidedReLU.apply(x)):
        return backprop(module, x)


def gradcam(module: nn.Module, x: Tensor, layer: str) -> Tensor:
    """Grad-CAM of one image before its ReLU: (h, w)."""
    outputs: list[Tensor] = []

    def keep(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()  # what follows may work in place

    handle = module.get_submodule(layer).register_forward_hook(keep)
    score = module(x[None].requires_grad_())[0, TARGET]
    handle.remove()
    (grad,) = torch.autograd.grad(score, outputs[0])
    return (grad.mean((2, 3), keepdim=True) * outputs[0]).sum(1)[0].detach()


def guided_gradcam(module: nn.Module, x: Tensor, layer: str) -> Tensor:
    """The guided gradient (3, H, W) times the upsampled Grad-CAM behind its ReLU."""
    cam = gradcam(module, x, layer).relu()[None, None]
    return F.interpolate(cam, x.shape[1:], mode="bilinear")[0] * guided_backprop(module, x)


def apart(some: np.ndarray, others: np.ndarray) -> float:
    """1 - Pearson's r; 0 where both are zero everywhere."""
    if not some.any() and not others.any():
        return 0.0
    return float(1 - np.corrcoef(some.ravel().astype(float), others.ravel().astype(float))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("samples"))
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    photographs = sorted(p for p in options.folder.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    print(f"{len(photographs)} photographs in batches of {options.batch}\n")
    print("| | method | layer | 1 - r, highest | median |\n| --- | --- | --- | ---: | ---: |")
    for name in options.models.split(","):
        compare(name, photographs, options.batch)


def compare(name: str, photographs: list[Path], batch: int) -> None:
    """Print a network's rows of the table."""
    model = visx.load_model(name, "default" if name == "efficientnet_lite0" else "random")
    plain = copy.deepcopy(model.module).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    inputs = [torch.from_numpy(model.preprocess(as_picture(p).pixels)[0]) for p in photographs]

    def row(method: str, layer: str | None, program: Callable[..., Tensor], **more: Any) -> None:
        explained = visx.explain(model, photographs, method, target=TARGET, batch_size=batch, layer=layer, **more)
        maps = [
            r.channels if r.channels is not None else r.native if r.native is not None else r.map for r in explained
        ]
        wanted = [program(plain, x, *([layer] if layer else [])).numpy() for x in inputs]
        found = list(map(apart, maps, wanted))
        print(f"| {name} | {method} | {layer or ''} | {max(found):.1e} | {np.median(found):.1e} |", flush=True)

    row("backprop", None, backprop)
    for layer in (str(model.anatomy.default_layer), MIDDLE[name]):
        row("gradcam", layer, gradcam, relu=False)
        if name != "efficientnet_lite0":  # its activations are ReLU6
            row("guided_gradcam", layer, guided_gradcam)


if __name__ == "__main__":
    main()
