"""Image files: reading and decoding them the way a person sees them; every broken one gives one clear reason."""

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

# More pixels than a byte of any photograph stands for (an RGB PNG of one colour has 343), asked of large pictures alone:
# the header of a small file could otherwise claim gigabytes of memory. Pillow's own limit is 179 million pixels.
_MOST_PIXELS_PER_BYTE = 2000
_LARGE = 50_000_000
_MOST_SAMPLES = 4 * 179_000_000
_LARGEST_FILE = 2**31  # bytes; 179 million pixels of 16-bit RGBA have fewer

NPY = b"\x93NUMPY"
KNOWN = ("JPEG", "PNG", "WebP", "TIFF", "BMP", "GIF", "NumPy arrays (.npy)", "DICOM and HEIC with their extras")


@dataclass(frozen=True)
class Picture:
    """A decoded image, upright.

    `rgb` is what a person sees, (H, W, 3) uint8; `digest` the sha256 of the file's bytes. `values` is what the network
    gets where 8-bit RGB is not all of it: (H, W, C) float32 in 0..1. `remarks` say what was done: which values are
    black and white, and what was left out.
    """

    rgb: np.ndarray
    digest: str
    values: np.ndarray | None = None
    remarks: tuple[str, ...] = ()

    @property
    def pixels(self) -> np.ndarray:
        """What a `Preprocess` takes: `values` where there are some, else `rgb`."""
        return self.rgb if self.values is None else self.values


def stat_of(path: Path) -> tuple[int, int]:
    """Size in bytes and time of modification in nanoseconds of an image file; a VisxError where it is none."""
    with _reading():
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise VisxError("cannot read the image: not a regular file")
        return status.st_size, status.st_mtime_ns


def read(path: Path) -> bytes:
    """The bytes of an image file; a VisxError where there are none to be had."""
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
    except ValueError as error:  # a name that no file system holds, one with a NUL in it
        raise VisxError(f"cannot read the image: {error}") from None


def decode(data: bytes, shown: Range | None = None, channels: int = 3) -> Picture:
    """Decode an image file's bytes: the first frame, EXIF orientation applied.

    `shown` is (black, white) of numeric pictures, None where the file or its type says it; `channels` how many the
    network takes. A VisxError says what is wrong with a file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        return _decode(data, shown, channels)
    except VisxError:
        raise
    except UnidentifiedImageError:
        raise VisxError("not an image that Pillow can read", hint=f"these are: {', '.join(KNOWN)}") from None
    except Image.DecompressionBombError as error:
        raise VisxError(f"refused: {error}".rstrip("."), hint="resize the image first") from None
    except MemoryError:
        raise VisxError("the image does not fit into memory", hint="resize the image first") from None
    except Exception as error:  # Pillow's plugins meet hostile bytes with whatever exception lies on the way
        reason = (str(error).splitlines() or [""])[0][:200]
        raise VisxError(f"the image is damaged: {reason or type(error).__name__}") from None


def _decode(data: bytes, shown: Range | None, channels: int) -> Picture:
    import numpy as np
    from PIL import Image, ImageOps

    digest = digest_of(data)
    samples: Samples | None = None
    if data.startswith(NPY):
        array = _array(np.load(io.BytesIO(data), allow_pickle=False), channels)
        samples = Samples(array, alpha=array.shape[2] == 4 and channels in (1, 3))
    elif is_dicom(data):
        samples = dicom_samples(data, shown, _check_size)
    elif data.startswith(TIFF):
        samples = tiff_samples(data, channels, _check_size)
    if samples is not None:
        return _from_samples(samples, shown, channels, digest)
    with open_heif(data) if is_heif(data) else Image.open(io.BytesIO(data)) as image:
        _check(image, len(data))
        image.load()
        remarks: tuple[str, ...] = (PAGES,) if image.format != "MPO" and getattr(image, "is_animated", False) else ()
        samples = deep_samples(image, data)
        if samples is not None:
            return _from_samples(replace(samples, remarks=remarks), shown, channels, digest)
        ImageOps.exif_transpose(image, in_place=True)
        remarks += (AS_THEY_ARE,) if shown is not None else ()
        return replace(_from_eight_bit(image, channels, digest), remarks=remarks)


def _from_samples(samples: Samples, shown: Range | None, channels: int, digest: str) -> Picture:
    """A numeric picture, or one of many channels: its opacity over white unless the network takes it as a channel."""
    if 0 in samples.values.shape:
        raise VisxError("the image has no pixels")
    unit, remark = to_unit(samples, shown)
    seen = over_white(unit) if samples.alpha else unit
    values = unit if samples.alpha and unit.shape[2] == channels else seen
    eight_bit = samples.values.dtype == "uint8" and values.shape[2] in (1, 3) and not samples.inverted
    remarks = ((remark,) if remark else ()) + samples.remarks
    return Picture(to_eight_bit(seen), digest, None if eight_bit else values, remarks)


def _from_eight_bit(image: Image.Image, channels: int, digest: str) -> Picture:
    """An 8-bit picture as viewers show it; with its opacity as a fourth channel for a network of four."""
    import numpy as np

    rgb = np.ascontiguousarray(np.asarray(to_rgb(image)))
    if channels == 4 and image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return Picture(rgb, digest, np.asarray(image.convert("RGBA")).astype(np.float32) / 255)
    return Picture(rgb, digest)


def _check(image: Image.Image, size: int) -> None:
    """Refuse, before it is decoded, an image of `size` bytes that would run a program or fill the memory."""
    if image.format == "EPS":
        raise VisxError("refused: an EPS file is a program, and visx runs none")
    _check_size(image.width, image.height, size)


def _check_size(width: int, height: int, size: int) -> None:
    """Refuse a picture whose header claims more than a file of `size` bytes can hold."""
    if width * height > min(max(_LARGE, size * _MOST_PIXELS_PER_BYTE), _MOST_SAMPLES):
        raise VisxError(f"refused: {width} x {height} pixels in a file of {size} bytes", hint="resize the image first")


def digest_of(data: bytes) -> str:
    """The sha256 of an image file's bytes."""
    return hashlib.sha256(data).hexdigest()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode of 8 bits -> 8-bit RGB: alpha over white (as viewers show it)."""
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "LAB":  # Pillow's own convert() knows no way from it
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


def as_picture(image: Any, shown: Range | None = None, channels: int = 3) -> Picture:
    """A path, the bytes of a file, a Pillow image or an array -> Picture, for the Python API.

    Arrays are (H, W) or (H, W, C) of any number type, channels last: those the network takes (`channels`), or 1, 3 or
    4 (the fourth an opacity) where it takes pictures. uint8 as they are, floats of 0..1, anything else by `shown`.
    """
    import numpy as np
    from PIL import Image, ImageOps

    if isinstance(image, (str, Path)):
        return decode(read(Path(image)), shown, channels)
    if isinstance(image, bytes):
        return decode(image, shown, channels)
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
    return _from_samples(Samples(array, alpha=alpha), shown, channels, digest)


def _array(array: np.ndarray, channels: int) -> np.ndarray:
    """(H, W, C) of an array (H, W) or (H, W, C); a VisxError says which shapes are taken."""
    import numpy as np

    taken = {channels, *((1, 3, 4) if channels in (1, 3) else ())}
    if array.ndim == 2:
        array = array[:, :, None]
    if array.dtype.kind not in "iufb" or array.ndim != 3 or array.shape[2] not in taken:
        last = f" {' or '.join(map(str, sorted(taken)))} channels"
        hint = "a path or a Pillow image is welcome too"
        if array.ndim == 3 and array.shape[0] in taken:
            hint = "channels come last: array.transpose(1, 2, 0)"
        raise VisxError(
            f"an image array must be numbers, (H, W, C) with{last}; this is {array.dtype} {array.shape}", hint=hint
        )
    if 0 in array.shape:
        raise VisxError("the image has no pixels")
    return np.ascontiguousarray(array)


def _digest_of_values(array: np.ndarray) -> str:
    kind = b"" if array.dtype == "uint8" else array.dtype.str.encode()
    return hashlib.sha256(repr(array.shape).encode() + kind + array.tobytes()).hexdigest()
