"""Maps drawn over their pictures, where the network saw the picture.

The part of the picture that the crop cut off is drawn in dark grey, because the map says nothing about it.
"""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

from visx.draw.colours import Limits, colorize, limits, lut, strength

if TYPE_CHECKING:
    from visx.images.geometry import Placement

CROPPED_BRIGHTNESS = 0.4  # of the picture's part that the network does not see
DIMMED = 0.5  # brightness outside the shown regions
BOUNDARY = (255, 255, 0)
ANIMATION_SIZE, FRAME_MILLISECONDS = 400, 120


def overlay(
    rgb: np.ndarray,
    values: np.ndarray,
    place: Placement,
    signed: bool,
    colormap: str = "turbo",
    alpha: float = 0.5,
    scale: Limits | None = None,
) -> np.ndarray:
    """The picture (H, W, 3) uint8 RGB with a raw map (h, w) over the part that the network saw.

    An unsigned map has the opacity `alpha` (0..1) everywhere. A signed map lies over the picture in grey; its opacity is its
    strength times 2 `alpha`, at most 1, so that zero is transparent. `scale` replaces the map's own limits.
    """
    canvas = darkened(rgb)
    rows, columns = _view(rgb, place)
    colours = _placed(colorize(values, signed, colormap, scale), place, rows, columns)
    below = rgb[rows, columns]
    if not signed:
        canvas[rows, columns] = cv2.addWeighted(below, 1 - alpha, colours, alpha, 0)
        return canvas
    opacity = _placed(strength(values, scale) * min(1.0, 2 * alpha), place, rows, columns)[..., None]
    grey = cv2.cvtColor(below, cv2.COLOR_RGB2GRAY)[..., None]
    canvas[rows, columns] = np.rint(grey * (1 - opacity) + colours * opacity).astype(np.uint8)
    return canvas


def gradient_picture(
    rgb: np.ndarray, channels: np.ndarray, place: Placement, scale: Limits | None = None
) -> np.ndarray:
    """The darkened picture (H, W, 3) uint8 RGB with a signed gradient (C, h, w) in the part that the network saw.

    Three channels are red, green and blue, zero is mid-grey; the mean of any other number of channels is drawn in grey.
    """
    _, full = scale or limits(channels, True)
    scaled = channels / full / 2 + 0.5
    picture = np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    if picture.shape[2] != 3:
        picture = np.repeat(picture.mean(2, keepdims=True).astype(np.uint8), 3, axis=2)
    canvas = darkened(rgb)
    rows, columns = _view(rgb, place)
    canvas[rows, columns] = _placed(np.ascontiguousarray(picture), place, rows, columns)
    return canvas


def regions(rgb: np.ndarray, numbers: np.ndarray, place: Placement) -> np.ndarray:
    """The picture (H, W, 3) uint8 RGB with regions outlined and the rest dimmed.

    `numbers` (h, w) uint8 at input size holds the number of each pixel's region, 0 outside of all regions.
    """
    canvas = darkened(rgb)
    rows, columns = _view(rgb, place)
    placed = _placed(numbers, place, rows, columns, cv2.INTER_NEAREST)
    view = np.where(placed[..., None] > 0, rgb[rows, columns], cv2.convertScaleAbs(rgb[rows, columns], alpha=DIMMED))
    thick = max(1, round(min(placed.shape) / 300))
    brush = np.ones((2 * thick + 1, 2 * thick + 1), np.uint8)
    border = cv2.dilate(placed, brush) != cv2.erode(placed, brush)
    view[border] = BOUNDARY
    canvas[rows, columns] = view
    return canvas


def animation(rgb: np.ndarray, values: np.ndarray, place: Placement, colormap: str = "turbo") -> bytes:
    """The bytes of an animated GIF: maps (n, h, w) in 0..1 over the picture, at most ANIMATION_SIZE pixels a side."""
    from PIL import Image

    scale = min(1.0, ANIMATION_SIZE / max(rgb.shape[:2]))
    width, height = (max(1, round(side * scale)) for side in (rgb.shape[1], rgb.shape[0]))
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    across, down = width / rgb.shape[1], height / rgb.shape[0]
    left, top, right, bottom = place.box
    placed = replace(place, box=(left * across, top * down, right * across, bottom * down))
    rows, columns = _view(small, placed)
    frames = []
    for value in values:
        colours = lut(False, colormap)[np.rint(np.clip(value, 0, 1) * 255).astype(np.uint8)]
        canvas = darkened(small)
        canvas[rows, columns] = cv2.addWeighted(
            small[rows, columns], 0.5, _placed(colours, placed, rows, columns), 0.5, 0
        )
        frames.append(Image.fromarray(canvas))
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0)
    return buffer.getvalue()


def darkened(rgb: np.ndarray) -> np.ndarray:
    """The picture in dark grey, (H, W, 3) uint8: how the part that the network does not see is drawn."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return cast(np.ndarray, cv2.cvtColor(cv2.convertScaleAbs(grey, alpha=CROPPED_BRIGHTNESS), cv2.COLOR_GRAY2RGB))


def cut(picture: np.ndarray, place: Placement) -> np.ndarray:
    """The part of a picture (H, W, 3) that the network saw, at the picture's own resolution."""
    rows, columns = _view(picture, place)
    return np.ascontiguousarray(picture[rows, columns])


def _view(rgb: np.ndarray, place: Placement) -> tuple[slice, slice]:
    """The rows and columns of the picture whose pixel centres lie inside the network's view; at least one of each."""
    height, width = rgb.shape[:2]
    left, top, right, bottom = place.box

    def span(low: float, high: float, size: int) -> slice:
        first = min(max(int(np.ceil(low - 0.5)), 0), size - 1)
        return slice(first, max(min(int(np.ceil(high - 0.5)), size), first + 1))

    return span(top, bottom, height), span(left, right, width)


def _placed(
    picture: np.ndarray, place: Placement, rows: slice, columns: slice, how: int = cv2.INTER_LINEAR
) -> np.ndarray:
    """A picture (h, w[, 3]) at input size, resampled to the given rows and columns of the original picture.

    Values are sampled at the pixel centres. `how` is OpenCV's interpolation.
    """
    left, top, right, bottom = place.box
    scale_x, scale_y = picture.shape[1] / (right - left), picture.shape[0] / (bottom - top)
    matrix = np.array(
        [
            [scale_x, 0, (columns.start + 0.5 - left) * scale_x - 0.5],
            [0, scale_y, (rows.start + 0.5 - top) * scale_y - 0.5],
        ]
    )
    size = (columns.stop - columns.start, rows.stop - rows.start)
    colours = picture.ndim == 3
    if colours:  # OpenCV warps four channels in half the time of three, with the same values
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA)
    flags = how | cv2.WARP_INVERSE_MAP
    placed = cv2.warpAffine(picture, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return cast(np.ndarray, cv2.cvtColor(placed, cv2.COLOR_RGBA2RGB) if colours else placed)
