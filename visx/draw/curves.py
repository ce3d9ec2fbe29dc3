"""Curves as a PNG: one panel for each metric, one line for each method. Drawn with Pillow, which visx needs anyway."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

Curve = Sequence[tuple[float, float]]

# Okabe and Ito's colours, which most people with colour blindness can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")
PANEL, MARGIN, LINE = 360, 52, 20  # pixels


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at a size in pixels."""
    return ImageFont.load_default(size)


def png_bytes(image: Image.Image) -> bytes:
    """The bytes of a PNG file with the picture."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def plot_curves(panels: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """The bytes of a PNG file with the curves {metric: {method: [(x, y), ...]}}, x in 0..1.

    The y axis of a panel runs from 0 to its largest value, at least to 1.
    """
    legend = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    width = len(panels) * (PANEL + 2 * MARGIN)
    image = Image.new("RGB", (width, PANEL + 2 * MARGIN + LINE * len(legend)), "white")
    pen = ImageDraw.Draw(image)
    for number, (title, lines) in enumerate(panels.items()):
        left = number * (PANEL + 2 * MARGIN) + MARGIN
        top = max([1.0, *(y for curve in lines.values() for _, y in curve)])
        _axes(pen, left, title, top)
        for name, curve in lines.items():
            points = [(left + x * PANEL, MARGIN + PANEL * (1 - y / top)) for x, y in curve]
            pen.line(points, fill=COLOURS[legend.index(name) % len(COLOURS)], width=2)
    for number, name in enumerate(legend):
        y = PANEL + 2 * MARGIN + number * LINE
        pen.line([(MARGIN, y), (MARGIN + 24, y)], fill=COLOURS[number % len(COLOURS)], width=3)
        pen.text((MARGIN + 32, y), name, "black", font(13), anchor="lm")
    return png_bytes(image)


def _axes(pen: ImageDraw.ImageDraw, left: int, title: str, top: float) -> None:
    """Draw the frame, grid, ticks and labels of a panel that begins at pixel `left`; `top` is the largest y value."""
    pen.rectangle([left, MARGIN, left + PANEL, MARGIN + PANEL], outline="#404040")
    pen.text((left + PANEL / 2, MARGIN - 14), title, "black", font(15), anchor="mb")
    for i in range(5):
        x, y = left + PANEL * i / 4, MARGIN + PANEL * (1 - i / 4)
        if 0 < i < 4:
            pen.line([(x, MARGIN), (x, MARGIN + PANEL)], fill="#E0E0E0")
            pen.line([(left, y), (left + PANEL, y)], fill="#E0E0E0")
        pen.text((x, MARGIN + PANEL + 6), f"{i / 4:g}", "black", font(11), anchor="mt")
        pen.text((left - 6, y), f"{top * i / 4:g}", "black", font(11), anchor="rm")
    pen.text((left + PANEL / 2, MARGIN + PANEL + 24), "part of the pixels changed", "black", font(11), anchor="mt")
