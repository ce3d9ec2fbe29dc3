"""Right and wrong calls of every command: the exit code, where the words go, and that a wrong call writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

GOOD = "-M nets.py:good"
VARY = f"sensitivity cat.png {GOOD} --vary relu=true,false"
WRONG = [
    ("evaluate", "Missing argument 'INPUT...'"),
    ("compare", "Missing argument 'INPUT'"),
    ("diff a", "Missing argument 'NEW'"),
    ("report", "Missing argument 'DIR'"),
    ("report gone", "gone"),
    ("diff gone gone", "gone"),
    ("diff cat.png cat.png --min ssim", "--min 'ssim' is not METRIC=VALUE"),
    ("diff cat.png cat.png --min insertion=1", "diff cannot use the metric insertion"),
    ("diff cat.png cat.png -p window=7", "--param 'window=7' is no metric's"),
    ("layers nets.py:gone", "unknown factory in nets.py 'gone'"),
    ("layers nosuch", "unknown model 'nosuch'"),
    ("layers nets.py:good --means wrong", "unknown meaning 'wrong'"),
    ("layers nets.py:good --size a", "--size 'a' is not numbers separated by commas"),
    (f"predict cat.png {GOOD} -k 0", "greater than or equal to 1"),
    (f"predict gone.png {GOOD}", "no such file or directory: gone.png"),
    (f"predict empty {GOOD}", "no images in empty"),
    (f"predict - {GOOD}", "no paths on standard input"),
    (f"predict cat.png {GOOD} --batch-size x", "--batch-size 'x' is not a number from 1 up, or auto"),
    (f"predict cat.png {GOOD} --device meta", "unknown device 'meta'"),
    (f"predict cat.png {GOOD} --device cuda:99", "device cuda:99 is not there"),
    (f"predict cat.png {GOOD} --head 3", "--head 3: the model returns one tensor"),
    (f"predict cat.png {GOOD} --labels gone", "cannot read the labels gone"),
    (f"predict cat.png {GOOD} -w gone.pth", "no such checkpoint: gone.pth"),
    (f"evaluate cat.png {GOOD} --min insertion", "--min 'insertion' is not METRIC=VALUE"),
    (f"evaluate cat.png {GOOD} --max insertion=x", "--max 'insertion=x' is not METRIC=VALUE"),
    (f"evaluate cat.png {GOOD} --metrics deletion --min insertion=0", "insertion: it is not measured"),
    (f"evaluate cat.png {GOOD} -p insertion.steps=0", "insertion: steps='0'"),
    (f"evaluate cat.png {GOOD} -p road.steps=3", "unknown method in --param 'road.steps=3'"),
    (f"evaluate cat.png {GOOD} --metrics energy", "energy needs --boxes"),
    (f"evaluate cat.png {GOOD} -t 9", "target 9 is out of range"),
    (f"evaluate cat.png {GOOD} -l con", "unknown layer 'con'"),
    (f"sensitivity cat.png {GOOD}", "nothing varies"),
    (f"sensitivity cat.png {GOOD} --preset sam-lime --vary seed=0..1", "brings its own --method and --vary"),
    (f"sensitivity cat.png {GOOD} -m all --vary seed=0..1", "takes methods by name, each once"),
    (f"{VARY} -p nope=3", "unknown parameter of gradcam 'nope'"),
    (f"{VARY} -p ssim.windw=3", "unknown parameter of ssim 'windw'"),
    (f"{VARY} -l con", "unknown layer 'con'"),
    (f"{VARY} -t 9", "target 9 is out of range"),
    (f"compare empty {GOOD}", "empty is a directory: a sheet shows one image"),
    (f"compare gone.png {GOOD}", "no such file: gone.png"),
    (f"compare cat.png {GOOD} -o a.gif", "unknown ending of a sheet '.gif'"),
    (f"compare cat.png {GOOD} --colormap jett", "unknown colormap 'jett'"),
    (f"compare cat.png {GOOD} -m gradcam,smoothgrad -p samples=0", "smoothgrad: samples='0'"),
    (f"compare cat.png {GOOD} -t at", "target 'at' fits 2 labels"),
]  # fmt: skip


def files() -> set[str]:
    return {str(path) for path in Path().rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[call for call, _ in WRONG])
def test_wrong_calls(visx: Any, call: str, message: str) -> None:
    Path("empty").mkdir()
    before = files()
    run = visx(*call.split())
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("visx: ") and len(run.err.splitlines()) <= 2
    assert message in run.err
    assert files() == before


@pytest.mark.parametrize(
    ("call", "code", "out", "err"),
    [
        ("layers nets.py:good -q", 0, "conv\nrelu\nhead\n", ""),
        ("layers nets.py:pair --head 0", 0, "* relu", "output: 5 logits, one a class (--head 0)"),
        ("layers nets.py:pair", 4, "", "the model returns a tuple"),
        (f"predict cat.png {GOOD} -k 2", 0, "cat.png\n", ""),
        (f"predict cat.png {GOOD} --labels names.json", 0, "e f", ""),
        (f"predict cat.png text.jpg {GOOD}", 3, "cat.png\n", "visx: text.jpg: not an image"),
        ("predict cat.png -M nets.py:pair --head 1", 0, "cat.png\n", "nets.py:pair gives 3 logits, one a class"),
        (f"evaluate cat.png {GOOD} --metrics deletion -p deletion.steps=2 -q", 0, "method   deletion (-)", ""),
        (f"{VARY} --metrics ssim -q", 0, "nets.py:good  gradcam  relu=true,false\npair", ""),
        (f"{VARY} --metrics ssim --json", 0, '{"model": "nets.py:good"', "written to visx-sensitivity/sensitivity.json"),
        (f"compare cat.png {GOOD} -q", 0, "", ""),
        (f"compare cat.png {GOOD} -o a.svg", 0, "a.svg\n", ""),
        (f"compare text.jpg {GOOD}", 1, "", "visx: not an image that Pillow can read"),
        (f"explain cat.png {GOOD} --shard 2/3", 0, "", "shard 2/3 has none of the 1 images"),
    ],
)  # fmt: skip
def test_what_goes_where(visx: Any, call: str, code: int, out: str, err: str) -> None:
    Path("text.jpg").write_text("no picture")
    Path("names.json").write_text('["a", "b", "c", "d", "e f"]')
    run = visx(*call.split())
    assert run.code == code
    assert out in run.out and err in run.err
    assert bool(run.out) is bool(out) and bool(run.err) is bool(err)
