"""The ledger of measured values: found again, whatever happened to the file, and never for something else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from in_process import make_work, visx
from visx.evaluate.ledger import Ledger
from visx.files import DiskFull
from visx.metrics import get_metric
from visx.metrics.contract import REGISTRY, Measured


def test_values_survive_and_damage_costs_only_what_it_hits(tmp_path: Path) -> None:
    one = Measured(0.25, [(0.0, 1.0), (1.0, 0.5)], {"clean": 0.5})
    ledger = Ledger(tmp_path / "out")
    ledger.keep("a", one)
    ledger.keep("b", Measured(1.0))
    assert (ledger.find("a"), ledger.find("c")) == (one, None)
    with ledger.path.open("ab") as file:
        file.write(b'{"key": "torn", "val')
    again = Ledger(tmp_path / "out")
    assert (again.find("a"), again.find("b"), again.find("torn")) == (one, Measured(1.0), None)
    again.keep("c", Measured(2.0))
    assert Ledger(tmp_path / "out").find("c") == Measured(2.0)
    rest = '"curve": null, "details": {}}'
    foreign = (
        "[]",
        "7",
        '{"key": "a"}',
        "[" * 100_000,
        f'{{"key": "d", "value": null, {rest}',
        f'{{"key": "d", "value": NaN, {rest}',
    )
    ledger.path.write_text("\n".join([*foreign, f'{{"key": "e", "value": 3, {rest}', ""]))
    foreign_and_ours = Ledger(tmp_path / "out")
    assert (foreign_and_ours.find("d"), foreign_and_ours.find("e")) == (None, Measured(3.0))
    assert Ledger(tmp_path / "out", resume=False).find("e") is None


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of metrics as they are computed."""
    seen: list[str] = []
    for name in ("deletion", "average_drop"):
        metric = get_metric(name)

        def watched(*args: Any, name: str = name, run: Callable[..., Any] = metric.run) -> Any:
            seen.append(name)
            return run(*args)

        monkeypatch.setitem(REGISTRY, name, dataclasses.replace(metric, run=watched))
    return seen


def run(photos: Path, *args: object) -> SimpleNamespace:
    model, out = f"{photos.parent / 'toy.py'}:make", photos.parent / "out"
    asked = ("--metrics", "deletion,average_drop", "-p", "deletion.steps=5", "--json", "-q")
    done = visx(args[0], photos, "-M", model, "-m", "backprop", "-o", out, *asked, *args[1:])
    assert done.code == 0, done.err
    return done


def test_what_was_measured_is_not_measured_again_unless_it_has_changed(tmp_path: Path, counted: list[str]) -> None:
    photos = make_work(tmp_path, "ab") / "photos"
    first = run(photos, "sensitivity", "--vary", "reduce=sum,l2")
    assert sorted(counted) == ["average_drop"] * 4 + ["deletion"] * 4
    counted.clear()
    assert run(photos, "sensitivity", "--vary", "reduce=sum,l2").out == first.out
    evaluated = run(photos, "evaluate", "-p", "reduce=l2")  # its maps and values are the same
    assert counted == []
    assert {json.loads(line)["count"] for line in evaluated.out.splitlines()} == {2}
    run(photos, "sensitivity", "--vary", "reduce=sum,l2,mean")
    assert sorted(counted) == ["average_drop"] * 2 + ["deletion"] * 2
    counted.clear()
    run(photos, "evaluate", "-p", "reduce=l2", "-p", "deletion.steps=6")
    assert counted == ["deletion"] * 2
    counted.clear()
    path = next((tmp_path / "out" / "a.png").glob("*.npy"))
    before = np.load(path)
    np.save(path, before[::-1])
    run(photos, "sensitivity", "--vary", "reduce=sum,l2,mean")
    assert counted == []  # what somebody has changed is computed anew, and its values are known
    assert np.array_equal(np.load(path), before)
    run(photos, "evaluate", "--overwrite")
    run(photos, "evaluate", "--seed", "1")
    assert sorted(counted) == ["average_drop"] * 4 + ["deletion"] * 4


@pytest.mark.parametrize("command", [("evaluate",), ("sensitivity", "--vary", "reduce=sum,l2")])
def test_a_full_disk_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]) -> None:
    def full(ledger: Ledger, text: str) -> None:
        raise DiskFull("no room left")

    monkeypatch.setattr(Ledger, "_append", full)
    photos = make_work(tmp_path, "ab") / "photos"
    model, out = f"{tmp_path / 'toy.py'}:make", tmp_path / "out"
    asked = ("-M", model, "-m", "backprop", "-o", out, "--metrics", "average_drop", "-q", *command[1:])
    done = visx(command[0], photos, *asked)
    assert (done.code, done.err.strip(), done.out) == (1, "no room left", "")
