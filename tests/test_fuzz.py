"""A slice of `tests/fuzz.py` (20,000 inputs are run by hand), and the harness itself: it can fail."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import fuzz
from visx.errors import VisxError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    figures = fuzz.fuzz(300, 1, tmp_path)
    assert [(name, text) for name, text, _ in figures.findings] == []
    assert set(figures.read) == {loader.name for loader in fuzz.loaders()}
    assert set(figures.refused) >= {loader.name for loader in fuzz.loaders() if loader.name != "manifest"}
    assert sum((figures.read + figures.refused).values()) == 300


def test_valid_files_are_read(tmp_path: Path) -> None:
    for loader in fuzz.loaders():
        for number, seed in enumerate(loader.seeds):
            if b"%!PS" not in seed[:4]:  # EPS is there to be refused
                loader.check(seed, tmp_path)
            else:
                with pytest.raises(VisxError, match="EPS"):
                    loader.check(seed, tmp_path)
            assert number < 64


def test_findings_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(data: bytes, folder: Path) -> None:
        raise KeyError("method")

    def hang(data: bytes, folder: Path) -> None:
        try:
            time.sleep(9)
        except Exception:  # what a loader that swallows everything would do
            raise VisxError("damaged") from None

    def chatter(data: bytes, folder: Path) -> None:
        raise VisxError("two\nlines")

    monkeypatch.setattr(fuzz, "ALLOWED", 0.05)
    loaders = [fuzz.Loader(check.__name__, [b"seed"], check) for check in (crash, hang, chatter)]
    monkeypatch.setattr(fuzz, "loaders", lambda: loaders)
    findings = fuzz.fuzz(6, 0, tmp_path).findings
    assert {(name, text.split(":")[0]) for name, text, _ in findings} == {
        ("crash", "KeyError"),
        ("hang", "Hang"),
        ("chatter", "a message of several lines"),
    }
