"""The layout of a contact sheet: equal cells in columns, each with a picture, a colour bar and lines of text that fit.

`layout` gives every picture, bar and line of text its place in pixels; `visx.sheet.paint` only draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from visx.sheet.text import Font, one_line

if TYPE_CHECKING:
    import numpy as np

MAX_COLUMNS = 8
TITLE, HEADING, LINE, TICK = 1.35, 1.0, 0.9, 0.8  # text sizes, in units of the sheet's text size


@dataclass(frozen=True)
class Theme:
    """The colours of a sheet as (R, G, B): background, text, secondary text, and the frames of pictures."""

    paper: tuple[int, int, int]
    ink: tuple[int, int, int]
    faint: tuple[int, int, int]
    frame: tuple[int, int, int]


THEMES = {
    "light": Theme((255, 255, 255), (24, 24, 27), (88, 88, 96), (212, 212, 216)),
    "dark": Theme((24, 24, 27), (244, 244, 245), (170, 170, 178), (63, 63, 70)),
}


@dataclass(frozen=True)
class ColourBar:
    """A colour bar (h, w, 3) uint8 RGB and the labels under its two ends; `middle` is the label of zero, if it is there."""

    colours: np.ndarray
    low: str
    high: str
    middle: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell of a sheet: a heading above a picture (H, W, 3) uint8 RGB, a colour bar and lines of text below it.

    Where `picture` is None, `note` says why.
    """

    picture: np.ndarray | None
    heading: str = ""
    lines: tuple[str, ...] = ()
    bar: ColourBar | None = None
    note: str = ""


@dataclass(frozen=True)
class Text:
    """A line of text in the box (x, y, width, height) in pixels; `anchor` is start, middle or end."""

    x: float
    y: float
    width: float
    height: float
    text: str
    font: Font
    colour: tuple[int, int, int]
    anchor: str = "start"


@dataclass(frozen=True)
class PlacedPicture:
    """A picture in the box (x, y, width, height) in pixels; an empty frame where `pixels` is None.

    It keeps its shape inside the box, unless it `fills` the box, as a colour bar does.
    """

    x: int
    y: int
    width: int
    height: int
    pixels: np.ndarray | None
    frame: tuple[int, int, int]
    fills: bool = False


@dataclass
class Layout:
    """A sheet of `width` x `height` pixels, with the place of every picture and line of text."""

    width: int
    height: int
    theme: Theme
    pictures: list[PlacedPicture] = field(default_factory=list)
    texts: list[Text] = field(default_factory=list)


def layout(
    rows: Sequence[Sequence[Cell]],
    title: str = "",
    *,
    columns: int = MAX_COLUMNS,
    cell: int = 240,
    theme: str = "light",
    font: Path | None = None,
) -> Layout:
    """The layout of rows of cells; a row of more than `columns` cells continues in the next line.

    `cell` is the width of a cell in pixels, `theme` a key of `THEMES`, `font` a font file in place of Pillow's own. All
    pictures get boxes of one size, which has the first picture's shape; every cell has room for the same number of lines.
    """
    cells = [c for row in rows for c in row]
    across = min(columns, max(len(row) for row in rows))
    unit = max(12.5, cell / 17)
    fonts = {size: Font(round(unit * size), font) for size in (TITLE, HEADING, LINE, TICK)}
    first = next((c.picture for c in cells if c.picture is not None), None)
    tall = round(cell * min(2.0, first.shape[0] / first.shape[1])) if first is not None else cell
    frame = _Frame(cell, max(tall, 1), unit, max(len(c.lines) for c in cells), any(c.bar for c in cells))
    margin, gap, between = round(unit * 1.2), round(unit * 0.8), round(unit * 1.4)
    paper = THEMES[theme]
    top = margin + (round(unit * TITLE * 2) if title else 0)
    lines = [row[start : start + across] for row in rows for start in range(0, len(row), across)]
    sheet = Layout(
        2 * margin + across * cell + (across - 1) * gap,
        top + len(lines) * frame.height + (len(lines) - 1) * between + margin,
        paper,
    )
    if title:
        big = fonts[TITLE]
        room = sheet.width - 2 * margin
        shown = big.shorten(one_line(title), room)
        sheet.texts.append(Text(margin, margin, room, unit * TITLE * 1.3, shown, big, paper.ink))
    for down, line in enumerate(lines):
        for right, one in enumerate(line):
            frame.place(sheet, one, margin + right * (cell + gap), top + down * (frame.height + between), fonts)
    return sheet


@dataclass(frozen=True)
class _Frame:
    """The measures that all cells of a sheet share, in pixels.

    `tall` is the height of a picture's box, `unit` the text size, `lines` the number of lines below a picture, `bars` whether
    there is room for colour bars.
    """

    width: int
    tall: int
    unit: float
    lines: int
    bars: bool

    @property
    def height(self) -> int:
        """The height of a cell."""
        heading = self.unit * (HEADING * 1.3 + 0.35)
        bar = self.unit * (0.35 + 0.6 + TICK * 1.5) if self.bars else 0.0
        return round(heading + self.tall + bar + self.unit * (0.25 + self.lines * LINE * 1.3))

    def place(self, sheet: Layout, cell: Cell, left: int, top: int, fonts: dict[float, Font]) -> None:
        """Add the pictures and texts of a cell whose upper left corner is at (left, top)."""
        theme, unit = sheet.theme, self.unit

        def write(text: str, y: float, size: float, colour: tuple[int, int, int]) -> None:
            shown = fonts[size].shorten(one_line(text), self.width)
            if shown:
                sheet.texts.append(Text(left, y, self.width, unit * size * 1.3, shown, fonts[size], colour))

        write(cell.heading, top, HEADING, theme.ink)
        y = top + round(unit * (HEADING * 1.3 + 0.35))
        sheet.pictures.append(PlacedPicture(left, y, self.width, self.tall, cell.picture, theme.frame))
        self._note(sheet, cell.note, left, y, fonts[LINE])
        y += self.tall
        if cell.bar is not None:
            high = round(unit * 0.6)
            bar_top = y + round(unit * 0.35)
            sheet.pictures.append(
                PlacedPicture(left, bar_top, self.width, high, cell.bar.colours, theme.frame, fills=True)
            )
            self._ticks(sheet, cell.bar, left, bar_top + high + unit * 0.1, fonts[TICK])
            y += round(unit * (0.35 + 0.6 + TICK * 1.5))
        for number, line in enumerate(cell.lines):
            write(line, y + unit * (0.25 + number * LINE * 1.3), LINE, theme.faint)

    def _note(self, sheet: Layout, note: str, left: int, top: int, font: Font) -> None:
        """Add the note inside the box of the missing picture, in at most as many lines as fit."""
        inset, step = self.unit * 0.6, self.unit * LINE * 1.3
        lines = font.wrap(one_line(note), self.width - 2 * inset, int((self.tall - 2 * inset) // step))
        for number, line in enumerate(lines):
            box = (left + inset, top + inset + number * step, self.width - 2 * inset, step)
            sheet.texts.append(Text(*box, line, font, sheet.theme.faint))

    def _ticks(self, sheet: Layout, bar: ColourBar, left: int, top: float, font: Font) -> None:
        """Add the labels of a colour bar."""
        third = self.width / 3
        for number, (text, anchor) in enumerate(((bar.low, "start"), (bar.middle, "middle"), (bar.high, "end"))):
            if text:
                box = (left + number * third, top, third, self.unit * TICK * 1.3)
                sheet.texts.append(Text(*box, font.shorten(one_line(text), third), font, sheet.theme.faint, anchor))
