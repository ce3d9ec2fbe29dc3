"""Progress: one bar on a terminal, lines in a log, nothing when quiet; and data never mixed with it."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import NETS
from visx.cli import talk as showing
from visx.cli.talk import Talk

COMMAND = [sys.executable, "-c", "from visx.cli import main; main()"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path


def on_a_terminal(folder: Path, *args: str) -> tuple[int, str, str]:
    """(exit code, standard output from a pipe, standard error from a terminal) of `visx ARGS` in a new process."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([*COMMAND, *args], cwd=folder, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    while True:
        try:
            read = os.read(ours, 65536)
        except OSError:  # a terminal's way to say that the other side has left
            break
        if not read:
            break
        seen += read
    os.close(ours)
    assert process.stdout is not None
    out = process.stdout.read().decode()
    return process.wait(), out, seen.decode()


def test_a_folder_on_a_terminal_has_a_bar_and_its_data_stay_on_standard_output(folder):
    code, out, err = on_a_terminal(folder, "explain", "photos", "-M", "nets.py:good", "--json")
    assert code == 0, err
    assert [json.loads(line)["method"] for line in out.splitlines()] == ["gradcam"] * 2
    assert "explaining" in err and "/2" in err and "gradcam" not in err
    code, out, err = on_a_terminal(folder, "explain", "photos", "-M", "nets.py:good", "-m", "rise", "-q", "--overwrite")
    assert (code, out, err) == (0, "", "")


@pytest.mark.parametrize("method", ["rise", "meaningful_perturbation"])
def test_the_passes_of_one_image_move_the_bar(folder, method, monkeypatch):
    passes = {"rise": "masks=64", "meaningful_perturbation": "iterations=64"}[method]
    args = ["explain", "photos/a.png", "-M", "nets.py:good", "-m", method, "-p", passes, "--batch-size", "1"]
    impatient = "import visx.cli.talk as p; p.PATIENCE = 0; from visx.cli import main; main()"
    monkeypatch.setattr(sys.modules[__name__], "COMMAND", [sys.executable, "-c", impatient])
    code, out, err = on_a_terminal(folder, *args)
    assert code == 0 and method in out, err
    assert "explaining" in err and re.search(r"\d+/64", err), err


class Terminal:
    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...


def test_the_bar_holds_the_images_and_beside_them_the_passes_of_the_present_one(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Talk().progress(3, "explaining") as bar:
        assert isinstance(bar, showing.Bar) and bar.bar is not None
        [task] = bar.bar.tasks
        bar.within(5, 40)
        assert (task.completed, task.total, task.fields["passes"]) == (0, 3, "(5/40 passes)")
        bar.advance()
        assert (task.completed, task.fields["passes"]) == (1, "")


def test_the_bar_of_one_image_holds_its_passes_and_starts_anew_with_the_next_stream(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(showing, "PATIENCE", -1)
    with Talk().progress(1, "explaining") as bar:
        bar.within(35, 35)
        assert bar.bar is None  # what is over needs no bar
        bar.within(5, 40)
        bar.within(6, 40)
        [task] = bar.bar.tasks
        assert (task.completed, task.total) == (6, 40)
        bar.within(1, 300)
        assert (task.completed, task.total) == (1, 300)
        bar.advance()
        assert (task.completed, task.total) == (1, 300)


def test_an_image_that_is_quickly_done_needs_no_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(showing, "PATIENCE", 1e9)
    with Talk().progress(1, "explaining") as bar:
        bar.within(5, 40)
        assert bar.bar is None


def test_a_log_gets_lines_and_nothing_that_moves(capsys, monkeypatch):
    with Talk().progress(3, "explaining") as log:
        log.within(5, 40)
        log.advance()
        assert capsys.readouterr().err == ""
        monkeypatch.setattr(showing, "LOG_SECONDS", 0)
        log.advance()
    assert re.fullmatch(r"2/3 images, [\d.]+ images/s, \d+ s left\n", capsys.readouterr().err)


def test_quiet_and_a_single_image_in_a_log_show_nothing(capsys, monkeypatch):
    monkeypatch.setattr(showing, "LOG_SECONDS", 0)
    for talk, total in ((Talk(quiet=True), 3), (Talk(), 1)):
        with talk.progress(total, "explaining") as nothing:
            nothing.within(5, 40)
            nothing.advance()
    assert capsys.readouterr().err == ""
