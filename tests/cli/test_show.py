"""`visx explain --show`: pictures on a terminal, nothing of them anywhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RUN = "from visx.cli import main; main()"
WORDS = ["explain", "a.png", "-M", "net.py:build", "-o", "out", "--device", "cpu", "--show"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(
        "import visx\nfrom torch import nn\n"
        "def build():\n"
        "    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))\n"
        "    return visx.wrap(net, size=32)\n"
    )
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM_PROGRAM", "KITTY_WINDOW_ID", "COLORTERM")
    }
    return {**kept, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8", **more}


def on_a_terminal(folder: Path, *words: str, **more: str) -> str:
    """What a run sends to a terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", RUN, *words],
        cwd=folder,
        stdout=slave,
        stderr=subprocess.DEVNULL,
        env=environment(**more),
    ) as process:
        os.close(slave)
        received = b""
        while True:
            try:
                piece = os.read(master, 65536)
            except OSError:  # Linux says so when the other end has closed
                break
            if not piece:
                break
            received += piece
    os.close(master)
    assert process.returncode == 0
    return received.decode()


def test_a_terminal_is_shown_the_overlay_under_its_line(folder):
    shown = on_a_terminal(folder, *WORDS)
    assert "gradcam" in shown.splitlines()[0] and shown.count("▀") > 200 and "\033[38;5;" in shown
    again = on_a_terminal(folder, *WORDS, TERM="xterm-kitty")  # found done: shown all the same
    assert "\033_Ga=T" in again and "▀" not in again


def test_a_pipe_and_json_are_shown_none(folder):
    piped = subprocess.run(
        [sys.executable, "-c", RUN, *WORDS], cwd=folder, capture_output=True, text=True, env=environment()
    )
    assert piped.returncode == 0 and "\033" not in piped.stdout and len(piped.stdout.splitlines()) == 1
    assert "\033" not in on_a_terminal(folder, *WORDS, "--json")


def test_there_is_nothing_to_show_without_overlays(folder):
    refused = subprocess.run(
        [sys.executable, "-c", RUN, *WORDS, "--no-overlay"], cwd=folder, capture_output=True, text=True
    )
    assert refused.returncode == 2 and "--show" in refused.stderr
