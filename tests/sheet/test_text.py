"""Lines of a sheet: one line, as short as their room, and drawable with the fonts that are there."""

from __future__ import annotations

import pytest

from visx.errors import ExitCode, VisxError
from visx.sheet import text
from visx.sheet.text import Font, one_line


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("tabby, tabby cat", "tabby, tabby cat"),
        ("two\nlines\tand  more ", "two lines and more"),
        ("a\x00b\u202ec\ud800", "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\N{REPLACEMENT CHARACTER}"),
        ("<script>&\"'", "<script>&\"'"),
        ("猫 كلب", "猫 كلب"),
        ("", ""),
    ],
)
def test_a_label_is_one_line_without_what_cannot_be_seen(given, shown):
    assert one_line(given) == shown


@pytest.mark.parametrize("room", [0, 5, 20, 60, 200])
def test_shortened_lines_fit_and_keep_as_much_as_fits(room):
    font, long = Font(14), "German short-haired pointer"
    short = font.shorten(long, room)
    assert font.width(short) <= room
    if short and short != long:
        kept = len(short) - 1
        assert font.width(long[: kept + 1].rstrip() + "…") > room or long[kept] == " "


def test_wrapped_lines_fit_keep_every_word_and_stop_where_they_must():
    font, note = Font(12), "it has no global average pooling followed by one linear layer"
    lines = font.wrap(note, 120, 10)
    assert " ".join(lines) == note and all(font.width(line) <= 120 for line in lines) and len(lines) > 2
    cut = font.wrap(note, 120, 2)
    assert cut[0] == lines[0] and cut[1].endswith("…") and len(cut) == 2
    assert font.wrap(note, 120, 0) == [] and font.wrap("", 120, 3) == []
    assert all(font.width(line) <= 60 for line in font.wrap("w" * 100, 60, 4))


def test_what_no_font_has_is_drawn_without_its_accents_or_as_a_question_mark(monkeypatch):
    monkeypatch.setattr(text, "_system", lambda name, size: None)
    assert Font(14).drawable("Café 猫")[0] == "Cafe ?"
    assert Font(14).drawable("plain ASCII · …")[0] == "plain ASCII · …"


def test_a_font_of_the_machine_draws_what_the_built_in_one_lacks(monkeypatch):
    class Other:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Other)

        __hash__ = object.__hash__

    other = Other()
    monkeypatch.setattr(text, "_system", lambda name, size: other)
    builtin = text.covers
    monkeypatch.setattr(
        text, "covers", lambda font, line: "\u05d0" not in line if font is other else builtin(font, line)
    )
    assert Font(14).drawable("猫") == ("猫", other)
    assert Font(14).drawable("猫 \u05d0") == ("猫 ?", other)  # the font that has most of it
    assert Font(14).drawable("cat")[1] is not other


def test_a_font_file_that_is_none_is_a_usage_error(tmp_path):
    (tmp_path / "font.ttf").write_bytes(b"no font")
    with pytest.raises(VisxError) as caught:
        Font(14, tmp_path / "font.ttf")
    assert caught.value.code == ExitCode.USAGE
