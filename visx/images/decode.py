"""Image files: reading and decoding them the way a person sees them; every broken one gives one clear reason."""

from __future__ import annotations

import hashlib
import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visx.errors import VisxError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

# More pixels than a byte of any photograph stands for (an RGB PNG of one colour has 343), asked of large pictures alone:
# the header of a small file could otherwise claim gigabytes of memory. Pillow's own limit is 179 million pixels.
_MOST_PIXELS_PER_BYTE = 2000
_LARGE = 50_000_000
_LARGEST_FILE = 2**31  # bytes; 179 million pixels of 16-bit RGBA have fewer


@dataclass(frozen=True)
class Picture:
    """A decoded image: upright 8-bit RGB (H, W, 3), and the sha256 of the file's bytes."""

    rgb: np.ndarray
    digest: str


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


def decode(data: bytes) -> Picture:
    """Decode an image file's bytes (first frame, EXIF orientation applied); a VisxError says what is wrong with them."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            _check(image, len(data))
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            rgb = np.ascontiguousarray(np.asarray(to_rgb(image)))
    except VisxError:
        raise
    except UnidentifiedImageError:
        raise VisxError("not an image that Pillow can read", hint="JPEG, PNG, WebP, TIFF, BMP and GIF are") from None
    except Image.DecompressionBombError as error:
        raise VisxError(f"refused: {error}".rstrip("."), hint="resize the image first") from None
    except MemoryError:
        raise VisxError("the image does not fit into memory", hint="resize the image first") from None
    except Exception as error:  # Pillow's plugins meet hostile bytes with whatever exception lies on the way
        reason = (str(error).splitlines() or [""])[0][:200]
        raise VisxError(f"the image is damaged: {reason or type(error).__name__}") from None
    return Picture(rgb, digest_of(data))


def _check(image: Image.Image, size: int) -> None:
    """Refuse, before it is decoded, an image of `size` bytes that would run a program or fill the memory."""
    if image.format == "EPS":
        raise VisxError("refused: an EPS file is a program, and visx runs none")
    pixels = image.width * image.height
    if pixels > max(_LARGE, size * _MOST_PIXELS_PER_BYTE):
        raise VisxError(f"refused: {image.width} x {image.height} pixels in a file of {size} bytes")


def digest_of(data: bytes) -> str:
    """The sha256 of an image file's bytes."""
    return hashlib.sha256(data).hexdigest()


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode -> 8-bit RGB: alpha over white (as viewers show it), 16-bit and float levels scaled to 8 bit."""
    from PIL import Image

    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_8bit(image)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8bit(image: Image.Image) -> np.ndarray:
    import numpy as np

    raw = np.asarray(image)
    strips = [
        slice(row, row + 256) for row in range(0, len(raw), 256)
    ]  # doubles of all of it would take eight times as much

    def levels(strip: slice) -> np.ndarray:
        return np.nan_to_num(raw[strip].astype(np.float64))

    top = max((levels(strip).max(initial=0.0) for strip in strips), default=0.0)
    if image.mode == "F":
        full = 1.0 if top <= 1 else 255.0 if top <= 255 else 65535.0
    else:
        full = 65535.0 if image.mode.startswith("I;16") or top > 255 else 255.0
    scaled = np.empty(raw.shape, np.uint8)
    for strip in strips:
        scaled[strip] = np.clip(np.rint(levels(strip) * (255.0 / full)), 0, 255)
    return scaled


def as_picture(image: Any) -> Picture:
    """A path, Pillow image or (H, W), (H, W, 3) uint8 array -> Picture, for the Python API."""
    import numpy as np
    from PIL import Image, ImageOps

    if isinstance(image, (str, Path)):
        return decode(read(Path(image)))
    if isinstance(image, Image.Image):
        rgb = np.ascontiguousarray(np.asarray(to_rgb(ImageOps.exif_transpose(image))))
    else:
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
            raise VisxError(
                f"an image array must be uint8, (H, W) or (H, W, 3); this is {array.dtype} {array.shape}",
                hint="a path or a Pillow image is welcome too",
            )
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[:, :, 0]
        rgb = np.ascontiguousarray(np.asarray(to_rgb(Image.fromarray(array))))
    if 0 in rgb.shape:
        raise VisxError("the image has no pixels")
    return Picture(rgb, hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).hexdigest())
