"""`visx diff` on runs that `visx explain` made: the same, another layer, a flipped map, a fine-tuned checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from in_process import TOY, make_work, visx


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return make_work(tmp_path, "abcd")


def explain(work: Path, out: str, *args: object) -> dict[str, np.ndarray]:
    """A run into `out`; its maps by image."""
    asked = ("-M", f"{work / 'toy.py'}:make", "-m", "gradcam", "-p", "relu=false", "-t", "1", "--no-overlay", "-q")
    assert visx("explain", work / "photos", *asked, "-o", work / out, *args).code == 0
    lines = (work / out / "manifest.jsonl").read_text().splitlines()
    files = {Path(json.loads(line)["image"]).name: json.loads(line)["files"]["npy"] for line in lines}
    return {image: np.load(work / out / name) for image, name in files.items()}


def diff(work: Path, new: str) -> tuple[int, list[dict[str, object]]]:
    done = visx("diff", work / "base", work / new, "--min", "spearman=0.99", "--json")
    return done.code, [json.loads(line) for line in done.out.splitlines()]


def worst(base: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> str:
    return min(base, key=lambda image: spearmanr(base[image].ravel(), new[image].ravel()).statistic)


def test_identical_runs_pass_and_another_layer_fails_worst_first(work: Path) -> None:
    base = explain(work, "base")
    explain(work, "same")
    assert diff(work, "same")[0] == 0
    other = explain(work, "layer", "-l", "1")
    code, rows = diff(work, "layer")
    assert code == 5
    assert rows[0]["image"] == worst(base, other)
    assert all("layer changed: 3 -> 1" in str(row["misses"]) for row in rows)


def test_a_flipped_map_fails_and_is_named(work: Path) -> None:
    explain(work, "base")
    shutil.copytree(work / "base", work / "new")
    (path,) = (work / "new" / "c.png").glob("gradcam*[!e].npy")
    np.save(path, np.load(path)[:, ::-1])
    code, rows = diff(work, "new")
    assert (code, rows[0]["image"]) == (5, "c.png")
    assert [bool(row["misses"]) for row in rows] == [True, False, False, False]


def test_a_fine_tuned_checkpoint_fails_worst_first(work: Path) -> None:
    base = explain(work, "base")
    scope: dict[str, object] = {}
    exec(TOY, scope)
    net: nn.Module = scope["make"]().module  # type: ignore[operator]
    state = net.state_dict()
    random = torch.Generator().manual_seed(2)
    state = {key: value + 0.1 * torch.randn(value.shape, generator=random) for key, value in state.items()}
    torch.save(state, work / "tuned.pth")
    tuned = explain(work, "tuned", "-w", work / "tuned.pth")
    code, rows = diff(work, "tuned")
    assert code == 5
    assert rows[0]["image"] == worst(base, tuned)
    assert "is below 0.99" in str(rows[0]["misses"])
