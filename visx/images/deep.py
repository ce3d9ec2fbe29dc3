"""Images with samples of more than 8 bits, signed or floating samples, or many bands, read with their full values.

Pillow reduces most of these to 8 bits, lets values overflow, or does not open them. tifffile and OpenCV read them whole.
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from visx.errors import VisxError
from visx.images.numeric import Range, Samples

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, either byte order
PAGES = "only the first of the file's pages or frames is shown"
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # values of TIFF's PhotometricInterpretation
_ASSOCIATED, _UNASSOCIATED = 1, 2  # values of TIFF's ExtraSamples that mean an opacity
_COMMENT = rb"(?:\s|#[^\n]*\n)+"
_NETPBM = re.compile(rb"P[2356]" + _COMMENT + rb"\d+" + _COMMENT + rb"\d+" + _COMMENT + rb"(\d+)\s")


def tiff_samples(data: bytes, channels: int, check: Any) -> Samples | None:
    """The samples of a TIFF file's first page; None where Pillow decodes the page rightly, to 8 bits.

    `channels` is the number of channels that the network takes. Where that is 1 or 3, bands beyond grey or red, green and
    blue are left out. `check(width, height, bytes)` raises where the picture is too large. Raises `VisxError` where the page
    cannot be read.
    """
    import numpy as np
    import tifffile

    try:
        file = tifffile.TiffFile(io.BytesIO(data))
    except tifffile.TiffFileError:
        return None  # Pillow will say what is wrong
    with file:
        page: Any = file.pages[0]
        bits, bands = _int(page.bitspersample), page.samplesperpixel
        plain = bits <= 8 and page.sampleformat == 1
        if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB) or (plain and bands <= 3):
            return None
        opacity = bool(page.extrasamples) and page.extrasamples[0] in (_ASSOCIATED, _UNASSOCIATED)
        colours = 3 if page.photometric == _RGB else 1
        if plain and bands == 4 and page.photometric == _RGB and channels != 4:
            return None
        check(page.imagewidth * page.imagedepth, page.imagelength * bands, len(data))
        values = _upright(_tiff_array(page, data, bits, bands), _tag(page, 274) or 1)
        own, source = _tiff_range(page, bits)
        remarks = (PAGES,) if _further_pages(file) else ()
    if bands != channels and channels in (1, 3) and bands > colours:
        if page.photometric == _RGB or opacity:
            values = values[..., : colours + opacity]
        opacity = opacity and values.shape[2] > colours
    else:
        opacity = False
    white_first = page.photometric == _WHITE_IS_ZERO
    return Samples(np.ascontiguousarray(values), own, source, inverted=white_first, alpha=opacity, remarks=remarks)


def _tiff_array(page: Any, data: bytes, bits: int, bands: int) -> np.ndarray:
    """(H, W, C): the samples of a TIFF page, with the type that the file has."""
    import cv2
    import numpy as np
    from PIL import Image

    try:
        array, axes = page.asarray(), page.axes
    except Exception as error:  # tifffile needs another package for most compressions
        array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) if bands <= 4 and bits >= 8 else None
        axes = "YXS" if bands > 1 else "YX"
        if array is None and bands == 1 and bits in range(9, 17):
            with Image.open(io.BytesIO(data)) as image:
                array = np.asarray(image)
        if array is None or array.shape[2:] not in ((), (bands,)) or (array.ndim == 2) != (bands == 1):
            raise VisxError(f"this TIFF cannot be read: {error}") from None
        if bands > 2:
            array = array[..., [2, 1, 0, *range(3, bands)]]
    if axes == "SYX":
        array = np.moveaxis(array, 0, -1)
    elif axes not in ("YX", "YXS"):
        raise VisxError(f"a TIFF page of axes {axes} is no picture")
    return array[..., None] if array.ndim == 2 else array


def _tiff_range(page: Any, bits: int) -> tuple[Range | None, str]:
    """The (black, white) that a TIFF page states, and where it states that; (None, "") where it does not.

    It is SMinSampleValue and SMaxSampleValue, else the bits a sample where these are not 8, 16, 32 or 64.
    """
    lowest, highest = _tag(page, 340), _tag(page, 341)
    if lowest is not None and highest is not None:
        low, high = (_all(lowest), _all(highest))
        if min(low) < max(high):
            return (float(min(low)), float(max(high))), "the file's SMinSampleValue and SMaxSampleValue"
    if page.sampleformat == 1 and bits not in (8, 16, 32, 64):
        return (0.0, float(2**bits - 1)), f"{bits} bits, as the file says"
    return None, ""


def _further_pages(file: Any) -> bool:
    """Whether there is a second page that is not a smaller copy of the first."""
    try:
        return not file.pages[1].is_reduced
    except (IndexError, AttributeError):
        return False


def _tag(page: Any, code: int) -> Any:
    tag = page.tags.get(code)
    return None if tag is None else tag.value


def _all(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _int(value: Any) -> int:
    return int(max(_all(value)))


def deep_samples(image: Image.Image, data: bytes) -> Samples | None:
    """The samples of a loaded Pillow image of more than 8 bits; None where it has 8.

    `data` is the file. Where Pillow has reduced the samples to 8 bits, OpenCV reads them from it.
    """
    import numpy as np

    own: Range | None = None
    source = ""
    mode = image.mode
    values: np.ndarray | None = np.asarray(image) if mode == "F" or mode.startswith("I") else None
    if image.format == "PNG" and data[24:25] == b"\x10":
        values = values.astype(np.uint16) if values is not None else _opencv(data)
        if values.ndim == 2 and isinstance(clear := image.info.get("transparency"), int):  # that grey is transparent
            values = np.stack([values, np.where(values == clear, 0, 65535).astype(np.uint16)], axis=2)
    elif image.format == "PPM" and (header := _NETPBM.match(data)) and 255 < int(header[1]) <= 65535:
        most = float(header[1])
        values = np.rint(values * (most / 65535)).astype(np.uint16) if values is not None else _opencv(data)
        own, source = (0.0, most), "the file's own maximum"
    elif image.format == "JPEG2000" and (depth := _jpeg2000_depth(data)) > 8:
        values = values >> (16 - depth) if values is not None else _opencv(data)
        if depth < 16:
            own, source = (0.0, float(2**depth - 1)), f"{depth} bits, as the file says"
    if values is None:
        return None
    values = values[..., None] if values.ndim == 2 else values
    return Samples(_upright(values, image.getexif().get(274, 1)), own, source, alpha=values.shape[2] in (2, 4))


def _opencv(data: bytes) -> np.ndarray:
    """(H, W), (H, W, 3) or (H, W, 4) with all bits, red first."""
    import cv2
    import numpy as np

    array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if array is None:
        raise VisxError("the image is damaged, or of a kind that cannot be read in its whole depth")
    return array if array.ndim == 2 else array[..., [2, 1, 0, *range(3, array.shape[2])]]


def _jpeg2000_depth(data: bytes) -> int:
    """The bits a sample of a JPEG 2000 file, from the SIZ marker of its codestream; 0 where there is no marker."""
    at = data.find(b"\xff\x4f\xff\x51")
    return (data[at + 42] & 0x7F) + 1 if 0 <= at < len(data) - 42 else 0


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """The samples (H, W, C), turned and mirrored by an EXIF orientation (1 to 8)."""
    import numpy as np

    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)
