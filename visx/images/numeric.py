"""Numeric pictures: which of a picture's values are black and white.

8-bit samples are shown as they are. For other samples it is stated by the caller (`--range`), by the file (a DICOM window,
TIFF's `SMinSampleValue`, a depth such as 12 bits) or by the type, where that is certain. Where nothing states it the picture
is refused, because a wrong guess makes a picture black, white or clipped, and nobody notices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from visx.errors import VisxError, usage

if TYPE_CHECKING:
    import numpy as np

Range = tuple[float, float]  # the values of black and white

_ONE_LEVEL = 1 / 255  # floats whose maximum is smaller are not in 0..1: all of the picture would be black
AS_THEY_ARE = "8 bits are shown as they are: the range is for numeric pictures"
_ROWS = 256  # converted at a time: float64 of a whole picture would take eight times its memory


@dataclass(frozen=True)
class Samples:
    """The samples of a picture as the file has them, upright.

    `values`: (H, W, C) of any number type. `own`: the (black, white) that the file states; `source`: where it states that.
    `note`: not empty where the file's own curve has been applied, so that the values are in 0..1; it names the curve.
    `inverted`: whether the lowest value is white. `alpha`: whether the last channel is an opacity, from 0 to the type's
    maximum (to 1 for floats). `remarks`: sentences about what was left out.
    """

    values: np.ndarray
    own: Range | None = None
    source: str = ""
    note: str = ""
    inverted: bool = False
    alpha: bool = False
    remarks: tuple[str, ...] = ()


def check_range(low: float, high: float) -> Range:
    """(low, high) as floats. Raises `VisxError` (usage, exit 2) unless both are finite and low is below high."""
    try:
        low, high = float(low), float(high)
    except (TypeError, ValueError):
        raise usage(f"a range is two numbers, not {low!r} and {high!r}", "for instance 0,4095") from None
    if not (abs(low) < float("inf") and abs(high) < float("inf") and low < high):
        raise usage(f"range {low:g},{high:g}: LOW must be below HIGH", "for instance 0,4095")
    return low, high


def to_unit(samples: Samples, asked: Range | None = None) -> tuple[np.ndarray, str]:
    """(H, W, C) float32 in 0..1, and a remark that says which values are black and white (empty for 8-bit samples).

    `asked` is the caller's (black, white). Values outside are clipped; an opacity is scaled by its type. Raises `VisxError`
    where nothing states black and white, and where a value is NaN or infinite.
    """
    import numpy as np

    values = samples.values
    if values.dtype == bool:
        return values.astype(np.float32), ""
    depth = len(values[0, 0]) - samples.alpha
    low, high, why = _limits(samples, values[..., :depth], asked)
    unit = np.empty(values.shape, np.float32)
    for top in range(0, len(values), _ROWS):
        strip = slice(top, top + _ROWS)
        unit[strip, :, :depth] = (values[strip, :, :depth].astype(np.float64) - low) / (high - low)
        if samples.alpha:
            opaque = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
            unit[strip, :, depth] = values[strip, :, depth].astype(np.float64) / opaque
    np.clip(unit, 0, 1, out=unit)
    if samples.inverted:
        unit[..., :depth] = 1 - unit[..., :depth]
    if asked is not None and not why:
        return unit, AS_THEY_ARE
    ends = "white..black" if samples.inverted else "black..white"
    return unit, samples.note or (f"values {low:g}..{high:g} are shown as {ends} ({why})" if why else "")


def _limits(samples: Samples, values: np.ndarray, asked: Range | None) -> tuple[float, float, str]:
    """(black, white, what states them); the last is empty for 8-bit samples. Raises `VisxError` where nothing does."""
    import numpy as np

    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind not in "iuf":
        raise VisxError(f"a picture's samples are numbers, not {values.dtype}")
    if kind == "u" and size == 1:
        return 0.0, 255.0, ""
    lowest, highest = float(values.min()), float(values.max())
    if kind == "f" and not (np.isfinite(lowest) and np.isfinite(highest)):
        odd = int(values.size - np.isfinite(values).sum())
        raise VisxError(
            f"{odd} of the picture's values are no numbers (NaN or infinity)", hint="replace them in the file first"
        )
    if asked is not None:
        return *asked, "as --range says"
    if samples.note:
        return 0.0, 1.0, samples.note
    if samples.own is not None:
        return *samples.own, samples.source
    if kind == "f" and lowest >= 0 and (_ONE_LEVEL <= highest <= 1 or highest == 0):
        return 0.0, 1.0, "floats of 0..1"
    full = float(np.iinfo(values.dtype).max) if kind == "u" else 0.0
    if kind == "u" and (highest > full / 2 or highest == 0):
        return 0.0, full, f"{8 * size} bits, used in full"
    example = _example(lowest, highest)
    raise VisxError(
        f"the picture's values are {lowest:g}..{highest:g} ({_type(values.dtype)}), and nothing says which are black and white",
        hint=f"say it: --range {example} (LOW,HIGH), in Python range=({example})",
    )


def _type(dtype: np.dtype) -> str:
    """The name of a number type in words, such as "16-bit unsigned"."""
    names = {"u": "unsigned", "i": "signed", "f": "floats"}
    return f"{8 * dtype.itemsize}-bit {names[dtype.kind]}"


def _example(lowest: float, highest: float) -> str:
    """A range for the message that fits these values: up to a power of two minus 1 where all are at least 0."""
    if lowest < 0 or highest <= 1:
        return f"{lowest:g},{highest if highest > lowest else lowest + 1:g}"
    return f"0,{2 ** max(int(highest).bit_length(), 8) - 1}"


def over_white(unit: np.ndarray) -> np.ndarray:
    """Values (H, W, C + 1) in 0..1, the last channel an opacity, laid over white: (H, W, C)."""
    opacity = unit[..., -1:]
    return unit[..., :-1] * opacity + (1 - opacity)


def to_eight_bit(unit: np.ndarray) -> np.ndarray:
    """Values (H, W, C) in 0..1 as RGB (H, W, 3) uint8: the first three channels, of one or two the first as grey."""
    import numpy as np

    first = unit[..., :3] if unit.shape[2] >= 3 else np.repeat(unit[..., :1], 3, 2)
    return np.ascontiguousarray(np.rint(first * 255).astype(np.uint8))
