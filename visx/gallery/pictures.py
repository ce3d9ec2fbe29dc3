"""The small pictures of a page: each image once, and each map alone at the network's input size, in colours.

The page lays a map over its image where the network saw the image, so that its opacity can be chosen. The strength of a signed
map is its opacity. A gradient picture is cut out of the overlay, because the `.npy` of the manifest has no colours. Pictures are
stored inside the page up to a limit in all, else in a folder beside it.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

import cv2
import numpy as np

from visx.draw.colours import COLORMAPS, colorize, strength
from visx.draw.overlay import cut
from visx.errors import VisxError
from visx.files import make_folder, write_whole
from visx.images.decode import decode, read
from visx.images.geometry import Placement
from visx.images.numeric import check_range
from visx.store.record import Record

IMAGE_SIDE, MAP_SIDE = 480, 256  # the longest side of images and of maps, in pixels
QUALITY = 75
Kind = Literal["map", "signed", "gradient"]


class Store:
    """The pictures of a page: inside the page up to `limit` bytes in all, else as files in `folder`."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.bytes = 0
        self._held: dict[str, bytes] | None = {}
        self._names: set[str] = set()

    @property
    def inline(self) -> bool:
        """Whether all pictures so far are inside the page."""
        return self._held is not None

    def put(self, data: bytes) -> str:
        """Store a picture and return its name, which is the same for the same bytes."""
        name = hashlib.sha256(data).hexdigest()[:20] + ".webp"
        if name in self._names:
            return name
        self._names.add(name)
        self.bytes += len(data)
        if self._held is not None:
            self._held[name] = data
            if self.bytes > self.limit:
                held, self._held = self._held, None
                make_folder(self.folder)
                for one, content in held.items():
                    self._write(one, content)
        else:
            self._write(name, data)
        return name

    def _write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        if not path.exists():
            write_whole(path, data)

    def source(self, name: str) -> str:
        """The `src` of an `img` element for the picture."""
        if self._held is not None:
            return f"data:image/webp;base64,{base64.b64encode(self._held[name]).decode()}"
        return f"{quote(os.fsencode(self.folder.name))}/{name}"

    def sweep(self) -> None:
        """Remove pictures of an earlier page from the folder, and the folder where it becomes empty."""
        for path in self.folder.glob("*.webp"):
            if self._held is not None or path.name not in self._names:
                path.unlink(missing_ok=True)
        if self._held is not None and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


@dataclass(frozen=True)
class Small:
    """A small picture: the bytes of a WebP file, and the width and height in pixels."""

    data: bytes
    width: int
    height: int

    @staticmethod
    def of(picture: np.ndarray) -> Small:
        """A picture (H, W, 3) RGB or (H, W, 4) RGBA uint8, encoded."""
        order = cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR
        done, data = cv2.imencode(".webp", cv2.cvtColor(picture, order), [cv2.IMWRITE_WEBP_QUALITY, QUALITY])
        assert done
        return Small(data.tobytes(), picture.shape[1], picture.shape[0])


def shrink(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture, resized to at most `side` pixels on its longer side."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cast(np.ndarray, cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def find_image(folder: Path, image: str) -> Path | None:
    """The file of a record's image: by the path in the record, else relative to the three folders above the run.

    None where it is nowhere.
    """
    named = Path(image)
    tries = (
        [named] if named.is_absolute() else [named, *(parent / named for parent in list(folder.resolve().parents)[:3])]
    )
    try:
        return next((path for path in tries if path.is_file()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None


def plain_picture(path: Path, preprocessing: Mapping[str, Any] | None = None) -> np.ndarray | None:
    """The image file as a viewer shows it, (H, W, 3) uint8; None where it cannot be decoded.

    `preprocessing` of the record has the range of numeric pictures and the number of channels.
    """
    known = preprocessing or {}
    shown, mean = known.get("range"), known.get("mean")
    try:
        asked = check_range(*shown) if isinstance(shown, list) and len(shown) == 2 else None
        return decode(read(path), asked, len(mean) if isinstance(mean, list) else 3).rgb
    except VisxError:
        return None


def kind_of(record: Record) -> Kind:
    """How a result is drawn: by its method's declaration, or by its values where the method is not known here."""
    from visx.methods import get_method

    try:
        method = get_method(record.method)
    except VisxError:
        return "signed" if (record.min or 0) < 0 else "map"
    if method.picture == "gradient" and "overlay" in record.links:
        return "gradient"
    return "signed" if method.signed_with(record.params or {}) else "map"


def overlay_picture(folder: Path, record: Record) -> Small | None:
    """The overlay of a result, small; for results whose image is not there."""
    overlay = record.links.get("overlay")
    rgb = plain_picture(folder / overlay) if overlay else None
    return Small.of(shrink(rgb, IMAGE_SIDE)) if rgb is not None else None


def map_picture(folder: Path, record: Record, kind: Kind, place: Placement) -> Small | None:
    """The map of a result without its image, small; None where its files cannot be read."""
    if kind == "gradient":
        overlay = plain_picture(folder / record.links["overlay"])
        if overlay is None:
            return None
        seen = cv2.resize(cut(overlay, place), place.input_size[::-1], interpolation=cv2.INTER_AREA)
        return Small.of(shrink(seen, MAP_SIDE))
    try:
        values = np.load(folder / record.npy, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size or not np.isfinite(values).all():
        return None
    colormap = (record.rendering or {}).get("colormap")
    colours = colorize(values, kind == "signed", colormap if colormap in COLORMAPS else "turbo")
    if kind == "signed":
        opacity = np.rint(strength(values) * 255).astype(np.uint8)
        colours = np.dstack([colours, opacity])
    return Small.of(shrink(colours, MAP_SIDE))


def placement(record: Record) -> Placement:
    """Where the network looked. Raises ValueError where the record does not say."""
    crop, size = record.crop, record.input_size
    if not (len(crop) == 4 and len(size) == 2 and all(isinstance(v, (int, float)) for v in (*crop, *size))):
        raise ValueError("no crop in this record")
    left, top, right, bottom = (float(v) for v in crop)
    if not (right > left and bottom > top and min(size) >= 1):
        raise ValueError("an empty crop")
    return Placement((left, top, right, bottom), (int(size[0]), int(size[1])))
