"""Targets: top classes, indices, labels and tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from oracles import columns_of
from visx.errors import VisxError
from visx.targets.classes import find_class, parse_target

LABELS = ("tiger cat", "tabby", "Cat", "polecat", "dog")


@pytest.mark.parametrize(("text", "index"), [("cat", 2), ("CAT", 2), ("tiger", 0), (" tab ", 1), ("3", 3), ("pole", 3)])
def test_a_class_by_label_part_or_index(text: str, index: int) -> None:
    assert find_class(text, LABELS, 5) == index


@pytest.mark.parametrize(
    ("text", "message"),
    [("at", r"fits 3 labels.*tiger cat \(0\), Cat \(2\), polecat \(3\)"), ("5", "0 to 4"), ("-1", "out of range"), ("dgo", "dog"), ("", "unknown label")],
)  # fmt: skip
def test_what_is_no_class(text: str, message: str) -> None:
    with pytest.raises(VisxError) as error:
        find_class(text, LABELS, 5)
    assert error.value.code == 2

    assert re.search(message, str(error.value))


def test_labels_that_are_not_known() -> None:
    with pytest.raises(VisxError, match="--labels FILE"):
        find_class("cat", None, 5)
    for text in ("top0", "top6"):
        with pytest.raises(VisxError, match="top1 to top5"):
            parse_target(text, LABELS, 5)


def test_top_classes_in_order_and_fixed_ones() -> None:
    logits = torch.tensor([[0.0, 3, 1, 2, -1], [5, 4, 3, 2, 1]])
    assert columns_of([parse_target("top3", LABELS, 5)] * 2, logits) == [[1, 3, 2], [0, 1, 2]]
    assert columns_of([parse_target("dog", LABELS, 5)] * 2, logits) == [[4], [4]]


def test_a_table(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text("\ufeffimage,target\n./a/x.png,dog\nx.png,1\nb/x.png,tiger\n\n", encoding="utf-8")
    spec = parse_target(str(file), LABELS, 5)
    found = {path: spec.for_image(path, LABELS, 5).index for path in ("a/x.png", "in/a/x.png", "b/x.png", "c/x.png")}
    assert found == {"a/x.png": 4, "in/a/x.png": 4, "b/x.png": 0, "c/x.png": 1}
    with pytest.raises(VisxError, match="no target for this image"):
        spec.for_image("y.png", LABELS, 5)
    file.write_text("x.png,7\n")
    with pytest.raises(VisxError, match="out of range"):
        parse_target(str(file), LABELS, 5).for_image("x.png", LABELS, 5)
    for text in ("", "x.png\n", "image,target\n"):
        file.write_text(text)
        with pytest.raises(VisxError, match="image,target"):
            parse_target(str(file), LABELS, 5)
