"""Standard output is visx's own: what models, factories and libraries print goes to standard error."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import visx.cli
from visx.cli import output

TALKING = """
import ctypes, logging, os, subprocess, sys
import torch, visx
from torch import nn
print("told at import")
class Net(nn.Module):
    def __init__(self, tell=lambda: None):
        super().__init__()
        self.conv, self.relu, self.head, self.tell = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 3), tell
    def forward(self, x):
        self.tell()
        return self.head(self.relu(self.conv(x)).mean((2, 3)))
def wrapped(tell): return visx.wrap(Net(tell), size=24)
def printing():
    print("told by the factory")
    return wrapped(lambda: print("told by forward"))
def writing(): return wrapped(lambda: sys.stdout.write("told by forward\\n"))
def logs():
    logger = logging.getLogger("net")
    logger.addHandler(logging.StreamHandler(sys.stdout))
    return wrapped(lambda: logger.warning("told by forward"))
def descriptor(): return wrapped(lambda: os.write(1, b"told by forward\\n"))
def original(): return wrapped(lambda: print("told by forward", file=sys.__stdout__, flush=True))
def c():
    libc = ctypes.CDLL(None)
    return wrapped(lambda: (libc.puts(b"told by forward"), libc.fflush(None)))
def child(): return wrapped(lambda: subprocess.run([sys.executable, "-c", "print('told by forward')"]))
"""
VISX = [sys.executable, "-c", "from visx.cli import main; main()"]
COMMANDS = {
    "explain": ("explain", "cat.png", "-m", "gradcam,rise", "-p", "rise.masks=2", "-M"),
    "predict": ("predict", "cat.png", "-k", "2", "-M"),
    "layers": ("layers",),
    "evaluate": ("evaluate", "cat.png", "-m", "gradcam", "--metrics", "deletion", "-M"),
    "sensitivity": ("sensitivity", "cat.png", "-m", "gradcam", "--vary", "seed=0,1", "--metrics", "spearman", "-M"),
    "compare": ("compare", "cat.png", "-m", "gradcam", "-o", "sheet.png", "-M"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(TALKING)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    return tmp_path


def json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("command", COMMANDS)
def test_json_stays_json_lines(command: str, folder: Path, visx: Any) -> None:
    (Path.cwd() / "nets.py").write_text(TALKING)
    done = visx(*COMMANDS[command], "nets.py:printing", "--json")
    assert done.code == 0, done.err
    assert json_lines(done.out) and "told" not in done.out
    assert done.err.count("told by the factory") == 1 and "told by forward" in done.err
    assert "told at import" in done.err
    assert sys.stdout is not sys.stderr  # as before


@pytest.mark.parametrize("kind", ["printing", "writing", "logs", "descriptor", "original", "c", "child"])
def test_whatever_way_it_is_printed(kind: str, folder: Path) -> None:
    words = [*VISX, "explain", "cat.png", "-M", f"nets.py:{kind}", "--json"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [record["method"] for record in json_lines(done.stdout)] == ["gradcam"]
    assert "told by forward" in done.stderr and "told at import" in done.stderr


def test_a_reader_that_has_gone_and_a_full_disk_are_told_as_ever(folder: Path) -> None:
    words = [*VISX, "explain", "cat.png", "-M", "nets.py:printing", "--json", "-q"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(words, cwd=folder, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    told = [line for line in done.stderr.splitlines() if not line.startswith("told")]
    assert (done.returncode, told) == (1, [])
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(words, cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True)
        told = [line for line in done.stderr.splitlines() if not line.startswith("told")]
        assert (done.returncode, told) == (1, ["visx: No space left on device"])


def test_output_is_given_back_when_a_command_fails(capfd: pytest.CaptureFixture[str]) -> None:
    @output.owning_output
    def fails() -> None:
        print("of others")
        output.put("of ours")
        raise ValueError

    before = sys.stdout
    with pytest.raises(ValueError):
        fails()
    assert sys.stdout is before
    print("of the caller")
    seen = capfd.readouterr()
    assert (seen.out, seen.err) == ("of ours\nof the caller\n", "of others\n")


def test_the_python_api_leaves_standard_output_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import visx; visx.explain(visx.load_model('nets.py:printing'), 'cat.png')"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert "told by forward" in done.stdout and "told" not in done.stderr


def test_no_command_prints_round_it() -> None:
    """`print` writes to standard error in a command: results are `put`."""
    for path in Path(visx.cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                where = {word.arg for word in node.keywords}
                assert "file" in where or path.name == "app.py", f"{path.name}:{node.lineno}"
