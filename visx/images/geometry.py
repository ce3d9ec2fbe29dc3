"""The geometry between a picture and the network's input.

`Preprocess` makes the network's input exactly as the evaluation transforms of torchvision and timm do (with Pillow's antialiased
resize). `Placement` says which part of the picture the network saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from visx.errors import VisxError
from visx.images.decode import Picture, decode

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_MAX_RESIZED_PIXELS = 32_000_000  # where resizing would give more, only the part inside the crop is resized
_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grey, ITU-R 601, as in Pillow


@dataclass(frozen=True)
class Placement:
    """The part of a picture that the network sees.

    `box` is (left, top, right, bottom) in pixels of the picture, as floats; it reaches beyond the picture where the crop was
    padded. `input_size` is the (height, width) of the network's input.
    """

    box: tuple[float, float, float, float]
    input_size: tuple[int, int]


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes the network's input: resize, crop, normalise.

    `resize`: the length of the shorter side (an int), a (height, width), or None for no resizing. `fit`: how a picture is
    resized to a (height, width): stretched, or with its proportions kept so that it covers the size or lies inside it.
    `crop`: the central (height, width) that remains; where the picture is smaller it is padded with the colour `fill`.
    `mean` and `std`: of pixels in 0..1, one number for each channel of the network. `range`: the (black, white) of numeric
    pictures; None where a file or its type states it. `layout`: the network's own order of the axes of a batch; the input
    is (C, h, w) in both cases. `floor_crop`: where the crop cannot lie in the very middle, it lies half a pixel towards the
    top or left, as in transformers; else it is rounded as in torchvision. `bgr`: the network takes blue first; the input, `mean`
    and `std` are red first all the same.
    """

    resize: int | tuple[int, int] | None
    crop: tuple[int, int]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bilinear"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    fit: Literal["stretch", "cover", "inside"] = "stretch"
    fill: tuple[int, int, int] = (0, 0, 0)
    range: tuple[float, float] | None = None
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    floor_crop: bool = False
    bgr: bool = False

    @property
    def channels(self) -> int:
        """The number of channels that the network takes."""
        return len(self.mean)

    def decode(self, data: bytes) -> Picture:
        """The picture in an image file's bytes, for this network. Raises `VisxError` where it cannot be decoded."""
        return decode(data, self.range, self.channels)

    def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, Placement]:
        """The network's input (C, h, w) float32 of a picture, and which part of the picture it is.

        `pixels` is (H, W, 3) uint8, resized in 8 bits as in torchvision and timm, or (H, W, C) float32 in 0..1, resized in
        float32. Raises `VisxError` where the picture has another number of channels than the network takes.
        """
        import numpy as np
        from PIL import Image

        height, width = pixels.shape[:2]
        new_h, new_w = self._resized(height, width)
        crop_h, crop_w = self.crop
        top, left = self._start(new_h, crop_h), self._start(new_w, crop_w)
        resample = Image.Resampling[self.interpolation.upper()]
        scale_x, scale_y = width / new_w, height / new_h
        box = (left * scale_x, top * scale_y, (left + crop_w) * scale_x, (top + crop_h) * scale_y)

        def fitted(picture: Image.Image, fill: tuple[float, ...]) -> Image.Image:
            if new_h * new_w > _MAX_RESIZED_PIXELS and new_h >= crop_h and new_w >= crop_w:
                return picture.resize((crop_w, crop_h), resample, box=_inside(box, width, height))
            if (new_w, new_h) != (width, height):
                picture = picture.resize((new_w, new_h), resample)
            if (left, top, new_w, new_h) != (0, 0, crop_w, crop_h):
                picture = _crop(picture, (left, top, left + crop_w, top + crop_h), fill)
            return picture

        place = Placement(box, self.crop)
        if pixels.dtype != np.uint8:
            return self._normalised(pixels, fitted), place
        if self.channels not in (1, 3):
            raise _other_channels(3, self.channels)
        picture = fitted(Image.fromarray(pixels), self.fill)
        grey = self.channels == 1
        levels_of = np.asarray(picture.convert("L"))[..., None] if grey else np.asarray(picture)
        x = np.empty((self.channels, crop_h, crop_w), dtype=np.float32)
        for channel, levels in enumerate(self._levels()):
            np.take(levels, levels_of[..., channel], out=x[channel], mode="clip")  # the default mode makes a copy
        return x, place

    def _start(self, length: int, crop: int) -> int:
        """Where the crop begins on an axis of this length; negative where it begins with padding, of which an odd pixel is at
        the end. A crop's half pixels are rounded to even, as in torchvision, or down where `floor_crop`."""
        if length < crop:
            return -((crop - length) // 2)
        return (length - crop) // 2 if self.floor_crop else round((length - crop) / 2)

    def _normalised(
        self, values: np.ndarray, fitted: Callable[[Image.Image, tuple[float, ...]], Image.Image]
    ) -> np.ndarray:
        """(C, h, w) float32: values (H, W, C) in 0..1, each channel resized and cropped in float32, then normalised."""
        import numpy as np
        from PIL import Image

        given = values.shape[2]
        if given != self.channels and {given, self.channels} != {1, 3}:
            raise _other_channels(given, self.channels)
        if (given, self.channels) == (3, 1):
            values = (values @ np.array(_LUMA, np.float32))[..., None]
        bands = values.shape[2]
        fill = [colour / 255 for colour in self.fill] if bands == 3 else [sum(self.fill) / 765] * bands
        planes = [fitted(Image.fromarray(values[..., c]), (fill[c],)) for c in range(bands)]
        x = np.stack([np.asarray(plane, np.float32) for plane in planes])
        np.clip(x, 0, 1, out=x)  # bicubic interpolation goes beyond 0..1; 8-bit pixels are clipped by Pillow
        mean, std = (np.asarray(numbers, dtype=np.float32)[:, None, None] for numbers in (self.mean, self.std))
        return np.ascontiguousarray((x - mean) / std)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of a picture after resizing, before the crop."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, tuple):
            if self.fit == "stretch":
                return self.resize
            ratios = height / self.resize[0], width / self.resize[1]
            ratio = min(ratios) if self.fit == "cover" else max(ratios)
            return max(1, round(height / ratio)), max(1, round(width / ratio))
        if height <= width:
            return self.resize, int(self.resize * width / height)
        return int(self.resize * height / width), self.resize

    def _levels(self) -> np.ndarray:
        """(C, 256) float32: the normalised value of each 8-bit level. A look-up is faster than normalising every pixel."""
        import numpy as np

        mean, std = (np.asarray(values, dtype=np.float32)[:, None] for values in (self.mean, self.std))
        return (np.arange(256, dtype=np.float32) / np.float32(255) - mean) / std


def _other_channels(given: int, taken: int) -> VisxError:
    return VisxError(
        f"the picture has {given} channel{'s' * (given != 1)}, and the network takes {taken}",
        hint="an array (H, W, C) of as many channels (.npy), or --mean and --std of as many numbers as the network takes",
    )


def _crop(picture: Image.Image, box: tuple[int, int, int, int], fill: tuple[float, ...]) -> Image.Image:
    """The part `box` of a picture, padded with `fill` beyond its border. (Pillow's own crop pads with black.)"""
    cropped = picture.crop(box)
    if any(fill) and (box[0] < 0 or box[1] < 0 or box[2] > picture.width or box[3] > picture.height):
        from PIL import Image

        canvas = Image.new(picture.mode, cropped.size, fill if len(fill) > 1 else fill[0])
        canvas.paste(picture, (-box[0], -box[1]))
        return canvas
    return cropped


def _inside(box: tuple[float, float, float, float], width: int, height: int) -> tuple[float, float, float, float]:
    """The part of the box that lies inside a picture of this size."""
    left, top, right, bottom = box
    return max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)
