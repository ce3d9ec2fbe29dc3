"""Maps as colours: the limits of a scale, and the colour map between them. The only place where a map is normalised.

An unsigned map is scaled from its minimum to its maximum (a constant one from zero), a signed map symmetrically about
zero, its 99th percentile at full strength, with a diverging colour map.
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
# From evidence against, through white at zero, to evidence for (RGB at equal steps)
DIVERGING = {
    "bluered": ((5, 48, 97), (67, 147, 195), (247, 247, 247), (214, 96, 77), (103, 0, 31)),
    "purplegreen": ((64, 0, 75), (153, 112, 171), (247, 247, 247), (90, 174, 97), (0, 68, 27)),
}
COLORMAPS = (*SEQUENTIAL, *DIVERGING)
GREYS = "greys"  # the bar of a gradient picture: black against, mid-grey nothing, white for; no map is drawn in it
Limits = tuple[float, float]
SIGNED_PERCENTILE = 99.0  # a few extreme pixels must not make all others look like zero


def check_colormap(name: str) -> str:
    """The name, if it is a known colour map; else a usage error with near matches."""
    if name not in COLORMAPS:
        raise unknown("colormap", name, COLORMAPS)
    return name


def limits(values: np.ndarray, signed: bool) -> Limits:
    """The values that get the two ends of the colour map: symmetric about zero where signed."""
    if signed:
        full = _scale(values)
        return -full, full
    low, high = float(values.min(initial=np.inf)), float(values.max(initial=-np.inf))
    if high - low <= 1e-6 * max(abs(high), abs(low)):
        low = min(0.0, low)  # a constant map is not an empty one
    return low, high


def shared(scales: Iterable[Limits]) -> Limits:
    """One scale for several maps: the widest."""
    lows, highs = zip(*scales, strict=True)
    return min(lows), max(highs)


def colorize(values: np.ndarray, signed: bool, colormap: str = "turbo", scale: Limits | None = None) -> np.ndarray:
    """(H, W) raw map -> (H, W, 3) uint8 RGB. A signed map always gets a diverging colour map, centred on zero."""
    colours = cv2.applyColorMap(to_levels(values, signed, scale), lut(signed, colormap)[:, None])
    return cast(np.ndarray, colours)


def to_levels(values: np.ndarray, signed: bool, scale: Limits | None = None) -> np.ndarray:
    """(H, W) raw map -> (H, W) uint8 levels: zero at 127.5 where signed, minimum to maximum where not.

    `scale` replaces the map's own limits (several maps on one scale)."""
    values = values.astype(np.float32)
    low, high = scale or limits(values, signed)
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return np.rint(np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def strength(values: np.ndarray, scale: Limits | None = None) -> np.ndarray:
    """(H, W) signed map -> (H, W) float32 in 0..1: how strong the evidence is, whichever way it points."""
    _, full = scale or limits(values, True)
    return np.clip(np.abs(values) / full, 0, 1).astype(np.float32)


def colorbar(signed: bool, colormap: str, size: tuple[int, int]) -> np.ndarray:
    """The colours from the low to the high end, (height, width, 3) uint8; `size` is (height, width)."""
    height, width = size
    ramp = np.rint(np.linspace(0, 255, width)).astype(np.uint8)
    return np.repeat(lut(signed, colormap)[ramp][None], height, axis=0)


def _scale(values: np.ndarray) -> float:
    """What counts as full strength in a signed map or gradient: never zero."""
    strength = np.abs(values)
    return float(np.percentile(strength, SIGNED_PERCENTILE)) or float(strength.max(initial=0.0)) or 1.0


@cache
def lut(signed: bool, colormap: str) -> np.ndarray:
    """The colours of the 256 levels, (256, 3) uint8 RGB; shared, so not to be written to."""
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
