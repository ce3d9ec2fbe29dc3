"""torchvision's classification models."""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visx.errors import unsupported
from visx.images.geometry import Preprocess
from visx.models import checkpoint, downloads
from visx.models.model import Weights
from visx.models.sources import DEFAULT_MODEL
from visx.models.sources.contract import Source
from visx.network.blackbox import BlackBox


class Torchvision(Source):
    """A torchvision classification model, with the preprocessing and class names of its default weights.

    Raises `VisxError` (exit 4) for models that do not classify.
    """

    example = "resnet18"
    title = "torchvision"
    owned = True
    resizable = True
    plain = True

    def __init__(self, spec: str) -> None:
        from torchvision import models

        if spec not in models.list_models(module=models):
            raise unsupported(
                f"{spec}: of torchvision's models visx takes those for classification by name, "
                "not those for detection, segmentation, video or optical flow, nor quantised ones",
                "a module of your own that gives scores of classes: -M FILE.py:FACTORY",
            )
        self.name = spec
        self._enum = models.get_model_weights(spec).DEFAULT
        # In channels-last on a CPU, VGG's large convolutions round several times more, enough to change the maxima of
        # max pooling and with them single pixels of a gradient. The plain layout takes 10 to 20 % more time.
        self.channels_last = not spec.startswith("vgg")

    @classmethod
    def takes(cls, spec: str) -> bool:
        if spec == DEFAULT_MODEL or not spec.isidentifier():  # so that torchvision is not imported to learn this
            return False
        from torchvision import models

        return spec in models.list_models()

    @classmethod
    def listed(cls) -> list[tuple[str, bool]]:
        from torchvision import models

        names = models.list_models(module=models)
        return [(name, _file(models.get_model_weights(name).DEFAULT.url).is_file()) for name in names]

    def build(self, **options: Any) -> nn.Module:
        from torchvision import models

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about future initialisation schemes
            return models.get_model(self.name, weights=None, **options)

    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module:
        options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        if self.name in ("googlenet", "inception_v3"):
            # checkpoints of these two may have the auxiliary heads of training or not
            options |= {"aux_logits": any("aux" in key.lower() for key in state), "init_weights": False}
            # torchvision's own files expect TensorFlow's normalisation, which torchvision sets for `weights=` only
            options["transform_input"] = digest[:8] == self._enum.url.rsplit("-", 1)[-1].split(".")[0] != ""
        own = self.build(**options)
        size = self._square(own)
        if size is None:
            return own
        # a checkpoint is trained at the network's own size, or at that of `preprocess`
        return min(
            own, self.build(image_size=size, **options), key=lambda one: checkpoint.shapes_that_differ(one, state)
        )

    def sized(self, module: nn.Module) -> nn.Module:
        from torchvision.models.vision_transformer import interpolate_embeddings

        size = self._square(module)
        if size is not None:
            vit: Any = module
            state = interpolate_embeddings(size, vit.patch_size, OrderedDict(vit.state_dict()))
            vit.encoder.pos_embedding = nn.Parameter(state["encoder.pos_embedding"], requires_grad=False)
            vit.image_size, vit.seq_length = size, vit.encoder.pos_embedding.shape[1]
        return module

    def _square(self, module: nn.Module) -> int | None:
        """The side of the pictures of `preprocess`, where the network is a ViT of another side that can be made to take them;
        else None."""
        from torchvision.models import VisionTransformer

        height, width = self.preprocess().crop
        if not isinstance(module, VisionTransformer) or height != width:
            return None
        return height if height != module.image_size and height % module.patch_size == 0 else None

    def preprocess(self) -> Preprocess:
        preset = self._enum.transforms()
        return Preprocess(
            preset.resize_size[0],
            (preset.crop_size[0],) * 2,
            preset.interpolation.value,
            tuple(preset.mean),
            tuple(preset.std),
        )

    def labels(self, module: nn.Module | BlackBox) -> tuple[str, ...] | None:
        return tuple(self._enum.meta["categories"])

    def default(self) -> tuple[nn.Module, Weights]:
        from torchvision import models

        with downloads.downloading(f"torchvision's default weights of {self.name}", self._enum.url):
            module = models.get_model(self.name, weights=self._enum, progress=sys.stderr.isatty())
        file = _file(self._enum.url)
        digest = checkpoint.digest_file(file) if file.is_file() else checkpoint.digest_state(module)
        return module, Weights(str(self._enum), digest)


def _file(url: str) -> Path:
    """Where torchvision keeps the weights that it has downloaded from an address."""
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
