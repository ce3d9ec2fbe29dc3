"""Changing a model's preprocessing where the user states another one than the model's source."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, Literal, cast

from torch import Tensor, nn

from visx.errors import unknown, usage
from visx.images.geometry import Preprocess
from visx.images.numeric import check_range
from visx.models.sources.contract import Source

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # those of Pillow
LAYOUTS = ("NCHW", "NHWC")
Size = int | Sequence[int]


def adapted(
    preprocess: Preprocess,
    *,
    size: Size | None = None,
    resize: Size | None = None,
    squash: bool | None = None,
    interpolation: str | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    layout: str | None = None,
    range: Sequence[float] | None = None,
) -> Preprocess:
    """The preprocessing with a change for each argument that is not None.

    - `size`: the input's (height, width), or one number for both. Without `resize`, the resized picture keeps its proportion
      to the crop.
    - `resize`: the shorter side before the central crop, or a (height, width) that the picture is stretched to.
    - `squash`: True stretches the picture to the input, False crops.
    - `mean`, `std`: of pixels in 0..1, one number for each channel of the network.
    - `layout`: "NHWC" where the network takes (B, H, W, C).
    - `range`: the (black, white) of numeric pictures.

    Raises `VisxError` (usage, exit 2) for other values.
    """
    if squash is not None and not isinstance(squash, bool):
        raise usage(f"squash is {squash!r:.60}", "True stretches the picture to the input, False crops")
    if squash and resize is not None:
        raise usage("squash stretches a picture to the input, resize is what comes before a crop", "one or the other")
    changes: dict[str, Any] = {"crop": preprocess.crop if size is None else sides("size", size)}
    if squash:
        changes.update(resize=changes["crop"], fit="stretch")
    elif resize is not None:
        one = isinstance(resize, int)
        changes.update(resize=sides("resize", resize)[0] if one else sides("resize", resize), fit="stretch")
    elif size is not None or squash is False:
        changes.update(_proportionate(preprocess, changes["crop"], whole=squash is not False))
    if interpolation is not None:
        if interpolation not in INTERPOLATIONS:
            raise unknown("interpolation", str(interpolation), INTERPOLATIONS)
        changes["interpolation"] = interpolation
    changes["mean"] = preprocess.mean if mean is None else numbers("mean", mean)
    changes["std"] = preprocess.std if std is None else numbers("std", std)
    if len(changes["mean"]) != len(changes["std"]):
        raise usage(
            f"mean has {len(changes['mean'])} numbers and std {len(changes['std'])}", "one a channel of the network"
        )
    if min(changes["std"]) <= 0:
        raise usage(f"std {min(changes['std']):g}: it divides, and must be above 0")
    if layout is not None:
        if layout not in LAYOUTS:
            raise unknown("layout", str(layout), LAYOUTS)
        changes["layout"] = layout
    if range is not None:
        if not isinstance(range, (tuple, list)) or len(range) != 2:
            raise usage(f"range {range!r} is not (black, white)", "for instance range=(0, 4095)")
        changes["range"] = check_range(*range)
    return replace(preprocess, **changes)


def _proportionate(preprocess: Preprocess, crop: tuple[int, int], whole: bool) -> dict[str, Any]:
    """`resize` and `fit` for another crop, in the present proportion of resize to crop.

    `whole`: a picture that is stretched stays so; else it covers the size and is cropped.
    """
    present = preprocess.resize
    if present is None:
        return {}
    if isinstance(present, int):
        ratio = present / min(preprocess.crop)
        if crop[0] == crop[1]:
            return {"resize": round(crop[0] * ratio)}
        return {"resize": (round(crop[0] * ratio), round(crop[1] * ratio)), "fit": "cover"}
    ratios = present[0] / preprocess.crop[0], present[1] / preprocess.crop[1]
    target = round(crop[0] * ratios[0]), round(crop[1] * ratios[1])
    return {"resize": target} if whole or preprocess.fit != "stretch" else {"resize": target, "fit": "cover"}


def sides(name: str, value: Any) -> tuple[int, int]:
    """The (height, width) of a size: one whole number for both, or two.

    Raises `VisxError` (usage, exit 2) for anything else and for sides outside of 1 to 16384 pixels; `name` is for the message.
    """
    both = (value, value) if isinstance(value, Integral) else tuple(value) if isinstance(value, (tuple, list)) else ()
    whole = all(isinstance(v, Integral) and not isinstance(v, bool) for v in both)
    if len(both) != 2 or not whole or not all(1 <= int(v) <= 16384 for v in both):
        raise usage(f"{name} {value!r} is no size", f"{name}=224, or (height, width), from 1 to 16384 pixels")
    return int(both[0]), int(both[1])


def numbers(name: str, value: Any) -> tuple[float, ...]:
    """One number or several as a tuple of floats. Raises `VisxError` (usage, exit 2) for anything else."""
    values = (
        tuple(value)
        if isinstance(value, (tuple, list, Iterator))
        else tuple(value.tolist())
        if hasattr(value, "tolist")
        else (value,)
    )
    try:
        values = tuple(float(v) for v in values)
    except (TypeError, ValueError):
        values = ()
    if not values or not all(math.isfinite(v) for v in values):
        raise usage(f"{name} {value!r}: one number a channel of the network", f"for instance {name}=(0.5, 0.5, 0.5)")
    return values


def of_config(config: Mapping[str, Any]) -> Preprocess:
    """The preprocessing of a configuration as timm has it: `input_size` (C, H, W), `crop_pct`, `crop_mode` ("center",
    "squash" or "border"), `interpolation`, `mean` and `std` of pixels in 0..1. All but the last two may be missing."""
    height, width = config.get("input_size", (3, 224, 224))[1:]
    scale, mode = config.get("crop_pct") or 0.875, config.get("crop_mode", "center")
    resize: int | tuple[int, int] = (int(height / scale), int(width / scale))
    fit: Literal["stretch", "cover", "inside"] = "stretch"
    fill = (0, 0, 0)
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if mode == "border":
        fit, fill = "inside", (round(255 * mean[0]), round(255 * mean[1]), round(255 * mean[2]))
    elif mode != "squash" and height != width:
        fit = "cover"
    elif mode != "squash":
        resize = int(height / scale)
    return Preprocess(resize, (height, width), config.get("interpolation", "bilinear"), mean, std, fit, fill)


def override(source: Source, pictures: dict[str, Any]) -> None:
    """Change a source's preprocessing by `pictures`, arguments of `adapted`; NHWC modules are wrapped by `taking_nhwc`."""
    preprocess = adapted(source.preprocess(), **pictures)
    source.preprocess = lambda: preprocess  # type: ignore[method-assign]
    source.given = frozenset(key for key, value in pictures.items() if value is not None)
    if preprocess.layout == "NHWC":
        build = cast(Callable[..., nn.Module], source.build)
        source.build = lambda *args, **kwargs: taking_nhwc(build(*args, **kwargs))  # type: ignore[method-assign]


def taking_nhwc(module: nn.Module) -> nn.Module:
    """A module that takes (B, C, H, W), around one that takes (B, H, W, C)."""
    return _taking(_channels_to_the_end, module)


def taking_bgr(module: nn.Module) -> nn.Module:
    """A module that takes red, green and blue, around one that takes blue, green and red."""
    return _taking(_channels_turned, module)


def called_with(module: nn.Module, **options: Any) -> nn.Module:
    """The module, whose forward is called with these options where it has them; the module itself where it lacks one."""
    inner = module
    while isinstance(inner, _Taking):
        inner = inner._inner
    fits = set(options) <= set(inspect.signature(inner.forward).parameters)
    return _Taking(_as_they_are, module, options) if fits else module


def _taking(change: Callable[[Tensor], Tensor], module: nn.Module) -> nn.Module:
    return module if isinstance(module, _Taking) and module._change is change else _Taking(change, module)


def _as_they_are(x: Tensor) -> Tensor:
    return x


def _channels_to_the_end(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


def _channels_turned(x: Tensor) -> Tensor:
    return x.flip(1)


class _Taking(nn.Module):
    """Passes pictures (B, C, H, W) to the inner module as it takes them: changed by `_change`, with `_options`.

    It shares the inner module's children, parameters and buffers under their own names, so that layer names stay the same.
    """

    _change: Callable[[Tensor], Tensor]
    _inner: nn.Module
    _options: Mapping[str, Any]

    def __init__(
        self, change: Callable[[Tensor], Tensor], inner: nn.Module, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        object.__setattr__(self, "_change", change)
        object.__setattr__(self, "_options", options or {})
        object.__setattr__(self, "_inner", inner)
        self.training = inner.training
        for kind in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            object.__setattr__(self, kind, getattr(inner, kind))

    def forward(self, x: Tensor, **options: Any) -> Any:
        """The inner module's output, in the mode (training or evaluation) of this module."""
        mode, self._inner.training = self._inner.training, self.training
        try:
            return self._inner(self._change(x), **self._options, **options)
        finally:
            self._inner.training = mode
