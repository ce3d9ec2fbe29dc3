"""`visx methods`, `models`, `layers` and `predict`, for people and for scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from visx.methods import NAMES


def test_methods_table_is_legible_at_80_columns(visx: Any) -> None:
    run = visx("methods")
    assert run.code == 0
    assert max(map(len, run.out.splitlines())) <= 80
    assert "…" not in run.out
    assert all(word in run.out for word in (*NAMES, "spread=0.15", "arXiv:1610.02391"))


def test_methods_in_json_and_one_in_full(visx: Any) -> None:
    rows = visx("methods", "--json").rows
    assert [row["name"] for row in rows] == list(NAMES)
    assert visx("methods", "gradcam", "--json").rows[0]["params"][0]["name"] == "relu"
    assert "arXiv:1610.02391" in visx("methods", "gradcam").out
    assert visx("methods", "-q").out.split() == list(NAMES)
    run = visx("methods", "gradcm")
    assert run.code == 2
    assert "gradcam" in run.err


def test_models(visx: Any) -> None:
    assert [row["name"] for row in visx("models", "efficientnet_lite0", "--json").rows] == ["efficientnet_lite0"]
    assert "timm/resnet18" in visx("models", "timm/resnet18", "-q").out.split()
    assert visx("models", "resnet*", "-q").out.split()[0] == "resnet101"
    assert visx("models", "no such thing").code == 2


def test_layers(visx: Any) -> None:
    rows = visx("layers", "nets.py:good", "--json").rows
    assert {row["name"]: row["shape"] for row in rows} == {"conv": [8, 32, 32], "relu": [8, 32, 32], "head": [5]}
    assert [row["name"] for row in rows if row["default"]] == ["relu"]
    assert "* relu" in visx("layers", "nets.py:good").out
    assert "head" not in visx("layers", "nets.py:good", "--spatial").out
    assert visx("layers", "nets.py:pair").code == 4


def test_predict(visx: Any) -> None:
    Path("text.jpg").write_text("no picture")
    run = visx("predict", "cat.png", "-M", "nets.py:good", "--json", "-k", "99")
    guesses = run.rows[0]["predictions"]
    assert abs(sum(g["probability"] for g in guesses) - 1) < 1e-5
    assert sorted(g["target"] for g in guesses) == [0, 1, 2, 3, 4]
    run = visx("predict", "cat.png", "text.jpg", "-M", "nets.py:good", "--json")
    assert run.code == 3
    assert [("error" in row) for row in run.rows] == [False, True]
    assert visx("predict", "text.jpg", "-M", "nets.py:good").code == 1
    assert "ant" in visx("predict", "cat.png", "-M", "nets.py:good").out
