"""Sheets as files: PNG, JPEG, PDF, and SVG whose text is text and whose pictures are the cells."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visx.errors import ExitCode, VisxError
from visx.sheet import Cell, ColourBar, check_suffix, encode, layout

SVG = "{http://www.w3.org/2000/svg}"
BAR = np.linspace(0, 255, 32).astype(np.uint8)[None, :, None].repeat(4, 0).repeat(3, 2)
HOSTILE = "</text><script>alert('1')</script> & \"q\""


@pytest.fixture
def sheet():
    red = np.full((40, 60, 3), (200, 30, 40), np.uint8)
    return layout(
        [[Cell(red, "espresso", ("93.1%",), ColourBar(BAR, "0", "1")), Cell(None, HOSTILE, note="none")]],
        "a.png",
        cell=300,
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg"])
def test_a_raster_sheet_has_the_size_and_the_colours_of_its_layout(sheet, suffix):
    picture = Image.open(io.BytesIO(encode(sheet, suffix))).convert("RGB")
    assert picture.size == (sheet.width, sheet.height)
    first = sheet.pictures[0]
    middle = picture.getpixel((first.x + first.width // 2, first.y + first.height // 2))
    assert np.abs(np.array(middle) - (200, 30, 40)).max() <= 4
    assert picture.getpixel((1, 1)) == sheet.theme.paper
    assert encode(sheet, suffix) == encode(sheet, suffix)


def test_a_bar_runs_from_its_low_to_its_high_end(sheet):
    picture = np.asarray(Image.open(io.BytesIO(encode(sheet, ".png"))).convert("L"))
    bar = next(i for i in sheet.pictures if i.height < 20)
    row = picture[bar.y + bar.height // 2, bar.x : bar.x + bar.width].astype(int)
    assert row[0] < 8 and row[-1] > 247 and (np.diff(row) >= 0).all()


def test_a_pdf_has_one_page_of_the_sheets_size(sheet):
    data = encode(sheet, ".pdf")
    assert data.startswith(b"%PDF-") and len(re.findall(rb"/Type\s*/Page\b", data)) == 1
    box = [float(v) for v in re.search(rb"/MediaBox\s*\[([^\]]*)\]", data)[1].split()]
    assert box[2:] == pytest.approx([sheet.width * 72 / 200, sheet.height * 72 / 200], abs=1)


def test_an_svg_keeps_text_as_text_and_pictures_as_they_are(sheet):
    root = ET.fromstring(encode(sheet, ".svg"))
    assert (root.get("width"), root.get("height")) == (str(sheet.width), str(sheet.height))
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert {"a.png", "espresso", "93.1%", "none"} <= set(texts) and any(t.startswith("</text><script>") for t in texts)
    assert not list(root.iter(f"{SVG}script"))
    picture = next(root.iter(f"{SVG}image"))
    data = base64.b64decode(picture.get("href").split(",", 1)[1])
    assert Image.open(io.BytesIO(data)).getpixel((5, 5)) == (200, 30, 40)
    for text, mark in zip(sheet.texts, root.iter(f"{SVG}text"), strict=True):
        assert float(mark.get("textLength")) <= text.width + 0.1


def test_an_ending_that_is_no_picture_is_a_usage_error():
    for name in ("sheet.gif", "sheet", "sheet.pngg"):
        with pytest.raises(VisxError) as caught:
            check_suffix(Path(name))
        assert caught.value.code == ExitCode.USAGE
    assert check_suffix(Path("A.PNG")) == ".png"
