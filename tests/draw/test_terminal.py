"""`visx explain --show`: what each terminal is sent, and that none is sent what it cannot draw."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visx.draw.terminal import preview, protocol_of

XTERM = {"TERM": "xterm-256color"}
TRUE = {**XTERM, "COLORTERM": "truecolor"}


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """Red above, blue below, 40 x 20."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10, :, 0], pixels[10:, :, 2] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    return tmp_path / "halves.png"


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "COLORTERM": "truecolor"}, "truecolor"),
        ({**XTERM, "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({**XTERM, "TERM_PROGRAM": "WezTerm"}, "iterm"),
        (TRUE, "truecolor"),
        (XTERM, "256"),
        ({"TERM": "dumb"}, "grey"),
        ({}, "grey"),
        ({"TERM": "xterm-kitty", "NO_COLOR": ""}, "grey"),
    ],
)
def test_the_way_follows_from_the_environment(environment, way):
    assert protocol_of(environment) == way


@pytest.fixture(autouse=True)
def utf8(monkeypatch):
    monkeypatch.setattr("visx.draw.terminal._can_print", lambda text: True)


def test_half_blocks_show_two_pixels_a_character(halves):
    lines = preview(halves, TRUE, 8).split("\n")
    assert len(lines) == 2 and all(line.count("▀") == 8 and line.endswith("\033[0m") for line in lines)
    assert set(re.findall(r"\033\[[34]8;2;(\d+;\d+;\d+)m", lines[0])) == {"255;0;0"}
    assert set(re.findall(r"\033\[[34]8;2;(\d+;\d+;\d+)m", lines[1])) == {"0;0;255"}
    between = preview(halves, TRUE, 20).split("\n")[2]  # the third of five lines: red above, blue below
    assert between.count("\033[38;2;255;0;0m\033[48;2;0;0;255m▀") == 20
    assert set(re.findall(r"[34]8;5;(\d+)m", preview(halves, XTERM, 8))) == {"196", "21"}  # xterm's pure red and blue


def test_without_colour_brightness_is_what_is_left(halves):
    text = preview(halves, {"TERM": "dumb"}, 8)
    assert text.isascii() and "\033" not in text
    first, second = text.split("\n")
    shades = " .:-=+*#%@"
    assert shades.index(first[0]) > shades.index(second[0])  # red is brighter than blue


def test_a_terminal_that_cannot_encode_blocks_gets_ascii(halves, monkeypatch):
    monkeypatch.setattr("visx.draw.terminal._can_print", lambda text: False)
    assert preview(halves, TRUE, 8).isascii()


def test_kitty_gets_a_png_in_pieces_that_it_accepts(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    pieces = re.findall(r"\033_G([^;]*);([^\033]*)\033\\", preview(tmp_path / "noise.png", {"TERM": "xterm-kitty"}, 40))
    assert len(pieces) > 2 and all(len(data) <= 4096 and len(data) % 4 == 0 for _, data in pieces)
    assert pieces[0][0].startswith("a=T,f=100") and "c=40" in pieces[0][0]
    assert [keys[-3:] for keys, _ in pieces] == ["m=1"] * (len(pieces) - 1) + ["m=0"]
    shown = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in pieces))))
    assert np.array_equal(np.asarray(shown), noise)


def test_iterm_gets_the_picture_with_its_size(halves):
    keys, data = re.fullmatch(
        r"\033\]1337;File=([^:]*):(.*)\a", preview(halves, {**XTERM, "TERM_PROGRAM": "iTerm.app"}, 8)
    ).groups()
    png = base64.b64decode(data)
    assert f"size={len(png)}" in keys and "inline=1" in keys and Image.open(io.BytesIO(png)).size == (40, 20)


@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1, 1)])
def test_odd_shapes_still_have_a_line(tmp_path, shape):
    Image.new("RGB", shape[::-1]).save(tmp_path / "odd.png")
    assert preview(tmp_path / "odd.png", TRUE, 10).count("▀") >= 10
