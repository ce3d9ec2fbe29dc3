"""The text of a sheet: fonts, the width of a line, and lines cut or wrapped to the room they have.

Pillow's own font has few characters beyond ASCII. A line with other characters is drawn in a font of the machine that has most
of them; of those that it lacks, accents are dropped, the rest becomes `?`. SVG sheets hold the unchanged text.
"""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path
from typing import cast

from PIL import ImageFont

from visx.errors import usage

ELLIPSIS = "…"
FINE = 4  # text is measured and drawn this many times as large, then shrunk: hinting spaces small letters unevenly
SYSTEM_FONTS = ("NotoSans-Regular.ttf", "DejaVuSans.ttf", "Arial Unicode.ttf", "arialuni.ttf", "Arial.ttf", "arial.ttf")
_ABSENT = "\U0010ffff"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def one_line(text: str) -> str:
    """The text as one line: each run of spaces is one space, control and format characters become U+FFFD."""
    spaced = "".join(" " if c.isspace() else c for c in text)
    return " ".join(
        "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _HIDDEN else c for c in spaced).split()
    )


class Font:
    """A font at a size in pixels: the font `file`, by default Pillow's own."""

    def __init__(self, size: float, file: Path | None = None) -> None:
        self.size = size
        self._own = _load(file, size * FINE)

    def drawable(self, text: str) -> tuple[str, ImageFont.FreeTypeFont]:
        """The text as it can be drawn and the font for it, `FINE` times as large; missing characters are replaced."""
        if covers(self._own, text):
            return text, self._own
        fonts = [self._own, *filter(None, (_system(name, self.size * FINE) for name in SYSTEM_FONTS))]
        best = max(fonts, key=lambda font: sum(covers(font, c) for c in text))  # of several the first
        return "".join(c if covers(best, c) else _replacement(best, c) for c in text), best

    def width(self, text: str) -> float:
        """The width in pixels of the text as it will be drawn."""
        shown, font = self.drawable(text)
        return float(font.getlength(shown)) / FINE

    def shorten(self, text: str, room: float) -> str:
        """The text, cut and ended with an ellipsis where it is wider than `room` pixels."""
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
        """The text in at most `most` lines of `room` pixels, broken between words; the last line is shortened."""
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


def _replacement(font: ImageFont.FreeTypeFont, character: str) -> str:
    """The replacement for a character that the font lacks: the character without its accents, or a question mark."""
    base = "".join(c for c in unicodedata.normalize("NFKD", character) if not unicodedata.combining(c))
    return base if base and covers(font, base) else "?"


@functools.cache
def _load(file: Path | None, size: float) -> ImageFont.FreeTypeFont:
    """The font in a file, or Pillow's own. Raises `VisxError` (usage, exit 2) where the file cannot be read."""
    if file is None:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    try:
        return ImageFont.truetype(str(file), size)
    except OSError as error:
        raise usage(f"cannot read the font {file}: {error}", "a TrueType or OpenType file") from None


@functools.cache
def _system(name: str, size: float) -> ImageFont.FreeTypeFont | None:
    """A font of the machine; None where there is none of that name."""
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def covers(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether the font has every character of the text."""
    return all(_has(font, c) for c in set(text))


@functools.cache
def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Whether the font has a character: it is drawn otherwise than a character that no font has."""
    return character.isspace() or bytes(font.getmask(character)) != bytes(font.getmask(_ABSENT))
