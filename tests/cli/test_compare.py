"""`visx compare`: one sheet a call, by its file's ending; `--json` the records; mistakes are told before computing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visx.cli.app import app
from visx.errors import ExitCode, VisxError

FACTORY = """
import torch, visx
from torch import nn
def build(act=nn.ReLU):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    return visx.wrap(net, size=32, labels=["cat", "dog", "cup", "car"])
def gelu():
    return build(nn.GELU)
"""


@pytest.fixture
def compare(tmp_path, monkeypatch, capsys):
    """`compare(*words)` in a folder with a picture and a model; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(FACTORY)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save("cat.png")

    def run(*words: str, model: str = "net.py:build") -> tuple[Any, str, str]:
        code = app(["compare", *words, "-M", model, "--device", "cpu"], standalone_mode=False)
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("name", "magic"), [("a.png", b"\x89PNG"), ("a.jpg", b"\xff\xd8"), ("a.svg", b"<svg"), ("deep/er/a.pdf", b"%PDF")]
)
def test_the_ending_decides_the_file(compare, name, magic):
    code, out, _ = compare("cat.png", "-m", "gradcam", "-o", name)
    assert code == 0 and out.strip() == str(Path(name))
    assert Path(name).read_bytes().startswith(magic)


def test_a_sheet_has_a_cell_a_method_a_model_and_a_target(compare):
    width = {}
    for methods in ("gradcam", "gradcam,cam,backprop"):
        compare("cat.png", "-m", methods, "-t", "top2", "--cell", "100", "-q")
        width[methods] = Image.open("visx-compare.png").size
    assert width["gradcam,cam,backprop"][0] - width["gradcam"][0] >= 200
    compare("cat.png", "-m", "gradcam", "-t", "top2", "--cell", "100", model="net.py:build,net.py:gelu")
    assert Image.open("visx-compare.png").height > 1.8 * width["gradcam"][1]
    compare("cat.png", "-m", "gradcam", "-t", "top2", "--cell", "100", "--columns", "1")
    assert Image.open("visx-compare.png").width < 140


def test_records_are_those_of_explain_and_say_nothing_else_on_stdout(compare):
    code, out, _ = compare("cat.png", "-m", "gradcam,cam", "-t", "top2", "--json")
    records = [json.loads(line) for line in out.splitlines()]
    assert (
        code == 0 and [(r["method"], r["image"]) for r in records] == [("gradcam", "cat.png"), ("cam", "cat.png")] * 2
    )
    assert {"schema_version", "layer", "target", "label", "probability", "min", "max", "seconds"} <= set(records[0])


def test_without_times_the_same_call_writes_the_same_bytes(compare):
    written = []
    for _ in range(2):
        compare("cat.png", "-m", "gradcam,backprop", "--no-times", "--theme", "dark", "--shared-scale", "--cut", "-q")
        written.append(Path("visx-compare.png").read_bytes())
    assert written[0] == written[1]


def test_an_svg_names_what_it_shows(compare):
    compare("cat.png", "-m", "gradcam", "-t", "cup", "-o", "a.svg", "-q")
    text = Path("a.svg").read_text()
    assert ">cup<" in text and ">Grad-CAM<" in text and ">cat.png<" in text and "class 2" in text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["none.png"], ExitCode.USAGE),
        (["."], ExitCode.USAGE),
        (["cat.png", "-o", "sheet.gif"], ExitCode.USAGE),
        (["cat.png", "-m", "gradcan"], ExitCode.USAGE),
        (["cat.png", "--colormap", "rainbow"], ExitCode.USAGE),
        (["cat.png", "-p", "steps=3"], ExitCode.USAGE),
        (["cat.png", "-t", "unicorn"], ExitCode.USAGE),
        (["net.py"], ExitCode.FAILURE),
    ],
)
def test_mistakes_have_their_exit_codes_and_write_nothing(compare, words, code):
    with pytest.raises(VisxError) as caught:
        compare(*words)
    assert caught.value.code == code and not Path("visx-compare.png").exists()


def test_a_method_that_does_not_fit_is_refused_and_all_means_those_that_do(compare):
    with pytest.raises(VisxError) as caught:
        compare("cat.png", "-m", "guided_backprop", model="net.py:gelu")
    assert caught.value.code == ExitCode.UNSUPPORTED
    _, out, _ = compare("cat.png", "-m", "guided_backprop,gradcam", "--json", model="net.py:gelu,net.py:build")
    assert sorted(json.loads(line)["method"] for line in out.splitlines()) == ["gradcam", "gradcam", "guided_backprop"]
