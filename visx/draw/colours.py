"""Colours of a map: the values at the two ends of the colour scale, and the colour map between them.

Only this module scales a map. An unsigned map is scaled from its minimum to its maximum, a constant positive one from zero. A
signed map is scaled symmetrically about zero, up to the 99th percentile of its absolute values, with a diverging colour map.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, cast

import cv2
import numpy as np

from visx.errors import unknown

SEQUENTIAL = {
    "turbo": cv2.COLORMAP_TURBO,
    "viridis": cv2.COLORMAP_VIRIDIS,
    "inferno": cv2.COLORMAP_INFERNO,
    "magma": cv2.COLORMAP_MAGMA,
    "plasma": cv2.COLORMAP_PLASMA,
    "cividis": cv2.COLORMAP_CIVIDIS,
    "hot": cv2.COLORMAP_HOT,
    "bone": cv2.COLORMAP_BONE,
    "jet": cv2.COLORMAP_JET,
}
# (R, G, B) at equal steps: from evidence against the class, through white at zero, to evidence for it
DIVERGING = {
    "bluered": ((5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31)),
    "purplegreen": ((64, 0, 75), (153, 112, 171), (247, 247, 247), (90, 174, 97), (0, 68, 27)),
}
COLORMAPS = (*SEQUENTIAL, *DIVERGING)
GREYS = "greys"  # only for the colour bar of a gradient picture: black negative, grey zero, white positive
Limits = tuple[float, float]  # the values at the low and the high end of a colour scale
SIGNED_PERCENTILE = 99.0  # not the maximum: beside a few extreme pixels all others would look like zero


def check_colormap(name: str) -> str:
    """The name of a colour map, checked. Raises `VisxError` (usage, exit 2) with near matches for an unknown one."""
    if name not in COLORMAPS:
        raise unknown("colormap", name, COLORMAPS)
    return name


def limits(values: np.ndarray, signed: bool) -> Limits:
    """The values of a map at the two ends of its colour scale; where `signed`, symmetric about zero."""
    if signed:
        full = _full_strength(values)
        return -full, full
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    if high - low <= 1e-6 * max(abs(high), abs(low)):
        low = min(0.0, low)  # so that a constant positive map does not look like an empty one
    return low, high


def shared(scales: Iterable[Limits]) -> Limits:
    """One scale for several maps: from the least low end to the largest high end."""
    lows, highs = zip(*scales, strict=True)
    return min(lows), max(highs)


def colorize(values: np.ndarray, signed: bool, colormap: str = "turbo", scale: Limits | None = None) -> np.ndarray:
    """A raw map (H, W) as colours (H, W, 3) uint8 RGB.

    A signed map always gets a diverging colour map, `bluered` where `colormap` is not one. `scale` replaces the map's own
    limits.
    """
    colours = cv2.applyColorMap(to_levels(values, signed, scale), lut(signed, colormap)[:, None])
    return cast(np.ndarray, colours)


def to_levels(values: np.ndarray, signed: bool, scale: Limits | None = None) -> np.ndarray:
    """A raw map (H, W) as levels (H, W) uint8: from the low end at 0 to the high end at 255, zero at 127.5 where signed.

    `scale` replaces the map's own limits, so that several maps have one scale.
    """
    values = values.astype(np.float32)
    low, high = scale or limits(values, signed)
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def strength(values: np.ndarray, scale: Limits | None = None) -> np.ndarray:
    """A signed map (H, W) as strength (H, W) float32 in 0..1: the absolute value over the high end of the scale."""
    _, full = scale or limits(values, True)
    return np.clip(np.abs(values) / full, 0, 1).astype(np.float32)


def colorbar(signed: bool, colormap: str, size: tuple[int, int]) -> np.ndarray:
    """A colour bar (height, width, 3) uint8 RGB, the low end at the left; `size` is (height, width)."""
    height, width = size
    ramp = np.rint(np.linspace(0, 255, width)).astype(np.uint8)
    return np.repeat(lut(signed, colormap)[ramp][None], height, axis=0)


def _full_strength(values: np.ndarray) -> float:
    """The absolute value at the ends of a signed map's colour scale; never zero."""
    strength = np.abs(values)
    return float(np.percentile(strength, SIGNED_PERCENTILE)) or float(strength.max(initial=0.0)) or 1.0


@cache
def lut(signed: bool, colormap: str) -> np.ndarray:
    """The colour of each level, (256, 3) uint8 RGB. The array is shared: do not write to it."""
    if colormap == GREYS:
        return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    if signed:
        return _diverging(colormap if colormap in DIVERGING else "bluered")
    return _sequential(colormap) if colormap in SEQUENTIAL else _diverging(colormap)


def _sequential(name: str) -> np.ndarray:
    ramp = np.arange(256, dtype=np.uint8)[:, None]
    return np.ascontiguousarray(cv2.applyColorMap(ramp, SEQUENTIAL[name])[:, 0, ::-1])


def _diverging(name: str) -> np.ndarray:
    stops = np.array(DIVERGING[name], dtype=np.float64)
    at = np.linspace(0, 255, len(stops))
    channels: list[Any] = [np.interp(np.arange(256), at, stops[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, 1)).astype(np.uint8)
