"""Grad-CAM and gradient methods against bare passes and against peers: ratios of medians, one process, in turns.

    python benchmarks/gradients.py [--models resnet50,efficientnet_lite0] [--batches 1,16] [--rounds 15] [--device cpu]

The bare forward pass runs without gradients in the faster memory layout (channels-last), frozen, the same for all. The
peers get the same module and input. grad-cam, captum and torchcam take part where they are installed.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from collections.abc import Callable

import torch
from timing import table, take_turns
from torch import Tensor, nn

import visx
from visx.engine.batch import explain_batch
from visx.engine.jobs import plan
from visx.methods import get_method
from visx.models import Model
from visx.network.isolation import undisturbed
from visx.targets.classes import parse_target


def visx_runs(model: Model, name: str, x: Tensor) -> Callable[[], object]:
    """One of our methods on a batch, classes found on the way, as a run over a folder does it: in one session."""
    (job,) = plan(model, [get_method(name)])
    specs = [parse_target("top1", model.names, model.classes)] * len(x)
    network = model.network()

    return lambda: explain_batch(model, network, job, x, specs, [0] * len(x))


def bare_forward(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return module(x)

    return run


def bare_backward(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        leaf = x.detach().requires_grad_()
        logits = module(leaf)
        return torch.autograd.grad(logits.max(1).values.sum(), leaf)

    return run


def peers(module: nn.Module, layer: nn.Module, x: Tensor, classes: list[int]) -> dict[str, Callable[[], object]]:
    """Grad-CAM of whichever peers are installed, each used as its documentation says, on an ordinary unfrozen model."""
    found_name = next(name for name, m in module.named_modules() if m is layer)
    module = copy.deepcopy(module).requires_grad_(True)
    layer = module.get_submodule(found_name)
    found: dict[str, Callable[[], object]] = {}
    try:
        from captum.attr import LayerAttribution, LayerGradCam

        def captum() -> object:
            map_ = LayerGradCam(module, layer).attribute(x, target=classes, relu_attributions=True)
            return LayerAttribution.interpolate(map_, tuple(x.shape[-2:]), "bilinear")

        found["captum gradcam"] = captum
    except ImportError:
        pass
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        def grad_cam() -> object:
            with GradCAM(model=module, target_layers=[layer]) as cam:
                return cam(input_tensor=x, targets=[ClassifierOutputTarget(c) for c in classes])

        found["grad-cam gradcam"] = grad_cam
    except ImportError:
        pass
    try:
        from torchcam.methods import GradCAM as TorchCAM

        def torchcam() -> object:
            with TorchCAM(module, target_layer=layer) as cam:
                scores = module(x.detach().requires_grad_(True))
                return cam(classes, scores)

        found["torchcam gradcam"] = torchcam
    except ImportError:
        pass
    return found


def loaded(name: str, device: str) -> Model:
    return visx.load_model(name, "default" if name == "efficientnet_lite0" else "random", device=device)


def turns(
    contenders: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """`take_turns`, each turn waiting for the device to be done."""

    def finished(run: Callable[[], object]) -> Callable[[], object]:
        def whole() -> None:
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()

        return whole

    return take_turns({name: finished(run) for name, run in contenders.items()}, rounds, clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet50,efficientnet_lite0")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # full float32 for all, as visx has it
    processor = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} cores"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor}\n")
    for name in options.models.split(","):
        model = loaded(name, options.device)
        layer = model.network().layer(str(model.anatomy.default_layer))
        for batch in map(int, options.batches.split(",")):
            x = torch.randn(batch, 3, *model.input_size, device=options.device)
            x = x.contiguous(memory_format=torch.channels_last)
            with undisturbed(model.module), torch.no_grad():
                classes = model.module(x).argmax(1).tolist()
            contenders = {"bare forward": bare_forward(model.module, x), "gradcam": visx_runs(model, "gradcam", x)}
            contenders |= peers(model.module, layer, x, classes)
            print(table(f"{name}, batch {batch}: Grad-CAM", turns(contenders, options.rounds), "bare forward"), "\n")
            contenders = {"forward + backward": bare_backward(model.module, x)}
            contenders |= {m: visx_runs(model, m, x) for m in ("backprop", "guided_backprop", "deconvnet")}
            with model.network().session():
                medians = turns(contenders, options.rounds)
            print(table(f"{name}, batch {batch}: gradients", medians, "forward + backward"), "\n", flush=True)
        layouts(model, options.rounds)


def layouts(model: Model, rounds: int) -> None:
    """A forward pass of 16 in either memory layout."""
    x = torch.randn(16, 3, *model.input_size, device=model.device)
    contiguous = loaded(model.name, str(model.device)).module
    contiguous.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    contenders = {
        "contiguous": bare_forward(contiguous, x),
        "channels-last": bare_forward(model.module, x.contiguous(memory_format=torch.channels_last)),
        "gradcam": visx_runs(model, "gradcam", x),
    }
    with model.network().session():
        medians = turns(contenders, rounds)
    print(table(f"{model.name}, batch 16: layouts", medians, "contiguous"), "\n", flush=True)


if __name__ == "__main__":
    main()
