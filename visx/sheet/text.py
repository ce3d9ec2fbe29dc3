"""Text of a sheet: Pillow's own scalable font, what it lacks, and lines that are as short as their room.

Pillow's font draws little beyond ASCII. A line it cannot draw is drawn in a font of the machine where there is one,
else without accents and with `?` for the rest. SVG sheets carry the text itself.
"""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path
from typing import cast

from PIL import ImageFont

from visx.errors import usage

ELLIPSIS = "…"
FINE = 4  # text is measured and drawn this much larger and shrunk: small sizes are hinted into uneven spacing
SYSTEM_FONTS = ("NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arialuni.ttf", "Arial.ttf", "arial.ttf")
_ABSENT = "\U0010ffff"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def one_line(text: str) -> str:
    """Text as a label shows it: one line, and no control, format or stray characters."""
    spaced = "".join(" " if c.isspace() else c for c in text)
    return " ".join(
        "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _HIDDEN else c for c in spaced).split()
    )


class Font:
    """One font at one size; `file` replaces Pillow's own."""

    def __init__(self, size: float, file: Path | None = None) -> None:
        self.size = size
        self._own = _load(file, size * FINE)

    def drawable(self, text: str) -> tuple[str, ImageFont.FreeTypeFont]:
        """The text and the font, `FINE` times as large, that can draw it; if need be with characters replaced."""
        if covers(self._own, text):
            return text, self._own
        fonts = [self._own, *filter(None, (_system(name, self.size * FINE) for name in SYSTEM_FONTS))]
        best = max(fonts, key=lambda font: sum(covers(font, c) for c in text))  # of equals the first
        return "".join(c if covers(best, c) else _plainer(best, c) for c in text), best

    def width(self, text: str) -> float:
        """The width of a line as it will be drawn."""
        shown, font = self.drawable(text)
        return float(font.getlength(shown)) / FINE

    def shorten(self, text: str, room: float) -> str:
        """The line, cut with an ellipsis where it is wider than `room`."""
        if self.width(text) <= room:
            return text
        low, high = 0, len(text)
        while low < high:
            middle = (low + high + 1) // 2
            if self.width(text[:middle].rstrip() + ELLIPSIS) <= room:
                low = middle
            else:
                high = middle - 1
        return text[:low].rstrip() + ELLIPSIS if low else ""

    def wrap(self, text: str, room: float, most: int) -> list[str]:
        """The text in at most `most` lines of width `room`, broken between words; the last is shortened."""
        lines: list[str] = []
        words = text.split()
        while words and len(lines) < most:
            count = 1
            while count < len(words) and self.width(" ".join(words[: count + 1])) <= room:
                count += 1
            last = len(lines) == most - 1
            lines.append(self.shorten(" ".join(words if last else words[:count]), room))
            words = [] if last else words[count:]
        return lines


def _plainer(font: ImageFont.FreeTypeFont, character: str) -> str:
    """What stands for a character that the font lacks: itself without its accents, or a question mark."""
    base = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    return base if base and covers(font, base) else "?"


@functools.cache
def _load(file: Path | None, size: float) -> ImageFont.FreeTypeFont:
    if file is None:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    try:
        return ImageFont.truetype(str(file), size)
    except OSError as error:
        raise usage(f"cannot read the font {file}: {error}", "a TrueType or OpenType file") from None


@functools.cache
def _system(name: str, size: float) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def covers(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether the font has every character: none of them is drawn as its mark for a character that is not there."""
    return all(_has(font, c) for c in set(text))


@functools.cache
def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask(_ABSENT))
