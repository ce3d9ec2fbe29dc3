"""Decoding image files as a viewer shows them: upright, opacity over white, 8-bit RGB.

A file that cannot be decoded raises one `VisxError` that says why.
"""

from __future__ import annotations

import hashlib
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visx.errors import VisxError
from visx.images.deep import PAGES, TIFF, deep_samples, tiff_samples
from visx.images.dicom import dicom_samples, is_dicom
from visx.images.heif import is_heif, open_heif
from visx.images.numeric import AS_THEY_ARE, Range, Samples, over_white, to_eight_bit, to_unit

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# A small file whose header claims a huge picture would fill the memory. So a picture above _LARGE pixels may have at most
# _MOST_PIXELS_PER_BYTE pixels for each byte of its file (an RGB PNG of a single colour has 343).
_MOST_PIXELS_PER_BYTE = 2000
_LARGE = 50_000_000  # pixels
_MOST_SAMPLES = 4 * 179_000_000  # Pillow's own limit is 179 million pixels
_LARGEST_FILE = 2**31  # bytes; more than 179 million pixels of 16-bit RGBA have

NPY = b"\x93NUMPY"
KNOWN = ("JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "NumPy arrays (.npy)", "DICOM and HEIC with their extras")


@dataclass(frozen=True)
class Picture:
    """A decoded image, upright.

    `rgb` (H, W, 3) uint8: the image as a viewer shows it. `digest`: the sha256 of the file's bytes (of an array's values).
    `values` (H, W, C) float32 in 0..1: what the network gets, where the image is not 8-bit RGB; else None. `remarks`: which
    values are black and white, and what was left out, one sentence each.
    """

    rgb: np.ndarray
    digest: str
    values: np.ndarray | None = None
    remarks: tuple[str, ...] = ()

    @property
    def pixels(self) -> np.ndarray:
        """The argument for `Preprocess`: `values` where there are some, else `rgb`."""
        return self.rgb if self.values is None else self.values


def stat_of(path: Path) -> tuple[int, int]:
    """The size in bytes and the modification time in nanoseconds of an image file.

    Raises `VisxError` where it cannot be read or is not a regular file.
    """
    with _reading():
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise VisxError("cannot read the image: not a regular file")
        return status.st_size, status.st_mtime_ns


def read(path: Path) -> bytes:
    """The bytes of an image file. Raises `VisxError` where it cannot be read, is empty or is larger than 2 GB."""
    size, _ = stat_of(path)
    if size > _LARGEST_FILE:
        raise VisxError(f"refused: the image file has {size} bytes")
    with _reading():
        data = path.read_bytes()
    if not data:
        raise VisxError("the image file is empty (0 bytes)")
    return data


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VisxError(f"cannot read the image: {error.strerror or error}") from None
    except ValueError as error:  # a name that no file can have, such as one with a NUL
        raise VisxError(f"cannot read the image: {error}") from None


def decode(data: bytes, range: Range | None = None, channels: int = 3) -> Picture:
    """The picture in an image file's bytes: the first frame, with the EXIF orientation applied.

    `range` is the (black, white) of a numeric picture; with None the file or its type must say it. `channels` is the number
    of channels that the network takes. Raises `VisxError` where the file is damaged, refused or of an unknown format.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return _decode(data, range, channels)
    except VisxError:
        raise
    except UnidentifiedImageError:
        raise VisxError("not an image that Pillow can read", hint=f"these are: {', '.join(KNOWN)}") from None
    except Image.DecompressionBombError as error:
        raise VisxError(f"refused: {error}".rstrip("."), hint="resize the image first") from None
    except MemoryError:
        raise VisxError("the image does not fit into memory", hint="resize the image first") from None
    except Exception as error:  # Pillow's plugins raise any exception for damaged bytes
        reason = (str(error).splitlines() or [""])[0][:200]
        raise VisxError(f"the image is damaged: {reason or type(error).__name__}") from None


def _decode(data: bytes, range: Range | None, channels: int) -> Picture:
    import numpy as np
    from PIL import Image, ImageOps

    digest = digest_of(data)
    samples: Samples | None = None
    if data.startswith(NPY):
        array = _array(np.load(io.BytesIO(data), allow_pickle=False), channels)
        samples = Samples(array, alpha=array.shape[2] == 4 and channels in (1, 3))
    elif is_dicom(data):
        samples = dicom_samples(data, range, _check_size)
    elif data.startswith(TIFF):
        samples = tiff_samples(data, channels, _check_size)
    if samples is not None:
        return _from_samples(samples, range, channels, digest)
    with open_heif(data) if is_heif(data) else Image.open(io.BytesIO(data)) as image:
        _check(image, len(data))
        image.load()
        remarks: tuple[str, ...] = (PAGES,) if image.format != "MPO" and getattr(image, "is_animated", False) else ()
        samples = deep_samples(image, data)
        if samples is not None:
            return _from_samples(replace(samples, remarks=remarks), range, channels, digest)
        ImageOps.exif_transpose(image, in_place=True)
        remarks += (AS_THEY_ARE,) if range is not None else ()
        return replace(_from_eight_bit(image, channels, digest), remarks=remarks)


def _from_samples(samples: Samples, range: Range | None, channels: int, digest: str) -> Picture:
    """The picture of numeric samples or of many channels.

    An opacity is laid over white, unless the network takes that many channels.
    """
    if 0 in samples.values.shape:
        raise VisxError("the image has no pixels")
    unit, remark = to_unit(samples, range)
    seen = over_white(unit) if samples.alpha else unit
    values = unit if samples.alpha and unit.shape[2] == channels else seen
    eight_bit = samples.values.dtype == "uint8" and values.shape[2] in (1, 3) and not samples.inverted
    remarks = ((remark,) if remark else ()) + samples.remarks
    return Picture(to_eight_bit(seen), digest, None if eight_bit else values, remarks)


def _from_eight_bit(image: Image.Image, channels: int, digest: str) -> Picture:
    """The picture of an 8-bit image; for a network of four channels with the opacity as the fourth."""
    import numpy as np

    rgb = np.ascontiguousarray(np.asarray(to_rgb(image)))
    if channels == 4 and image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return Picture(rgb, digest, np.asarray(image.convert("RGBA")).astype(np.float32) / 255)
    return Picture(rgb, digest)


def _check(image: Image.Image, size: int) -> None:
    """Raise `VisxError` before decoding where the image is a program or too large for its file of `size` bytes."""
    if image.format == "EPS":
        raise VisxError("refused: an EPS file is a program, and visx runs none")
    _check_size(image.width, image.height, size)


def _check_size(width: int, height: int, size: int) -> None:
    """Raise `VisxError` where the header claims more pixels than a file of `size` bytes can hold."""
    if width * height > min(max(_LARGE, size * _MOST_PIXELS_PER_BYTE), _MOST_SAMPLES):
        raise VisxError(f"refused: {width} x {height} pixels in a file of {size} bytes", hint="resize the image first")


def digest_of(data: bytes) -> str:
    """The sha256 of an image file's bytes."""
    return hashlib.sha256(data).hexdigest()


def to_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit image of any Pillow mode as RGB, its opacity laid over white."""
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "LAB":  # Pillow's own convert() does not convert LAB
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")  # type: ignore[arg-type]
        assert converted is not None
        return converted
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def as_picture(image: Any, range: Range | None = None, channels: int = 3) -> Picture:
    """The picture of a path, a file's bytes, a Pillow image or an array, for the Python API.

    Arrays are (H, W) or (H, W, C) of any number type. C is the number of `channels` that the network takes; where that is 1
    or 3, an array may have 1, 3 or 4 channels, the fourth an opacity. uint8 and floats in 0..1 are taken as they are, other
    values need `range`, the (black, white). Raises `VisxError` where an image is not of these forms.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if isinstance(image, (str, Path)):
        return decode(read(Path(image)), range, channels)
    if isinstance(image, bytes):
        return decode(image, range, channels)
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        if 0 in upright.size:
            raise VisxError("the image has no pixels")
        if upright.mode != "F" and not upright.mode.startswith("I"):
            picture = _from_eight_bit(upright, channels, "")
            return replace(picture, digest=_digest_of_values(picture.pixels))
        image = np.asarray(upright)
    array = _array(np.asarray(image), channels)
    digest = _digest_of_values(array)
    if array.dtype == np.uint8 and array.shape[2] in (1, 3, 4) and channels != 4:
        rgb = np.ascontiguousarray(
            np.asarray(to_rgb(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)))
        )
        return Picture(rgb, _digest_of_values(rgb))
    alpha = array.shape[2] == 4 and channels in (1, 3)
    return _from_samples(Samples(array, alpha=alpha), range, channels, digest)


def _array(array: np.ndarray, channels: int) -> np.ndarray:
    """The array (H, W) or (H, W, C) as (H, W, C). Raises `VisxError` where it has another form or no pixels."""
    import numpy as np

    allowed = {channels, *((1, 3, 4) if channels in (1, 3) else ())}
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype.kind not in "iufb" or array.ndim != 3 or array.shape[2] not in allowed:
        last = f" {' or '.join(map(str, sorted(allowed)))} channels"
        hint = "a path or a Pillow image is welcome too"
        if array.ndim == 3 and array.shape[0] in allowed:
            hint = "channels come last: array.transpose(1, 2, 0)"
        raise VisxError(
            f"an image array must be numbers, (H, W, C) with{last}; this is {array.dtype} {array.shape}", hint=hint
        )
    if 0 in array.shape:
        raise VisxError("the image has no pixels")
    return np.ascontiguousarray(array)


def _digest_of_values(array: np.ndarray) -> str:
    """The sha256 of an array's shape, type and values."""
    kind = b"" if array.dtype == "uint8" else array.dtype.str.encode()
    return hashlib.sha256(repr(array.shape).encode() + kind + array.tobytes()).hexdigest()
