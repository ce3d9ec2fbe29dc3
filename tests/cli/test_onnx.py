"""ONNX files in every command that needs scores alone, and in those that need a module."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="the extra visx[onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra visx[onnx] is not installed")

from onnx_files import write

RISE = ("-m", "rise", "-p", "rise.masks=12", "-p", "rise.cells=4")
HALF = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")


@pytest.fixture(autouse=True)
def file(visx: Any) -> Path:
    write(Path("net.onnx"), nhwc=True, last="Softmax")
    return Path("net.onnx")


def test_maps_and_records(visx: Any) -> None:
    done = visx("explain", "cat.png", "-M", "net.onnx", "-m", "occlusion,lime", *RISE, *HALF, "--json", "-v")
    assert done.code == 0, done.err
    assert [row["method"] for row in done.rows] == ["occlusion", "lime", "rise"]
    row = done.rows[0]
    assert row["weights"]["name"] == "net.onnx" and len(row["weights"]["sha256"]) == 64 and row["device"] == "cpu"
    assert row["outputs"] == {"kind": "probabilities"} and row["preprocessing"]["layout"] == "NHWC"
    assert row["fingerprint"] is None and "net.onnx: onnxruntime" in done.err and "a softmax is inside" in done.err
    again = visx("explain", "cat.png", "-M", "net.onnx", "-m", "occlusion,lime", *RISE, *HALF)
    assert "3 already there" in again.err


def test_another_file_or_preprocessing_is_computed_anew(visx: Any) -> None:
    words = ("explain", "cat.png", "-M", "net.onnx", *RISE)
    assert visx(*words, *HALF).code == 0
    assert "already there" not in visx(*words).err
    write(Path("net.onnx"), last="Sigmoid")
    assert "already there" not in visx(*words, *HALF, "--means", "sigmoid").err


def test_other_commands(visx: Any) -> None:
    assert visx("predict", "cat.png", "-M", "net.onnx").code == 0
    layers = visx("layers", "net.onnx")
    assert layers.code == 0 and "3 probabilities" in layers.err and "onnx2torch" in layers.err
    sheet = visx("compare", "cat.png", "-M", "net.onnx,nets.py:good", *RISE, "-m", "rise", "-o", "sheet.png")
    assert sheet.code == 0 and Path("sheet.png").is_file(), sheet.err
    words = ("cat.png", "-M", "net.onnx", *RISE)
    measured = visx("evaluate", *words, "--metrics", "insertion,deletion,average_drop,road", "-o", "e")
    assert measured.code == 0, measured.err
    moved = visx("sensitivity", *words, "--vary", "seed=0,1", "--metrics", "spearman", "-o", "s")
    assert moved.code == 0, moved.err
    assert visx("explain", *words).code == 0 and visx("report", "visx-out").code == 0


@pytest.mark.parametrize("converts", [True, False])
def test_a_method_that_needs_gradients(visx: Any, converts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if converts:
        pytest.importorskip("onnx2torch", reason="the extra visx[onnx2torch] is not installed")
    else:
        monkeypatch.setitem(sys.modules, "onnx2torch", None)
    alone = visx("explain", "cat.png", "-M", "net.onnx", "-v", "-o", "a")
    assert alone.code == (0 if converts else 4)
    assert ("converted to a torch module" if converts else "pip install 'visx[onnx2torch]'") in alone.err
    both = visx("explain", "cat.png", "-M", "net.onnx", "-m", "gradcam", *RISE, "--json", "-o", "b")
    assert both.code == (0 if converts else 3) and len(both.rows) == 1 + converts
    layer = visx("explain", "cat.png", "-M", "net.onnx", "-m", "gradcam", "-l", "Relu_1", "-o", "c")
    assert layer.code in ((0, 2) if converts else (4,))
    wanted = "gradcam,integrated_gradients,rise" if converts else "all"
    every = visx("explain", "cat.png", "-M", "net.onnx", "-m", wanted, *RISE[2:], "--json", "-o", "d")
    assert every.code == 0 and ("gradcam" in {row["method"] for row in every.rows}) == converts, every.err


def test_a_label_and_the_configuration_beside_it(visx: Any) -> None:
    Path("net.json").write_text('{"labels": ["ant", "bee", "cat"], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}')
    done = visx("explain", "cat.png", "-M", "net.onnx", *RISE, "-t", "bee", "--json")
    assert done.code == 0 and done.rows[0]["label"] == "bee" and "ImageNet" not in done.err
    wrong = visx("explain", "cat.png", "-M", "net.onnx", *RISE, "-t", "dog")
    assert wrong.code == 2


def test_shards_write_the_same_bytes(visx: Any) -> None:
    from PIL import Image

    Path("photos").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{number}.png")
    words = ("explain", "photos", "-M", "net.onnx", *RISE, "--json")
    assert visx(*words, "-o", "a").code == 0
    assert [visx(*words, "-o", "b", "--shard", f"{i}/2").code for i in (1, 2)] == [0, 0]
    maps = sorted(path.relative_to("a") for path in Path("a").rglob("*.npy"))
    assert len(maps) == 4 and all((Path("a") / m).read_bytes() == (Path("b") / m).read_bytes() for m in maps)


def test_mistakes(visx: Any) -> None:
    for words, code, text in (
        (("-M", "none.onnx"), 2, "no such file"),
        (("-M", "net.onnx", "--size", "50"), 2, "takes pictures of 24 x 24 x 3 (NHWC)"),
        (("-M", "net.onnx", "--precision", "bf16"), 2, "bf16"),
        (("-M", "net.onnx", "--head", "nothing"), 2, "unknown head"),
        (("-M", "net.onnx", "-w", "random"), 4, "its own weights"),
        (("-M", "net.onnx", "-w", "net.onnx"), 2, "-M FILE.onnx"),
    ):
        done = visx("explain", "cat.png", *RISE, *words)
        assert done.code == code and text in done.err and "Traceback" not in done.err, (words, done.err)
    Path("cut.onnx").write_bytes(Path("net.onnx").read_bytes()[:300])
    cut = visx("explain", "cat.png", *RISE, "-M", "cut.onnx")
    assert cut.code == 1 and "damaged" in cut.err
