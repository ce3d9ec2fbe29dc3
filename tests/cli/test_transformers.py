"""A folder of transformers through the commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the extra hf is not installed")

from in_process import make_work, visx
from transformers_folders import network, save

NAMES = ["ant", "bee", "cat", "dog", "elk"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_work(tmp_path, "ab")
    save(network("vit", id2label=dict(enumerate(NAMES))), tmp_path / "runs" / "vit")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder_is_explained_and_resumed(work: Path) -> None:
    command = [
        "explain",
        "photos",
        "-M",
        "hf/runs/vit",
        "-m",
        "gradcam,occlusion",
        "-t",
        "bee",
        "-p",
        "occlusion.patch=8",
    ]
    done = visx(*command, "--json")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert len(lines) == 4 and {line["label"] for line in lines} == {"bee"}
    assert {str(line["layer"]).rpartition(".")[2] for line in lines} == {"layernorm_before", "None"}
    assert {line["weights"]["name"] for line in lines} == {"model.safetensors"}
    assert lines[0]["outputs"] == {"kind": "logits", "head": "logits"}
    before = {path: path.stat().st_mtime_ns for path in Path("visx-out").rglob("*.npy")}
    assert len(before) == 8 and all(np.load(path).any() for path in before)  # a map each, and its coarse one
    assert visx(*command).code == 0
    assert {path: path.stat().st_mtime_ns for path in Path("visx-out").rglob("*.npy")} == before
    assert visx(*command, "--size", 32, "--mean", "0.4,0.4,0.4").code == 0  # another preprocessing is another result
    assert len(list(Path("visx-out").rglob("*.npy"))) == 16


def test_layers_and_predictions(work: Path) -> None:
    done = visx("layers", "hf/runs/vit", "--spatial")
    assert (
        done.code == 0
        and re.search(r"^\* vit\..*\.1\.layernorm_before ", done.out, re.MULTILINE)
        and "32 x 4 x 4" in done.out
    )
    rows = [json.loads(line) for line in visx("predict", "photos", "-M", "hf/runs/vit", "--json").out.splitlines()]
    assert len(rows) == 2 and {p["label"] for row in rows for p in row["predictions"]} == set(NAMES)


def test_metrics(work: Path) -> None:
    done = visx(
        "evaluate",
        "photos/a.png",
        "-M",
        "hf/runs/vit",
        "-m",
        "gradcam",
        "--metrics",
        "deletion,randomization",
        "--json",
    )
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("edit", "code", "words"),
    [
        (lambda folder: (folder / "preprocessor_config.json").unlink(), 2, "has no preprocessor_config.json"),
        (lambda folder: (folder / "config.json").unlink(), 2, "has no config.json"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 40), 1, "is damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "detr"}'), 4, "'detr'"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(edit: object, code: int, words: str, work: Path) -> None:
    edit(work / "runs" / "vit")  # type: ignore[operator]
    done = visx("explain", "photos", "-M", "hf/runs/vit")
    assert done.code == code and words in done.err and "Traceback" not in done.err
