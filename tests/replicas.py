"""Slow replicas of the original programs, written from their definitions: kazuto1011/grad-cam-pytorch and zhoubolei/CAM.

They work by other means than visx: a network is cut by hand into what comes before a layer and what comes behind it,
ReLUs differentiate through autograd functions that stand in for `F.relu` for the length of one `with`, and `.backward()`
is called on one image at a time. Where the originals miss ReLUs (GoogLeNet's and DenseNet's functional ones) or mix two
tensors (DenseNet's `features`), the replica follows the rule and not the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Part = Callable[[Tensor], Tensor]


class _Deconv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad.clamp(min=0)


class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return grad.clamp(min=0) * (x > 0)


@contextmanager
def relu_is(rule: type[torch.autograd.Function] | None) -> Iterator[None]:
    """`F.relu`, which `nn.ReLU` calls too, is this function; without a rule a plain one that is never in place."""
    original = F.relu
    F.relu = lambda x, inplace=False: rule.apply(x) if rule else x.clamp(min=0)  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        F.relu = original


@dataclass(frozen=True)
class Architecture:
    """A torchvision network and, for two of its layers, what comes before (layer included) and behind."""

    name: str
    layers: dict[str, Callable[[nn.Module], tuple[Part, Part]]]
    cam: (
        Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]] | None
    )  # image -> pooled maps (K, h, w), weights (classes, K)
    init: dict[str, bool]

    def build(self) -> nn.Module:
        """With seeded random weights, in eval mode and frozen; the global random state is left alone."""
        from torchvision import models

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return getattr(models, self.name)(weights=None, **self.init).eval().requires_grad_(False)


def _chain(*parts: Part) -> Part:
    def run(x: Tensor) -> Tensor:
        for part in parts:
            x = part(x)
        return x

    return run


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1)


def _resnet(stages: int) -> Callable[[nn.Module], tuple[Part, Part]]:
    def cut(n: nn.Module) -> tuple[Part, Part]:
        layers = [n.layer1, n.layer2, n.layer3, n.layer4]
        stem = (n.conv1, n.bn1, n.relu, n.maxpool)
        return _chain(*stem, *layers[:stages]), _chain(*layers[stages:], n.avgpool, _flat, n.fc)

    return cut


def _sequential(count: int, *end: str, last: Part | None = None) -> Callable[[nn.Module], tuple[Part, Part]]:
    """`features` cut behind its first `count` children; then `last`, then the named modules, flattened between."""

    def cut(n: nn.Module) -> tuple[Part, Part]:
        children = list(n.features.children())
        behind = [getattr(n, name) if name != "flatten" else _flat for name in end]
        return _chain(*children[:count]), _chain(*children[count:], *([last] if last else []), *behind)

    return cut


def _googlenet(stages: int) -> Callable[[nn.Module], tuple[Part, Part]]:
    names = ["conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3"]
    names += [f"inception4{x}" for x in "abcde"] + ["maxpool4", "inception5a", "inception5b"]

    def cut(n: nn.Module) -> tuple[Part, Part]:
        modules = [getattr(n, name) for name in names]
        return _chain(*modules[:stages]), _chain(*modules[stages:], n.avgpool, _flat, n.fc)

    return cut


def _dense_end(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(F.relu(x), 1).flatten(1)


def _before(layer: str) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda n, x: BY_NAME[n.__class__.__name__].layers[layer](n)[0](x)[0]


ARCHITECTURES = (
    Architecture(
        "resnet18",
        {"layer3": _resnet(3), "layer4": _resnet(4)},
        lambda n, x: (_before("layer4")(n, x), n.fc.weight),
        {},
    ),
    Architecture(
        "vgg11_bn",
        {"features.18": _sequential(19, "avgpool", "flatten", "classifier"), "features": _sequential(29, "avgpool", "flatten", "classifier")},
        None,
        {"init_weights": False},
    ),
    Architecture(
        "densenet121",
        {"features.denseblock3": _sequential(9, "classifier", last=_dense_end), "features": _sequential(12, "classifier", last=_dense_end)},
        lambda n, x: (_before("features")(n, x).clamp(min=0), n.classifier.weight),
        {},
    ),
    Architecture(
        "squeezenet1_1",
        {"features.8": _sequential(9, "classifier", "flatten"), "features": _sequential(13, "classifier", "flatten")},
        lambda n, x: (_before("features")(n, x), n.classifier[1].weight.flatten(1)),
        {},
    ),
    Architecture(
        "googlenet",
        {"inception4e": _googlenet(13), "inception5b": _googlenet(16)},
        lambda n, x: (_before("inception5b")(n, x), n.fc.weight),
        {"init_weights": False, "aux_logits": False},
    ),
)  # fmt: skip
BY_NAME = dict(zip(("ResNet", "VGG", "DenseNet", "SqueezeNet", "GoogLeNet"), ARCHITECTURES, strict=True))


def input_gradient(net: nn.Module, image: Tensor, target: int, rule: type[torch.autograd.Function] | None) -> Tensor:
    """(1, 3, H, W): `BackPropagation`, `Deconvnet`, `GuidedBackPropagation`: the logits' backward from a one-hot vector."""
    x = image.clone().requires_grad_()
    with relu_is(rule):
        logits = net(x)
        one_hot = torch.zeros_like(logits)
        one_hot[0, target] = 1
        logits.backward(gradient=one_hot)
    assert x.grad is not None
    return x.grad


def grad_cam(before: Part, behind: Part, image: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """`GradCAM.generate`: the raw map after its ReLU (h, w), and as the program returns it, upsampled and min-maxed (H, W)."""
    with relu_is(None):
        maps = before(image).detach().requires_grad_()
        behind(maps)[0, target].backward()
    assert maps.grad is not None
    weights = F.adaptive_avg_pool2d(maps.grad, 1)
    raw = (maps.detach() * weights).sum(1, keepdim=True).clamp(min=0)
    large = F.interpolate(raw, image.shape[2:], mode="bilinear", align_corners=False)
    large = large - large.min()
    return raw[0, 0], (large / large.max())[0, 0]


def class_activation_map(maps: Tensor, weight: Tensor, target: int) -> Tensor:
    """`returnCAM` before its min-max: (h, w)."""
    channels, height, width = maps.shape
    return weight[target].matmul(maps.reshape(channels, height * width)).reshape(height, width)


DECONV, GUIDED = _Deconv, _Guided
