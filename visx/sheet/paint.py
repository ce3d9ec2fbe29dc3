"""Painters: a laid out sheet as PNG, JPEG, PDF or SVG, by the file's ending.

SVG keeps text as text and embeds each picture as PNG. PDF is the painted page itself, written by Pillow at 200 pixels
an inch: one dependency less than a PDF library; take SVG where text must stay text.
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
from visx.sheet.layout import Image, Layout, Text
from visx.sheet.text import FINE

SUFFIXES = (".png", ".jpg", ".jpeg", ".svg", ".pdf")
PIXELS_PER_INCH = 200


def check_suffix(path: Path) -> str:
    """The file's ending, if a sheet can be written so; else a usage error."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise unknown("ending of a sheet", path.suffix or path.name, SUFFIXES, f"one of {', '.join(SUFFIXES)}")
    return suffix


def encode(sheet: Layout, suffix: str) -> bytes:
    """The sheet as the bytes of a file with this ending."""
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
    """The sheet as a picture."""
    canvas = Pillow.new("RGB", (sheet.width, sheet.height), sheet.theme.paper)
    pen = ImageDraw.Draw(canvas)
    for image in sheet.images:
        box = (image.x, image.y, image.x + image.width - 1, image.y + image.height - 1)
        if image.pixels is None:
            pen.rectangle(box, outline=image.frame)
        else:
            fitted, left, top = fit(image)
            if (left, top) != (0, 0):
                pen.rectangle(box, outline=image.frame)
            canvas.paste(fitted, (image.x + left, image.y + top))
    for text in sheet.texts:
        _write(canvas, text)
    return canvas


def _write(canvas: Pillow.Image, text: Text) -> None:
    """One line of text: drawn large, shrunk, and laid on in its colour."""
    shown, font = text.font.drawable(text.text)
    width, height = round(text.width) + 2, round(text.height) + 2
    left, top = int(text.x), int(text.y)
    large = Pillow.new("L", (width * FINE, height * FINE))
    at = {"start": "lm", "middle": "mm", "end": "rm"}[text.anchor]
    where = ((_anchored(text) - left) * FINE, (text.y + text.height / 2 - top) * FINE)
    ImageDraw.Draw(large).text(where, shown, 255, font, anchor=at)
    canvas.paste(text.colour, (left, top), large.resize((width, height), Pillow.Resampling.BOX))


def fit(image: Image) -> tuple[Pillow.Image, int, int]:
    """The picture as large as its box lets it be, its shape kept, and where in the box it begins."""
    assert image.pixels is not None
    picture = Pillow.fromarray(np.ascontiguousarray(image.pixels))
    if image.fills:
        return picture.resize((image.width, image.height), Pillow.Resampling.BILINEAR), 0, 0
    scale = min(image.width / picture.width, image.height / picture.height)
    width, height = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    # a pixel of rounding must not leave a seam
    width = image.width if image.width - width <= 1 else width
    height = image.height if image.height - height <= 1 else height
    size = (width, height)
    fitted = picture if picture.size == size else picture.resize(size, Pillow.Resampling.LANCZOS)
    return fitted, (image.width - width) // 2, (image.height - height) // 2


def svg(sheet: Layout) -> str:
    """The sheet as SVG; each text is held to the width it was measured at, whatever font shows it."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{sheet.width}" height="{sheet.height}" '
        f'viewBox="0 0 {sheet.width} {sheet.height}" font-family="Helvetica, Arial, sans-serif">',
        f'<rect width="100%" height="100%" fill="{_hex(sheet.theme.paper)}"/>',
    ]
    for image in sheet.images:
        box = f'x="{image.x}" y="{image.y}" width="{image.width}" height="{image.height}"'
        if image.pixels is None:
            parts.append(f'<rect {box} fill="none" stroke="{_hex(image.frame)}"/>')
        else:
            data = base64.b64encode(encode_png(np.asarray(fit(image)[0]))).decode()
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
    return text.x + {"start": 0.0, "middle": 0.5, "end": 1.0}[text.anchor] * text.width


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
