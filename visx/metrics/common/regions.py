"""Regions: annotated boxes from Pascal VOC XML or a CSV, in the coordinates of the network's input; boxes around maps.

A box is (left, top, right, bottom), the edges of pixels: the box of pixel (0, 0) is (0, 0, 1, 1). The numbers of VOC files are
taken as edges, which is how ImageNet's annotations are commonly read. (VOC itself counts pixels from 1, so its boxes are at
most one pixel off.) XML with a document type or entities is refused.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import TYPE_CHECKING

from visx.errors import VisxError, usage
from visx.metrics.contract import Box

if TYPE_CHECKING:
    import xml.etree.ElementTree as ET

    import numpy as np

    from visx.images.geometry import Placement

MOST_BYTES = 10_000_000
CSV_HEADER = ["image", "left", "top", "right", "bottom"]


class Annotations:
    """The annotated boxes of a `--boxes` source: a CSV of image,left,top,right,bottom, or a folder of VOC XML files.

    An XML file belongs to the image of the same name but for the ending.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self.table = None if source.is_dir() else _read_csv(source)

    def boxes(self, image: Path, size: tuple[int, int]) -> list[Box]:
        """The boxes of an image, in pixels of an image of `size` (height, width). Raises `VisxError` where there are none."""
        if self.table is not None:
            posix = image.as_posix()
            keys = [key for key in self.table if posix == key or posix.endswith("/" + key)]
            boxes = self.table[max(keys, key=len)] if keys else []
        else:
            path = next(
                (
                    p
                    for p in (self.source / f"{image.stem}.xml", *self.source.rglob(f"{_glob(image.stem)}.xml"))
                    if p.is_file()
                ),
                None,
            )
            boxes = read_voc(path, size) if path else []
        if not boxes:
            raise VisxError(f"no annotated box for {image.name} in {self.source}")
        return boxes


def read_voc(path: Path, size: tuple[int, int]) -> list[Box]:
    """The boxes of a Pascal VOC XML file, for a picture of `size` (height, width).

    Raises `VisxError` where the file cannot be read, is no VOC annotation, or says that the picture has another size.
    """
    try:
        data = path.read_bytes()[: MOST_BYTES + 1]
    except OSError as error:
        raise VisxError(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > MOST_BYTES:
        raise VisxError(f"{path} is too large for an annotation")
    try:
        root = _parse(data)
        written = (_number(root, "size/height", 0), _number(root, "size/width", 0))
        boxes = [
            (_number(b, "xmin"), _number(b, "ymin"), _number(b, "xmax"), _number(b, "ymax"))
            for b in root.iter("bndbox")
        ]
    except ValueError as error:
        raise VisxError(f"{path} is no Pascal VOC annotation: {error}") from None
    if all(written) and written != size:
        raise VisxError(f"{path} is for a picture of {written[1]:g}x{written[0]:g}, not {size[1]}x{size[0]}")
    return [_checked(box, str(path)) for box in boxes]


def to_input(boxes: list[Box], place: Placement) -> list[Box]:
    """Boxes in pixels of a picture, as boxes in pixels of the network's input.

    They are cut at the input's border, boxes outside of it are dropped. Raises `VisxError` where none is left.
    """
    left, top, right, bottom = place.box
    height, width = place.input_size
    scale_x, scale_y = width / (right - left), height / (bottom - top)
    inside = []
    for x0, y0, x1, y1 in boxes:
        box = (
            max(0.0, (x0 - left) * scale_x),
            max(0.0, (y0 - top) * scale_y),
            min(float(width), (x1 - left) * scale_x),
            min(float(height), (y1 - top) * scale_y),
        )
        if box[2] > box[0] and box[3] > box[1]:
            inside.append(box)
    if not inside:
        raise VisxError("the annotated boxes lie outside of what the network sees of the picture")
    return inside


def tight_box(mask: np.ndarray) -> Box | None:
    """The smallest box around the true pixels of a mask (H, W); None where there are none."""
    import numpy as np

    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, across) * max(0.0, down)
    return shared / (_area(a) + _area(b) - shared)


def coverage(boxes: list[Box], shape: tuple[int, int]) -> np.ndarray:
    """(H, W) in 0..1: the part of each pixel that lies in a box; where boxes overlap, the largest part."""
    import numpy as np

    def part(low: float, high: float, count: int) -> np.ndarray:
        at = np.arange(count)
        return np.clip(np.minimum(high, at + 1) - np.maximum(low, at), 0, 1)

    covered = np.zeros(shape)
    for left, top, right, bottom in boxes:
        covered = np.maximum(covered, np.outer(part(top, bottom, shape[0]), part(left, right, shape[1])))
    return covered


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _parse(data: bytes) -> ET.Element:
    """The root of an XML document. ValueError for a document type, and with it any entity, and for what is no XML."""
    from defusedxml import DTDForbidden
    from defusedxml.ElementTree import fromstring

    try:
        root: ET.Element = fromstring(data, forbid_dtd=True)
    except DTDForbidden:
        raise ValueError("it has a document type (DOCTYPE), which an annotation has no use for") from None
    except Exception as error:  # expat's own error, and what a hostile encoding makes it raise
        raise ValueError(str(error)) from None
    return root


def _number(element: ET.Element, path: str, default: float | None = None) -> float:
    text = element.findtext(path)
    if text is None and default is not None:
        return default
    value = float(text or "missing")
    if not math.isfinite(value):
        raise ValueError(f"{path} is {text}")
    return value


def _checked(box: Box, where: str) -> Box:
    if not (all(map(math.isfinite, box)) and box[2] > box[0] and box[3] > box[1]):
        raise VisxError(f"{where}: {', '.join(f'{v:g}' for v in box)} is no box (left, top, right, bottom)")
    return box


def _read_csv(path: Path) -> dict[str, list[Box]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [[cell.strip() for cell in row] for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise usage(f"cannot read the boxes {path}: {error}") from None
    if rows and [cell.lower() for cell in rows[0][:5]] == CSV_HEADER:
        rows = rows[1:]
    table: dict[str, list[Box]] = {}
    for row in rows:
        try:
            left, top, right, bottom = map(float, row[1:5])
        except ValueError:
            raise usage(f"{path}: every row must be {','.join(CSV_HEADER)}", f"found {','.join(row)!r}") from None
        box = _checked((left, top, right, bottom), str(path))
        table.setdefault(row[0].removeprefix("./"), []).append(box)
    if not table:
        raise usage(f"{path} holds no boxes", f"a row a box: {','.join(CSV_HEADER)}")
    return table


def _glob(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)
