"""torchvision's classification models."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visx.errors import unknown, unsupported
from visx.images.geometry import Preprocess
from visx.models import checkpoint, downloads
from visx.models.model import Model, Weights
from visx.models.sources.builtin import BuiltIn


class Torchvision:
    """A torchvision classification model, with the preprocessing and class names of its default weights.

    Raises `VisxError` for unknown names (exit 2) and for models that do not classify (exit 4).
    """

    channels_last = True
    owned = True
    rounding_safe = False
    resizable = True
    plain = True
    code = None

    def __init__(self, name: str) -> None:
        from torchvision import models

        known = models.list_models(module=models)
        if name not in known and name in models.list_models():
            raise unsupported(
                f"{name}: of torchvision's models visx takes those for classification by name, "
                "not those for detection, segmentation, video or optical flow, nor quantised ones",
                "a module of your own that gives scores of classes: -M FILE.py:FACTORY",
            )
        if name not in known:
            raise unknown("model", name, [BuiltIn.name, *known], "`visx models` lists them")
        self.name = name
        self._enum = models.get_model_weights(name).DEFAULT
        # In channels-last on a CPU, VGG's large convolutions round several times more, enough to change the maxima of
        # max pooling and with them single pixels of a gradient. The plain layout takes 10 to 20 % more time.
        self.channels_last = not name.startswith("vgg")

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
        return self.build(**options)

    def preprocess(self) -> Preprocess:
        preset = self._enum.transforms()
        return Preprocess(
            preset.resize_size[0],
            (preset.crop_size[0],) * 2,
            preset.interpolation.value,
            tuple(preset.mean),
            tuple(preset.std),
        )

    def labels(self, module: nn.Module) -> tuple[str, ...] | None:
        return tuple(self._enum.meta["categories"])

    def default(self) -> Model:
        from torchvision import models

        with downloads.downloading(f"torchvision's default weights of {self.name}", self._enum.url):
            module = models.get_model(self.name, weights=self._enum, progress=sys.stderr.isatty())
        file = Path(torch.hub.get_dir(), "checkpoints", self._enum.url.rsplit("/", 1)[-1])
        digest = checkpoint.digest_file(file) if file.is_file() else checkpoint.digest_state(module)
        weights = Weights(str(self._enum), digest)
        return Model(self.name, module, self.preprocess(), weights, self.labels(module), self.channels_last, self.owned)
