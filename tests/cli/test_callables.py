"""Callables that score, from a file of one's own: every command that needs scores alone, resuming, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCORES = """
import numpy as np, visx
import torch
def score(x):
    print("scoring")
    quarter = x[:, :, :16, :16].mean((1, 2, 3))
    return np.stack([quarter, x.mean((1, 2, 3)), -quarter], 1)
def wrapped(): return visx.wrap(score, size=32, labels=["corner", "all", "dark"], batch=7)
def bare(): return score
def tensors(): return visx.wrap(lambda x: torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1).softmax(1), size=32)
def late(x):
    if len(x) and x.std() > 0 and x.max() < 2.5: raise RuntimeError("the server is away")
    return score(x)
def failing(): return visx.wrap(late, size=32)
def whole(): return visx.wrap(lambda x: np.zeros((len(x), 3), np.int64), size=32)
class Rows(list): pass
"""
RISE = ("-m", "rise", "-p", "rise.masks=12", "-p", "rise.cells=4")


@pytest.fixture(autouse=True)
def file(visx: Any) -> Path:
    """The file, where the command runs."""
    path = Path("own.py")
    path.write_text(SCORES, encoding="utf-8")
    return path


def test_maps_and_records(visx: Any) -> None:
    done = visx("explain", "cat.png", "-M", "own.py:wrapped", "-m", "occlusion,lime", *RISE, "--json", "-v")
    assert done.code == 0, done.err
    assert [row["method"] for row in done.rows] == ["occlusion", "lime", "rise"] and "scoring" in done.err
    row = done.rows[0]
    assert row["weights"] == {"name": "factory", "sha256": ""} and row["outputs"] == {"kind": "logits"}
    assert row["fingerprint"]["code"] and len(row["fingerprint"]["outputs"]) == 8
    assert "a Python callable of numpy arrays (N, C, H, W)" in done.err
    assert np.load(Path("visx-out") / row["files"]["npy"]).shape == (32, 32)


def test_all_is_every_method_that_needs_scores_alone(visx: Any) -> None:
    done = visx("explain", "cat.png", "-M", "own.py:tensors", "-m", "all", "-p", "rise.masks=8", "--json")
    assert done.code == 0, done.err
    assert {"occlusion", "lime", "rise"} <= {row["method"] for row in done.rows}
    assert "gradcam" not in {row["method"] for row in done.rows}


def test_what_needs_gradients_is_refused_with_what_fits(visx: Any) -> None:
    done = visx("explain", "cat.png", "-M", "own.py:wrapped")
    assert done.code == 4 and "it only gives scores" in done.err and "rise" in done.err
    some = visx("explain", "cat.png", "-M", "own.py:wrapped", "-m", "gradcam", *RISE)
    assert some.code == 3
    layer = visx("explain", "cat.png", "-M", "own.py:wrapped", *RISE, "-l", "conv")
    assert layer.code == 4 and "no torch module" in layer.err


def test_other_commands(visx: Any) -> None:
    predicted = visx("predict", "cat.png", "-M", "own.py:tensors")
    assert predicted.code == 0 and "2 probabilities" in predicted.err
    layers = visx("layers", "own.py:wrapped")
    assert layers.code == 0 and layers.out == "" and "it only gives scores" in layers.err and "3 logits" in layers.err
    sheet = visx("compare", "cat.png", "-M", "own.py:wrapped", *RISE, "-o", "sheet.png")
    assert sheet.code == 0 and Path("sheet.png").is_file(), sheet.err
    measured = visx("evaluate", "cat.png", "-M", "own.py:wrapped", *RISE, "--metrics", "insertion,deletion", "-o", "e")
    assert measured.code == 0, measured.err
    random = visx("evaluate", "cat.png", "-M", "own.py:wrapped", *RISE, "--metrics", "randomization", "-o", "e")
    assert random.code != 0 and "cannot be made random" in random.err
    moved = visx(
        "sensitivity",
        "cat.png",
        "-M",
        "own.py:wrapped",
        *RISE,
        "--vary",
        "seed=0,1",
        "--metrics",
        "spearman",
        "-o",
        "s",
    )
    assert moved.code == 0, moved.err


def test_a_run_is_resumed_unless_the_file_was_edited(visx: Any, file: Path) -> None:
    words = ("explain", "cat.png", "-M", "own.py:wrapped", *RISE, "--json")
    first, again = visx(*words), visx(*words)
    assert first.code == again.code == 0 and "1 already there" in again.err
    assert first.rows == again.rows
    file.write_text(SCORES.replace("return np.stack([quarter,", "return np.stack([2 * quarter,"), encoding="utf-8")
    edited = visx(*words)
    assert edited.code == 0 and "already there" not in edited.err
    assert edited.rows[0]["files"] != first.rows[0]["files"]


def test_what_it_reads_elsewhere_counts_by_its_outputs(visx: Any, file: Path) -> None:
    file.write_text(
        SCORES.replace("return np.stack([quarter,", "return float(open('scale').read()) * np.stack([quarter,")
    )
    words = ("explain", "cat.png", "-M", "own.py:wrapped", *RISE)
    Path("scale").write_text("1")
    assert "already there" not in visx(*words).err and "1 already there" in visx(*words).err
    Path("scale").write_text("3")
    assert "already there" not in visx(*words).err


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("own.py:bare",), 2, "say it by --size"),
        (("own.py:bare", "--size", "32"), 0, ""),
        (("own.py:score",), 2, "visx.wrap(score, size=224)"),
        (("own.py:failing",), 1, "RuntimeError: the server is away"),
        (("own.py:whole",), 4, "int64"),
        (("own.py:wrapped", "-w", "random"), 4, "no weights"),
        (("own.py:wrapped", "--precision", "fp16"), 2, "fp16"),
    ],
)
def test_mistakes(visx: Any, words: tuple[str, ...], code: int, text: str) -> None:
    done = visx("explain", "cat.png", *RISE, "-M", *words)
    assert done.code == code and text in done.err and "Traceback" not in done.err, done.err


def test_shards_write_the_same_bytes(visx: Any) -> None:
    from PIL import Image

    Path("photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{number}.png")
    words = ("explain", "photos", "-M", "own.py:wrapped", *RISE, "--json")
    assert visx(*words, "-o", "a").code == 0
    assert [visx(*words, "-o", "b", "--shard", f"{i}/2").code for i in (1, 2)] == [0, 0]
    maps = sorted(path.relative_to("a") for path in Path("a").rglob("*.npy"))
    assert len(maps) == 3 and all((Path("a") / m).read_bytes() == (Path("b") / m).read_bytes() for m in maps)
    lines = [json.loads(line) for line in Path("a/manifest.jsonl").read_text().splitlines()]
    assert {line["model"] for line in lines} == {"own.py:wrapped"}
