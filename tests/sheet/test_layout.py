"""Sheets: equal cells, lines that fit, nothing over anything else, whatever the labels are; and how they look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from visx.sheet import THEMES, Cell, ColourBar, layout
from visx.sheet.layout import Layout
from visx.sheet.paint import fit, raster

GOLDEN = Path(__file__).parent / "golden"
LONG = "German short-haired pointer that stands in a field of sunflowers and looks at the photographer"


def cell(label: str = "espresso", shape: tuple[int, int] = (60, 90), seed: int = 0, bar: bool = True) -> Cell:
    """A cell with a smooth picture."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    picture = np.stack([rows * 255 // shape[0], columns * 255 // shape[1], np.full(shape, 40 * seed % 256)], 2)
    colours = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(8, 0).repeat(3, 2)
    return Cell(
        picture.astype(np.uint8),
        label,
        (f"{label} 93.1%", "layer4.2.conv3 · 12 ms"),
        ColourBar(colours, "-0.12", "0.12", "0") if bar else None,
    )


def boxes(sheet: Layout) -> list[tuple[float, float, float, float]]:
    """Everything that is drawn, as it is drawn: pictures, and lines of text as wide as they are (notes stand inside
    the frames of places without a picture)."""
    found: list[tuple[float, float, float, float]] = [
        (i.x, i.y, i.x + i.width, i.y + i.height) for i in sheet.pictures if i.pixels is not None
    ]
    for t in sheet.texts:
        wide = t.font.width(t.text)
        left = {"start": t.x, "middle": t.x + (t.width - wide) / 2, "end": t.x + t.width - wide}[t.anchor]
        found.append((left, t.y, left + wide, t.y + t.height))
    return found


def overlapping(sheet: Layout) -> list[tuple[int, int]]:
    found = boxes(sheet)
    return [
        (i, j)
        for i, a in enumerate(found)
        for j, b in enumerate(found[:i])
        if min(a[2], b[2]) - max(a[0], b[0]) > 0.01 and min(a[3], b[3]) - max(a[1], b[1]) > 0.01
    ]


@pytest.mark.parametrize("width", [80, 240])
@pytest.mark.parametrize("label", ["espresso", LONG, "", "W" * 300, "لوحة\nمفاتيح", "\u202eabc\x00"])
@pytest.mark.parametrize("columns", range(1, 9))
def test_nothing_overlaps_or_leaves_the_sheet(columns, label, width):
    ends = ColourBar(np.zeros((8, 64, 3), np.uint8), "-1.2345678901e-10", "1.2345678901e-10", "0.000000000000")
    long_ends = Cell(cell().picture, label, (), ends)
    rows = [[cell(label, bar=number > 0) for number in range(8)], [long_ends, Cell(None, label, note=label), long_ends]]
    sheet = layout(rows, label, columns=columns, cell=width)
    assert overlapping(sheet) == []
    for left, top, right, bottom in boxes(sheet):
        assert left >= 0 and top >= 0 and right <= sheet.width + 0.01 and bottom <= sheet.height + 0.01


@pytest.mark.parametrize("columns", range(1, 9))
def test_every_cell_has_one_size_and_stands_in_its_column(columns):
    rows = [[cell(shape=(60 + 20 * n, 90)) for n in range(5)] for _ in range(2)]
    sheet = layout(rows, columns=columns, cell=100)
    pictures = [i for i in sheet.pictures if i.height > 20]
    assert len(pictures) == 10 and {(i.width, i.height) for i in pictures} == {(100, 67)}
    across = sorted({i.x for i in pictures})
    assert len(across) == min(columns, 5) and len(set(np.diff(across))) <= 1
    lines = -(-5 // columns) * 2
    assert len({i.y for i in pictures}) == lines and len(set(np.diff(sorted({i.y for i in pictures})))) <= 1


def test_a_row_longer_than_the_columns_goes_on_below_and_the_next_begins_a_line():
    sheet = layout([[cell(n) for n in "abc"], [cell(n) for n in "def"]], columns=2)
    headings = [(t.text, t.x) for t in sheet.texts if len(t.text) == 1 and t.text.isalpha()]
    left, right = sorted({x for _, x in headings})
    assert [text for text, x in headings if x == left] == ["a", "c", "d", "f"]
    assert [text for text, x in headings if x == right] == ["b", "e"]


def test_long_names_are_shortened_and_short_ones_are_not():
    sheet = layout([[cell(LONG), cell("tabby")]], LONG, cell=200)
    texts = [t.text for t in sheet.texts]
    shortened = next(t for t in texts if t.startswith("German"))
    assert shortened.endswith("…") and LONG.startswith(shortened[:-1]) and len(shortened) > 12
    assert "tabby" in texts


def test_pictures_of_another_shape_keep_theirs():
    sheet = layout([[cell(shape=(50, 100)), cell(shape=(100, 50))]], cell=200)
    wide, tall = (fit(i) for i in sheet.pictures if i.height > 20)
    assert (wide[0].size, wide[1:]) == ((200, 100), (0, 0))
    assert (tall[0].size, tall[1:]) == ((50, 100), (75, 0))


def test_an_empty_place_says_why():
    sheet = layout([[cell(), Cell(None, "CAM", note="does not fit: it has no global average pooling")]], cell=160)
    said = " ".join(t.text for t in sheet.texts)
    assert "does not fit: it has no global average pooling" in said


def example(theme: str, columns: int) -> Layout:
    rows = [[cell(label, seed=n, bar=n > 0) for n in range(4)] for label in ("espresso", LONG)]
    rows[1][3] = Cell(None, "Class activation map", note="does not fit: it has no ReLU whose rule could change")
    return layout(rows, "coffee.png", columns=columns, cell=140, theme=theme)


@pytest.mark.parametrize(("theme", "columns"), [("light", 8), ("dark", 3)])
def test_looks_as_it_did(theme, columns):
    """Golden pictures, looked at by a person. Tolerant of fonts that Pillow draws a shade differently, of nothing more."""
    golden = np.asarray(Pillow.open(GOLDEN / f"{theme}-{columns}.png").convert("RGB")).astype(int)
    drawn = np.asarray(raster(example(theme, columns))).astype(int)
    assert drawn.shape == golden.shape
    difference = np.abs(drawn - golden).max(2)
    assert (difference > 48).mean() < 0.002


def test_the_themes_are_legible():
    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for theme in THEMES.values():
        for ink in (theme.ink, theme.faint):
            bright, dark = sorted((luminance(ink), luminance(theme.paper)), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= 4.5
