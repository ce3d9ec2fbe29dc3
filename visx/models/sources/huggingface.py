"""transformers' image classifiers, from a folder or by their name on the hub (extra `visx[hf]`)."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from visx.errors import VisxError, said_by, unknown, unsupported, usage
from visx.images.geometry import Preprocess
from visx.models import checkpoint, downloads
from visx.models.checkpoint.read import short
from visx.models.model import Weights
from visx.models.preprocessing import called_with, taking_bgr
from visx.models.sources import hub
from visx.models.sources.contract import Source
from visx.models.sources.processors import Unmatched, flips, preprocess_of
from visx.network.blackbox import BlackBox

OLDEST = (4, 56)  # the first that takes `dtype`
PROCESSOR = "preprocessor_config.json"
# In the order that transformers has; of an index, the files that it lists
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MEANS = {"regression": "regression", "multi_label_classification": "sigmoid"}  # problem_type -> what the output means
_ANOTHER = "one for image classification (...ForImageClassification), or a module of your own: -M FILE.py:FACTORY"

T = TypeVar("T")


class HuggingFace(Source):
    """An image classifier of transformers: a folder as `save_pretrained` writes it, or a name of the hub.

    A folder needs no network; of a name, files in the hub's cache are taken without asking for newer ones. Code that comes
    with a model is never run. The preprocessing is that of the image processor, class names are the configuration's.
    Raises `VisxError`: exit 2 for what is not there, exit 4 for a model that brings code of its own or does not classify
    images, exit 1 for files that are damaged or cannot be had.
    """

    example = "hf/google/vit-base-patch16-224"
    prefix = hub.PREFIX
    title = "transformers"
    owned = True
    resizable = True

    def __init__(self, spec: str) -> None:
        self.name = spec
        self._library = _library(spec)
        self.files = hub.files_of(spec.removeprefix(self.prefix))
        path = self.files.get(hub.CONFIG)
        if path is None:
            raise usage(f"{spec} has no {hub.CONFIG}: no model of transformers", self.files.advice())
        self._check(hub.read_json(path))
        self.folder = path.parent
        self.config = self._doing(
            hub.CONFIG, lambda: self._library.AutoConfig.from_pretrained(self.folder, trust_remote_code=False)
        )
        self.config.return_dict = True
        if any("WithTeacher" in name for name in _texts(self.config.architectures)):
            self.head = (
                "logits"  # beside those of the class token and of the distillation token, of which it is the mean
            )
        self.means = MEANS.get(str(getattr(self.config, "problem_type", None)))
        self.flipped = False
        self._preprocess = self._prepared()
        code = hashlib.sha256(path.read_bytes() + bytes([self.flipped])).hexdigest()
        self.code = lambda: code

    def _check(self, content: dict[str, Any]) -> None:
        """Refuse a model by its config.json: code of its own, unknown to transformers, or of another task."""
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS

        _refuse_code(self.name, content)
        kind, architectures = content.get("model_type"), _texts(content.get("architectures"))
        if kind is None and "architecture" in content:  # one of timm, which transformers wraps
            kind = "timm_wrapper"
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            version = f"transformers {self._library.__version__}"
            error = unknown("model_type", str(kind), CONFIG_MAPPING.keys(), "a newer transformers may know it")
            raise unsupported(f"{self.name}: {error.message}, says {version}", error.hint)
        known = CLASSIFIERS.get(kind, ())
        known = (known,) if isinstance(known, str) else known
        if not known or (architectures and not set(known).intersection(architectures) and kind != "timm_wrapper"):
            name = ", ".join(architectures) or f"of model_type {kind!r}"
            raise unsupported(f"{self.name} is {name}: of transformers' models visx takes image classifiers", _ANOTHER)

    @classmethod
    def takes(cls, spec: str) -> bool:
        return spec.startswith(cls.prefix)

    @classmethod
    def listed(cls) -> list[tuple[str, bool]]:
        if importlib.util.find_spec("transformers") is None:
            return []
        return [
            (f"{cls.prefix}{name}", any((folder / file).is_file() for file in WEIGHTS))
            for name, folder, content in hub.cached()
            if any("ForImageClassification" in name for name in _texts(content.get("architectures")))
        ]

    def _prepared(self) -> Preprocess:
        """The preprocessing of the model's image processor; what a user must state without one is put into `unstated`."""
        size = _sides(getattr(self.config, "image_size", None))
        path = self.files.get(PROCESSOR)
        if path is None:
            self.unstated = ("mean", "std") if size else ("size", "mean", "std")
            self.why_unstated = f"it has no {PROCESSOR}, so how a picture becomes the input is not known"
        else:
            _refuse_code(self.name, hub.read_json(path))
            auto = self._library.AutoImageProcessor
            processor = self._doing(PROCESSOR, lambda: auto.from_pretrained(path.parent, trust_remote_code=False))
            try:
                with _quiet():
                    result = preprocess_of(processor, int(getattr(self.config, "num_channels", 3)), size)
                self.flipped = flips(processor)
                return result
            except (TypeError, ValueError, OverflowError) as error:  # settings of another type
                raise VisxError(f"{path} is damaged: {said_by(error)}") from None
            except Unmatched as error:
                self.unstated, self.why_unstated = ("size", "mean", "std"), str(error)
        height, width = size or (224, 224)
        return Preprocess(round(min(height, width) * 256 / 224), (height, width))

    def preprocess(self) -> Preprocess:
        return self._preprocess

    def build(self) -> nn.Module:
        return self.build_for({})

    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module:
        config = copy.deepcopy(self.config)
        if classes is not None:
            config.num_labels = classes
        auto = self._library.AutoModelForImageClassification
        return self._fed(self._doing(hub.CONFIG, lambda: auto.from_config(config, dtype=torch.float32)))

    def sized(self, module: nn.Module) -> nn.Module:
        """The network for pictures of the size of `preprocess`: its position embedding is interpolated in each pass, where
        transformers does that. A network that cannot be told takes any size, or examining it shows that it does not."""
        size = _sides(getattr(self.config, "image_size", None))
        if size is None or self.preprocess().crop == size:
            return module
        return called_with(module, interpolate_pos_encoding=True)

    def labels(self, module: nn.Module | BlackBox) -> tuple[str, ...] | None:
        names = getattr(self.config, "id2label", None) or {}
        if sorted(names) != list(range(len(names))) or all(re.fullmatch(r"LABEL_\d+", str(n)) for n in names.values()):
            return None
        return tuple(str(names[index]) for index in range(len(names)))

    def default(self) -> tuple[nn.Module, Weights]:
        path = self.files.first(WEIGHTS)
        if path is None:
            raise VisxError(
                f"{self.name} holds no weights that visx reads ({', '.join(WEIGHTS[::2])})",
                hint="--weights FILE (a checkpoint you have), or --weights random",
            )
        parts = self._parts(path)
        module, info = self._loaded(path, parts)
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        other = sorted(str(key[0]) for key in info["mismatched_keys"])
        if missing or other:
            kinds = ((missing, "missing"), (other, "of another shape"))
            raise VisxError(
                f"{path} does not fit its {hub.CONFIG}: "
                + "; ".join(f"{len(keys)} tensors {word} ({short(keys)})" for keys, word in kinds if keys),
                hint="is it a backbone, whose classifier was not trained? --weights FILE takes a checkpoint of the whole",
            )
        if unexpected:
            text = f"{path.name}: {len(unexpected)} of its tensors are not the network's ({short(unexpected)})"
            self.remarks = (text,)
        digests = [checkpoint.digest_file(part) for part in parts]
        one = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return self._fed(module), Weights(path.name, one)

    def _parts(self, path: Path) -> list[Path]:
        """The files of weights: one, or those that an index lists."""
        if path.suffix != ".json":
            return [path]
        names = hub.read_json(path).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise VisxError(f"{path} lists no files of weights")
        outside = [name for name in names.values() if Path(str(name)).name != name]
        if outside:
            raise VisxError(f"{path} points outside of its folder ({outside[0]})")
        parts = {name: self.files.get(name) for name in sorted(set(names.values()))}
        lost = [name for name, part in parts.items() if part is None]
        if lost:
            raise VisxError(f"{self.name}: {len(lost)} of its files of weights are missing ({short(lost)})")
        return [part for part in parts.values() if part is not None]

    def _loaded(self, path: Path, parts: list[Path]) -> tuple[nn.Module, dict[str, Any]]:
        """The network with these weights, and what transformers says of their names."""
        auto = self._library.AutoModelForImageClassification
        try:
            return self._doing(
                path.name,
                lambda: auto.from_pretrained(
                    path.parent,
                    config=self.config,
                    dtype=torch.float32,
                    trust_remote_code=False,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                ),
            )
        except VisxError:
            for part in parts:  # visx's own reader says what is wrong with a file
                checkpoint.read(part)
            raise

    def _fed(self, module: nn.Module) -> nn.Module:
        """A module that takes what `Preprocess` gives."""
        return taking_bgr(module) if self.flipped else module

    def _doing(self, file: str, run: Callable[[], T]) -> T:
        """The result of `run`, a call of transformers about a file, without its talk. Failures become `VisxError`s."""
        try:
            with _quiet():
                return run()
        except Exception as error:  # whatever transformers raises
            raise VisxError(
                f"{self.name}: transformers cannot use its {file}: {said_by(error)}",
                hint="VISX_DEBUG=1 shows the traceback",
            ) from error


def _library(spec: str) -> ModuleType:
    """The package transformers. Raises `VisxError` (usage, exit 2) where it is not installed or too old."""
    downloads.prepare_hub()
    try:
        with redirect_stdout(sys.stderr):
            import transformers
    except ImportError:
        raise usage(f"{spec} needs transformers", "pip install 'visx[hf]'") from None
    version = re.match(r"(\d+)\.(\d+)", transformers.__version__)
    if version and tuple(map(int, version.groups())) < OLDEST:
        raise usage(
            f"{spec} needs transformers {'.'.join(map(str, OLDEST))} or newer, and {transformers.__version__} is installed",
            "pip install -U 'visx[hf]'",
        )
    return transformers


def _refuse_code(name: str, content: dict[str, Any]) -> None:
    """An error (exit 4) where a configuration names code of its own."""
    if "auto_map" in content:
        raise unsupported(
            f"{name} comes with code of its own (auto_map), and visx runs no code from a model",
            "load it yourself: -M FILE.py:FACTORY, or visx.wrap(module, ...) in Python",
        )


def _texts(value: Any) -> list[str]:
    """A list of a configuration as texts; empty where it is none."""
    return [str(entry) for entry in value] if isinstance(value, list) else []


def _sides(value: Any) -> tuple[int, int] | None:
    """An `image_size` as (height, width); None where it is no size."""
    both = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    return (int(both[0]), int(both[1])) if len(both) == 2 and all(isinstance(v, int) and v > 0 for v in both) else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, transformers neither warns nor draws progress bars; what it prints goes to standard error."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
