"""How transformers' image processors prepare a picture, as a `Preprocess`.

A processor's class decides what its settings do: the same `size` is the resized picture for one class and the crop for
another. `preprocess_of` reads settings by class, then runs the processor once on a drawn picture and compares: a class that
does something else is refused, not guessed at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from visx.errors import said_by
from visx.images.geometry import Preprocess

RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
_APART = (
    3.0  # mean difference in levels of 255 above which two results are not of one preprocessing; resampling gives 0.5
)


@dataclass(frozen=True)
class _Size:
    """A processor's `size` or `crop_size`; what it does not state is None."""

    height: int | None = None
    width: int | None = None
    shortest_edge: int | None = None

    @classmethod
    def of(cls, value: Any) -> _Size:
        if isinstance(value, int):
            return cls(value, value)
        keys = ("height", "width", "shortest_edge")
        found = (value.get(k) if isinstance(value, Mapping) else getattr(value, k, None) for k in keys)
        return cls(*(None if v is None else int(v) for v in found))

    @property
    def sides(self) -> tuple[int, int] | None:
        return None if self.height is None or self.width is None else (self.height, self.width)


class Unmatched(Exception):  # noqa: N818 (a reason, caught by the source)
    """A processor that no `Preprocess` matches; the text says why."""


def preprocess_of(processor: Any, channels: int, image_size: tuple[int, int] | None) -> Preprocess:
    """The `Preprocess` that gives what a transformers image processor gives, but for the rounding of resampling.

    `channels` is the number that the network takes, `image_size` the (height, width) that its configuration states, if any:
    the input of a processor that does not resize. Raises `Unmatched` where there is no such `Preprocess`.
    """
    resize, crop = _geometry(processor)
    crops = crop is not None and crop != resize
    crop = crop or (image_size if resize is None else None)
    if crop is None:
        raise Unmatched("its image processor makes inputs of another size for each picture")
    mean, std = _statistics(processor, channels)
    resample = getattr(processor, "resample", None)
    number = 2 if resample is None else int(getattr(resample, "value", resample))
    if not 0 <= number < len(RESAMPLING):
        raise Unmatched(f"its image processor resamples by {resample!r}")
    result = Preprocess(resize, crop, RESAMPLING[number], mean, std, floor_crop=crops)  # type: ignore[arg-type]
    apart = _apart(processor, result, flips(processor)) if channels == 3 else 0.0
    if not apart < _APART:
        raise Unmatched(
            f"its image processor ({type(processor).__name__}) does something else than resize, crop and normalise: "
            + (
                "it gives inputs of another size"
                if math.isinf(apart)
                else f"a drawn picture differs by {apart:.0f} of 255 levels"
            )
        )
    return result


def flips(processor: Any) -> bool:
    """Whether a processor gives blue, green and red (MobileViT's)."""
    return bool(getattr(processor, "do_flip_channel_order", False))


def _geometry(processor: Any) -> tuple[int | tuple[int, int] | None, tuple[int, int] | None]:
    """(`Preprocess.resize`, `Preprocess.crop`) of a processor; no crop where the input's size is that of the picture."""
    kind = type(processor).__name__
    size, cropped = _Size.of(getattr(processor, "size", None)), _Size.of(getattr(processor, "crop_size", None))
    crops, ratio = bool(getattr(processor, "do_center_crop", False)), getattr(processor, "crop_pct", None)
    edge, sides = size.shortest_edge, size.sides
    resize: int | tuple[int, int] | None = edge or sides
    if kind.startswith("ConvNext") and edge is not None:  # small inputs are cropped, large ones stretched
        resize, cropped, crops = (edge, edge), _Size(edge, edge), False
        if edge < 384:
            resize, crops = int(edge / (ratio or 224 / 256)), True
    elif kind.startswith("Levit") and edge is not None:
        resize = int(256 / 224 * edge)
    elif kind.startswith("PoolFormer") and ratio:
        if edge is not None:
            resize = int(edge / ratio)
        elif sides is not None:
            resize = int(sides[0] / ratio) if sides[0] == sides[1] else (int(sides[0] / ratio), int(sides[1] / ratio))
    if not getattr(processor, "do_resize", True):
        resize = None
    return resize, cropped.sides if crops else resize if isinstance(resize, tuple) else None


def _statistics(processor: Any, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of pixels in 0..1 that have the effect of a processor's rescaling and normalisation together."""

    def numbers(name: str, otherwise: float) -> np.ndarray:
        value = getattr(processor, name, None) if getattr(processor, "do_normalize", False) else None
        value = otherwise if value is None else value
        return np.broadcast_to(np.asarray(value, dtype=np.float64), (channels,))

    factor = 255 * float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 255.0
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    try:
        mean, std = numbers("image_mean", 0.0), numbers("image_std", 1.0)
    except ValueError:
        raise Unmatched(f"its image processor's statistics are not of {channels} channels") from None
    mean, scale = (mean + offset) / factor, std / factor
    if getattr(processor, "include_top", False):  # EfficientNet's divides by the standard deviation twice
        scale = scale * std
    if not (scale > 0).all():
        raise Unmatched("its image processor divides by a standard deviation of 0")
    return tuple(mean.tolist()), tuple(scale.tolist())


def _apart(processor: Any, preprocess: Preprocess, flipped: bool) -> float:
    """The mean difference between a processor's and a preprocessing's inputs for drawn pictures, in levels of 255;
    infinite where their sizes differ. Raises `Unmatched` where the processor fails."""
    from PIL import Image

    worst = 0.0
    as_it_is = preprocess.resize is None and not preprocess.floor_crop
    for height, width in (preprocess.crop,) if as_it_is else ((150, 203), (203, 150)):
        picture = drawn(height, width)
        try:
            values = processor(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"][0].double().numpy()
        except Exception as error:  # whatever a processor raises
            raise Unmatched(f"its image processor fails on a picture: {said_by(error)}") from None
        own = preprocess(picture)[0]
        if values.shape != own.shape:
            return math.inf
        off = np.abs((values[::-1] if flipped else values) - own) * np.asarray(preprocess.std)[:, None, None]
        worst = max(worst, float(off.mean()) * 255)
    return worst


def drawn(height: int, width: int) -> np.ndarray:
    """A picture (H, W, 3) uint8 of slow waves, each channel its own, none of which repeats within the picture."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(3 * y + 2 * x), np.cos(2 * x - y), np.sin(4 * x + y + 1)]
    return np.stack([np.rint(127.5 * (1 + wave)) for wave in waves], -1).astype(np.uint8)
