"""What Python callers hand in, checked: each function returns what the engine takes, or raises a usage error that says so."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from visx.errors import said_by, unknown, usage
from visx.methods import get_method
from visx.methods.contract import Method
from visx.models import Model, load_model, wrap
from visx.models.model import DTYPES
from visx.network.outputs import ScoreKind
from visx.network.paths import layer_name, layer_paths


def model_of(model: Any) -> Model:
    """A `Model`; a bare module is wrapped with ImageNet's preprocessing, a name is loaded."""
    if isinstance(model, Model):
        return model
    if isinstance(model, nn.Module):
        return wrap(model)
    if isinstance(model, str):
        return load_model(model)
    raise usage(
        f"model is {_told(model)}", "what visx.load_model or visx.wrap return, a torch.nn.Module, or a model's name"
    )


def methods_of(method: Any, params: Mapping[str, Any]) -> tuple[list[Method], dict[str, dict[str, Any]]]:
    """The methods of a name or several, and each one's parameters: of several, those that take one get it."""
    names = [method] if isinstance(method, str) else _listed(method)
    if not names or not all(isinstance(name, str) for name in names):
        raise usage(f"method is {_told(method)}", "a name, or a list of names: `visx methods` shows them")
    methods = [get_method(name) for name in dict.fromkeys(names)]
    known = [key for m in methods for key in m.params.model_fields]
    for key in params:
        if key not in known and len(methods) > 1:
            raise unknown(f"parameter of {', '.join(m.name for m in methods)}", key, known)
    alone = len(methods) == 1  # which says itself what it does not take
    return methods, {
        m.name: {key: value for key, value in params.items() if alone or key in m.params.model_fields} for m in methods
    }


def images_of(image: Any) -> tuple[list[Any], bool]:
    """The images, and whether a list (a tuple, a generator) of them was given, so that a list is answered."""
    if isinstance(image, (list, tuple, Iterator)) and not hasattr(image, "read"):
        return [_image(one) for one in image], True
    return [_image(image)], False


def _image(image: Any) -> Any:
    """An image as `as_picture` takes it."""
    if isinstance(image, Tensor):
        return image.detach().cpu().numpy()
    if isinstance(image, os.PathLike) and not isinstance(image, Path):
        return Path(os.fsdecode(image))
    if hasattr(image, "read") and not hasattr(image, "save"):  # a file, and no Pillow image
        image = image.read()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return bytes(image)
    if image is None or isinstance(image, (bool, int, float, complex, Mapping, set)):
        raise usage(f"image is {_told(image)}", "a path, a Pillow image, an array (H, W, 3), or a list of them")
    return image


def layers_of(layer: Any, model: Model) -> list[str]:
    """The paths of layers given by path or as modules, one or several; none where the default is wanted. A list within the list
    is the layers of one map, `A+B`."""
    if layer is None:
        return []
    given = [layer] if isinstance(layer, (str, nn.Module)) else _listed(layer)
    several = [[one] if isinstance(one, (str, nn.Module)) else _listed(one) or [None] for one in given or ()]
    if given is None or not all(isinstance(one, (str, nn.Module)) for some in several for one in some):
        raise usage(
            f"layer is {_told(layer)}",
            "a module's path, one of the model's modules, or a list of them; a list of those within it is one map",
        )
    module = model.module
    return ["+".join(path for one in some for path in _paths(module, one)) for some in several]


def _paths(module: nn.Module, layer: str | nn.Module) -> list[str]:
    return layer_paths(module, layer) if isinstance(layer, str) else [layer_name(module, layer)]


def targets_of(target: Any) -> list[str]:
    """The targets, one or several, as text."""
    several = _listed(target)
    given = [target] if several is None else several
    texts = [_target(one) for one in given]
    if not texts or None in texts:
        raise usage(f"target is {_told(target)}", "top1, topK, a class index, a label, FILE.csv, or a list of them")
    return [text for text in texts if text is not None]


def _target(target: Any) -> str | None:
    if isinstance(target, (str, Path)):
        return str(target)
    number = _integer(target)
    return None if number is None else str(number)


def score_of(score: Any) -> ScoreKind | None:
    """A kind of score, or None for each method's own."""
    if score is not None and score not in get_args(ScoreKind):
        raise unknown("score", str(score), get_args(ScoreKind))
    return score  # type: ignore[no-any-return]


def precision_of(precision: Any) -> str:
    """A precision's name."""
    if not isinstance(precision, str) or precision not in DTYPES:
        raise usage(f"unknown precision {precision!r}", "fp32, bf16 or fp16")
    return precision


def whole(name: str, value: Any, least: int | None = None) -> int:
    """A whole number (numpy's and tensors' too), not below `least`."""
    number = _integer(value)
    if number is None:
        raise usage(f"{name} is {_told(value)}", "a whole number")
    if least is not None and number < least:
        raise usage(f"{name}={number}: at least {least}")
    return number


def _integer(value: Any) -> int | None:
    if isinstance(value, bool) or type(value).__name__ == "bool" or getattr(value, "dtype", None) == torch.bool:
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _listed(value: Any) -> list[Any] | None:
    """The members of a list, tuple, set, generator or array; None where a value is none of them."""
    if isinstance(value, (str, bytes, Mapping, nn.Module)):
        return None
    try:
        return list(value)
    except TypeError:
        return None


def _told(value: Any) -> str:
    """A value in a message: shown where that is short, else its type."""
    try:
        shown = repr(value)
    except Exception as error:
        shown = said_by(error)
    return shown if len(shown) <= 40 and "\n" not in shown else f"of type {type(value).__name__}"
