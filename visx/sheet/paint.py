"""Painting a laid out sheet as PNG, JPEG, PDF or SVG; the file's ending decides.

SVG keeps text as text and embeds each picture as PNG. PDF is the painted page as one picture of 200 pixels an inch.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw

from visx.draw.png import encode_png
from visx.errors import unknown
from visx.sheet.layout import Layout, PlacedPicture, Text
from visx.sheet.text import FINE

SUFFIXES = (".png", ".jpg", ".jpeg", ".svg", ".pdf")
PIXELS_PER_INCH = 200


def check_suffix(path: Path) -> str:
    """The ending of a sheet's file in lower case. Raises `VisxError` (usage, exit 2) where it is none of `SUFFIXES`."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise unknown("ending of a sheet", path.suffix or path.name, SUFFIXES, f"one of {', '.join(SUFFIXES)}")
    return suffix


def encode(sheet: Layout, suffix: str) -> bytes:
    """The bytes of a file of the sheet; `suffix` is one of `SUFFIXES`."""
    if suffix == ".svg":
        return svg(sheet).encode()
    picture = raster(sheet)
    buffer = io.BytesIO()
    if suffix == ".png":
        picture.save(buffer, "png", optimize=True)
    elif suffix == ".pdf":
        picture.save(buffer, "pdf", resolution=PIXELS_PER_INCH, quality=92)
    else:
        picture.save(buffer, "jpeg", quality=90, subsampling=0)
    return buffer.getvalue()


def raster(sheet: Layout) -> Pillow.Image:
    """The sheet as an RGB picture of its width and height."""
    canvas = Pillow.new("RGB", (sheet.width, sheet.height), sheet.theme.paper)
    pen = ImageDraw.Draw(canvas)
    for place in sheet.pictures:
        box = (place.x, place.y, place.x + place.width - 1, place.y + place.height - 1)
        if place.pixels is None:
            pen.rectangle(box, outline=place.frame)
        else:
            fitted, left, top = fit(place)
            if (left, top) != (0, 0):
                pen.rectangle(box, outline=place.frame)
            canvas.paste(fitted, (place.x + left, place.y + top))
    for text in sheet.texts:
        _write(canvas, text)
    return canvas


def _write(canvas: Pillow.Image, text: Text) -> None:
    """Draw one line of text: `FINE` times as large, then shrunk, so that letters are spaced evenly."""
    shown, font = text.font.drawable(text.text)
    width, height = round(text.width) + 2, round(text.height) + 2
    left, top = int(text.x), int(text.y)
    large = Pillow.new("L", (width * FINE, height * FINE))
    at = {"start": "lm", "middle": "mm", "end": "rm"}[text.anchor]
    where = ((_anchored(text) - left) * FINE, (text.y + text.height / 2 - top) * FINE)
    ImageDraw.Draw(large).text(where, shown, 255, font, anchor=at)
    canvas.paste(text.colour, (left, top), large.resize((width, height), Pillow.Resampling.BOX))


def fit(place: PlacedPicture) -> tuple[Pillow.Image, int, int]:
    """The picture resized to its box, and the (left, top) pixel inside the box where it begins."""
    assert place.pixels is not None
    picture = Pillow.fromarray(np.ascontiguousarray(place.pixels))
    if place.fills:
        return picture.resize((place.width, place.height), Pillow.Resampling.BILINEAR), 0, 0
    scale = min(place.width / picture.width, place.height / picture.height)
    width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # fill the box where rounding would leave one pixel
    width = place.width if place.width - width <= 1 else width
    height = place.height if place.height - height <= 1 else height
    size = (width, height)
    fitted = picture if picture.size == size else picture.resize(size, Pillow.Resampling.LANCZOS)
    return fitted, (place.width - width) // 2, (place.height - height) // 2


def svg(sheet: Layout) -> str:
    """The sheet as SVG text. `textLength` keeps each line at its measured width, whatever font the viewer takes."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{sheet.width}" height="{sheet.height}" '
        f'viewBox="0 0 {sheet.width} {sheet.height}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="100%" height="100%" fill="{_hex(sheet.theme.paper)}"/>',
    ]
    for place in sheet.pictures:
        box = f'x="{place.x}" y="{place.y}" width="{place.width}" height="{place.height}"'
        if place.pixels is None:
            parts.append(f'<rect {box} fill="none" stroke="{_hex(place.frame)}"/>')
        else:
            data = base64.b64encode(encode_png(np.asarray(fit(place)[0]))).decode()
            parts.append(f'<image {box} preserveAspectRatio="xMidYMid" href="data:image/png;base64,{data}"/>')
    for text in sheet.texts:
        middle = text.y + text.height / 2
        parts.append(
            f'<text x="{_anchored(text):.1f}" y="{middle:.1f}" dominant-baseline="central" text-anchor="{text.anchor}" '
            f'font-size="{text.font.size}" fill="{_hex(text.colour)}" textLength="{text.font.width(text.text):.1f}" '
            f'lengthAdjust="spacingAndGlyphs">{escape(text.text)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


def _anchored(text: Text) -> float:
    """The x coordinate of the text's anchor."""
    return text.x + {"start": 0.0, "middle": 0.5, "end": 1.0}[text.anchor] * text.width


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
