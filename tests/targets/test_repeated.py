"""Several targets in one run: one map each, no class twice, found again one by one; tables of targets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import visx
from in_process import make_work
from in_process import visx as command
from nets import Wrapped, seeded
from oracles import columns_of
from visx.errors import VisxError
from visx.targets.classes import parse_target, parse_targets, together

LABELS = ("tiger cat", "tabby", "Cat", "polecat", "dog")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_work(tmp_path, "abc")


def explain(*args: str) -> Any:
    return command("explain", "photos", "-M", "toy.py:make", "-m", "backprop", "--json", *args)


def told(run: Any) -> list[tuple[str, int]]:
    records = map(json.loads, run.out.splitlines())
    return [(Path(record["image"]).name, record["target"]) for record in records]


def tops(count: int = 1) -> dict[str, list[int]]:
    rows = map(json.loads, command("predict", "photos", "-M", "toy.py:make", "--json").out.splitlines())
    return {Path(row["image"]).name: [p["target"] for p in row["predictions"][:count]] for row in rows}


def test_specs_as_one() -> None:
    def parsed(*texts: str) -> list[tuple[int, int | None]]:
        return [(part.top, part.index) for part in parse_targets(texts, LABELS, 5).each]

    assert parsed() == parsed("top1") == [(1, None)]
    assert parsed("dog", "tabby", "4", "dog") == [(0, 4), (0, 1)], "each class once"
    assert parsed("tabby", "top1", "top3") == [(3, None), (0, 1)], "the largest top first"
    logits = torch.tensor([[0.0, 3, 1, 2, -1], [5, 4, 3, 2, 1]])
    both = parse_targets(["dog", "top2"], LABELS, 5)
    assert columns_of([both] * 2, logits) == [[1, 3, 4], [0, 1, 4]]
    short = together([parse_target("2", LABELS, 5)])
    assert columns_of([both, short], logits) == [[1, 3, 4], [2, 2, 2]], "an image may have fewer"


def test_one_map_each_and_none_twice(work: Path) -> None:
    run = explain("-t", "top2", "-t", "3", "-t", "0")
    assert run.code == 0
    want = {(name, target) for name, top in tops(2).items() for target in (*top, 3, 0)}
    assert sorted(told(run)) == sorted(want)
    records = list(map(json.loads, run.out.splitlines()))
    for record in records:
        assert Path("visx-out", record["files"]["npy"]).is_file()
        assert record["rank"] == 0 or record["targets"] == 2
    assert len({record["files"]["npy"] for record in records}) == len(records)


def test_each_is_found_again(work: Path) -> None:
    first = explain("-t", "1")
    stamp = {path: path.stat().st_mtime_ns for path in Path("visx-out").rglob("*.npy")}
    run = explain("-t", "1", "-t", "2")
    assert sorted(told(run)) == sorted([*told(first), *((name, 2) for name, _ in told(first))])
    assert all(path.stat().st_mtime_ns == when for path, when in stamp.items())
    count = len(Path("visx-out", "manifest.jsonl").read_text().splitlines())
    again = explain("-t", "2", "-t", "1", "-t", "top1")
    assert set(told(again)) >= set(told(run))
    assert len(Path("visx-out", "manifest.jsonl").read_text().splitlines()) == count + 3, "the top class alone is new"
    assert "already there" in explain("-t", "2", "-t", "1", "-t", "top1").err
    assert len(Path("visx-out", "manifest.jsonl").read_text().splitlines()) == count + 3


def test_a_class_that_is_the_top_one_too_is_found_once(work: Path) -> None:
    asked = "-t", "top1", "-t", str(tops()["a.png"][0])
    first, size = explain(*asked), Path("visx-out", "manifest.jsonl").stat().st_size
    assert len(set(told(first))) == len(told(first)) < 6, "of a.png one map"
    assert sorted(told(explain(*asked))) == sorted(told(first))
    assert Path("visx-out", "manifest.jsonl").stat().st_size == size, "nothing is computed again"


def test_alone_and_together_write_the_same_bytes(work: Path) -> None:
    explain("-t", "1", "-t", "2", "-t", "top1", "-o", "together")
    for text in ("1", "2", "top1"):
        explain("-t", text, "-o", "alone")
    files = {p.relative_to("alone"): p.read_bytes() for p in Path("alone").rglob("*.npy")}
    assert files == {p.relative_to("together"): p.read_bytes() for p in Path("together").rglob("*.npy")}


def test_a_table_beside_a_class_and_with_other_separators(work: Path) -> None:
    top = tops()
    Path("t.csv").write_text("image,target\nphotos\\a.png,3\n.\\photos\\b.png,1\nc.png,3\n")
    run = explain("-t", "t.csv", "-t", "3")
    assert sorted(told(run)) == [("a.png", 3), ("b.png", 1), ("b.png", 3), ("c.png", 3)]
    run = explain("-t", "t.csv", "-t", "top1", "-o", "two")
    want = {("a.png", 3), ("b.png", 1), ("c.png", 3), *((name, ids[0]) for name, ids in top.items())}
    assert sorted(told(run)) == sorted(want)


@pytest.mark.parametrize("path", ["in\\a\\x.png", "in/a/x.png", "C:\\in\\a\\x.png"])
def test_separators_of_either_system(path: str, tmp_path: Path) -> None:
    for text, want in (("a\\x.png,dog", 4), ("a/x.png,dog", 4), ("x.png,1", 1)):
        (tmp_path / "t.csv").write_text(text + "\n")
        assert parse_target(str(tmp_path / "t.csv"), LABELS, 5).for_image(path, LABELS, 5).index == want


def test_passes_are_shared(work: Path) -> None:
    passed: list[int] = []

    def answer(z: torch.Tensor) -> torch.Tensor:
        passed.append(len(z))
        return z

    model = visx.wrap(seeded(lambda: Wrapped(answer), dtype=torch.float32), size=16)
    visx.explain(model, "photos/a.png", "backprop")  # what is looked at once a model

    def passes(method: str, target: Any, **params: Any) -> int:
        passed.clear()
        result = visx.explain(model, "photos/a.png", method, target=target, **params)
        several = result if isinstance(result, list) else [result]
        assert len(several) == len({r.target for r in several})
        return sum(passed)

    passes("occlusion", 0, patch=8, stride=8)  # ... and learnt at the first one
    assert passes("backprop", [0, 1, "top1", 0]) == passes("backprop", 0)
    assert passes("occlusion", [0, 1], patch=8, stride=8) == passes("occlusion", 0, patch=8, stride=8)


def test_in_python_in_the_order_asked_for_and_alike(work: Path) -> None:
    model = visx.load_model("toy.py:make")
    both = visx.explain(model, ["photos/a.png", "photos/b.png"], "gradcam", target=[2, 0])
    assert [r.target for r in both] == [2, 0, 2, 0]
    alone = visx.explain(model, "photos/b.png", "gradcam", target=0)
    np.testing.assert_allclose(both[3].map, alone.map, atol=1e-5 * alone.map.max())
    with pytest.raises(VisxError, match="out of range") as error:
        visx.explain(model, "photos/a.png", target=["top1", 9])
    assert error.value.code == 2


def test_other_commands(work: Path) -> None:
    assert command("explain", "photos", "-M", "toy.py:make", "-t", "1", "-t", "7").code == 2
    run = command(
        "compare", "photos/a.png", "-M", "toy.py:make", "-m", "backprop,gradcam", "-t", "1", "-t", "0", "--json"
    )
    assert [json.loads(line)["target"] for line in run.out.splitlines()] == [1, 1, 0, 0]
    run = command(
        "evaluate", "photos", "-M", "toy.py:make", "-t", "1", "-t", "0", "--metrics", "completeness", "-o", "e"
    )
    assert run.code == 0
    values = json.loads(Path("e/evaluation.json").read_text())["values"]
    assert sorted(v["target"] for v in values) == [0, 0, 0, 1, 1, 1]
    more = ("-m", "gradcam", "--vary", "relu=true,false", "-t", "1", "-t", "0", "-o", "s", "--metrics", "pearson")
    run = command("sensitivity", "photos", "-M", "toy.py:make", *more)
    assert run.code == 0
    assert (
        len({(r["image"], r["target"]) for r in map(json.loads, Path("s/manifest.jsonl").read_text().splitlines())})
        == 6
    )
    noisy = ("-m", "backprop", "--vary", "noise=0,0.1", "-t", "top1", "-t", "0", "-o", "n")
    assert command("sensitivity", "photos", "-M", "toy.py:make", *noisy).code == 2


def test_a_unit_has_one_map_whatever_the_targets(work: Path) -> None:
    args = ("-m", "deconvnet", "-l", "2", "-p", "unit=max")
    for _ in range(2):
        run = command("explain", "photos/a.png", "-M", "toy.py:make", *args, "-t", "1", "-t", "0", "--json")
        assert run.code == 0 and len(run.out.splitlines()) == 1
    assert "1 already there" in run.err
