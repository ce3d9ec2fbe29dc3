"""Artifacts: whole files or none, a journal that survives tearing, JSON that every parser reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from visx.artifacts import Manifest, make_folder, to_json, write_whole
from visx.errors import VisxError


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


def test_only_dead_writers_files_are_cleared(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [tmp_path / f".visx-tmp-{os.getpid()}-00", tmp_path / f".visx-tmp-{os.getppid()}-00", tmp_path / "x.png"]
    for path in (*kept, tmp_path / f".visx-tmp-{dead.pid}-00"):
        path.touch()
    make_folder(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_the_journal_mends_itself(tmp_path: Path) -> None:
    good, error = b'{"a": 1}\n', b'{"error": {"code": 1}}\n'
    journal = tmp_path / "manifest.jsonl"
    journal.write_bytes(good + error + b"\xff\n" + good + b'{"torn": ')
    manifest = Manifest(tmp_path)
    manifest.open()
    manifest.append('{"b": 2}')
    manifest.close()
    assert journal.read_bytes() == good + good + b'{"b": 2}\n'
    assert list(manifest.records()) == [{"a": 1}, {"a": 1}, {"b": 2}]


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for path in (tmp_path / "f", tmp_path / "f" / "x"):
        with pytest.raises(VisxError, match="a file is in the way"):
            make_folder(path)
    (tmp_path / "manifest.jsonl").mkdir()
    with pytest.raises(VisxError, match="directory"):
        Manifest(tmp_path).open()
