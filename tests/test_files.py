"""Artifacts: whole files or none, JSON that every parser reads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from visx.errors import VisxError
from visx.files import make_folder, to_json, write_whole


def test_json_has_no_nan_and_no_bytes_of_its_own() -> None:
    line = to_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": -float("inf")}, "name": "é\udcff\n"})
    assert json.loads(line) == {"a": None, "b": [None, 1.5], "c": {"d": None}, "name": "é\udcff\n"}
    assert line.isascii()
    assert "\n" not in line


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.npy"
    write_whole(path, b"old")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(VisxError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_a_dead_run_left_are_cleared(tmp_path: Path) -> None:
    kept = [tmp_path / f".visx-tmp-{os.getpid()}-00", tmp_path / "x.png"]
    for path in (*kept, tmp_path / f".visx-tmp-{os.getpid()}0-00", tmp_path / ".visx-tmp-1-00"):
        path.touch()
    make_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for path in (tmp_path / "f", tmp_path / "f" / "x"):
        with pytest.raises(VisxError, match="a file is in the way"):
            make_folder(path)
