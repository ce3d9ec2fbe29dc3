"""`visx evaluate` from the command line's function to its files, on a toy model."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from in_process import make_work, visx
from visx.images.find import Item, shard
from visx.metrics import contract
from visx.metrics.names import METRICS, Listed

SHARDED = (
    ("evaluation", "json"),
    ("evaluation", "csv"),
    ("evaluation", "png"),
    ("measured", "jsonl"),
    ("manifest", "jsonl"),
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_work(tmp_path, "abc") / "photos"


def run(photos: Path, *args: object) -> SimpleNamespace:
    model, out = f"{photos.parent / 'toy.py'}:make", photos.parent / "out"
    done = visx("evaluate", photos, "-M", model, "-o", out, "--json", *args)
    done.rows = [json.loads(line) for line in done.out.splitlines()] if done.code in (0, 3, 5) else []
    return done


def test_every_metric_runs_and_all_is_written(photos: Path) -> None:
    """Every metric of the list that `evaluate` takes: four images of four classes, each with a box."""
    Image.open(photos / "a.png").rotate(90).save(photos / "d.png")
    targets, boxes = photos.parent / "targets.csv", photos.parent / "boxes.csv"
    targets.write_text("a.png,0\nb.png,1\nc.png,2\nd.png,3\n")
    boxes.write_text("image,left,top,right,bottom\n" + "".join(f"{name}.png,2,2,30,30\n" for name in "abcd"))
    names = [name for name, metric in METRICS.items() if metric.kind != "pair"]
    asked = ("-p", "insertion.steps=9", "-p", "deletion.steps=9", "-p", "grid_pointing.confidence=0", "-t", targets)
    methods = ("backprop", "input_x_gradient")
    done = run(photos, "-m", ",".join(methods), "--metrics", ",".join(names), *asked, "--boxes", boxes)
    assert done.code == 0, done.err
    assert [(row["metric"], row["method"]) for row in done.rows] == [(m, method) for m in names for method in methods]
    assert all(row["count"] == 4 for row in done.rows)
    assert all(row["low"] <= row["mean"] <= row["high"] for row in done.rows)
    out = photos.parent / "out"
    record = json.loads((out / "evaluation.json").read_text())
    assert record["table"] == done.rows and len(record["values"]) == 8 * len(names) and record["errors"] == []
    with (out / "evaluation.csv").open() as file:
        lines = list(csv.DictReader(file))
    mine = [float(r["value"]) for r in lines if (r["method"], r["metric"]) == ("backprop", "insertion")]
    assert len(lines) == 8 * len(names)
    first = next(r for r in done.rows if (r["method"], r["metric"]) == ("backprop", "insertion"))
    assert first["mean"] == pytest.approx(np.mean(mine))
    picture = np.asarray(Image.open(out / "evaluation.png"))
    colours = {tuple(c) for c in picture.reshape(-1, 3)}
    assert (0x00, 0x72, 0xB2) in colours and (0xD5, 0x5E, 0x00) in colours  # both methods' curves


@pytest.fixture
def largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric `largest` that looks at a map alone, registered as a file of its own would be."""
    monkeypatch.setattr(contract, "REGISTRY", dict(contract.REGISTRY))
    monkeypatch.setitem(METRICS, "largest", Listed("alone"))
    monkeypatch.setitem(sys.modules, "visx.metrics.largest", ModuleType("visx.metrics.largest"))

    @contract.metric("largest", kind="alone", title="Maximum", source="none", low=None, high=None, better="higher")
    def run(values: np.ndarray, params: object) -> contract.Measured:
        assert values.dtype == np.float64 and values.shape == (48, 48)
        return contract.Measured(float(values.max()))


@pytest.mark.usefixtures("largest")
def test_a_metric_of_the_map_alone(photos: Path) -> None:
    """It measures maps that explain no class, which metrics that ask the model refuse, and its values are not kept."""
    out = photos.parent / "out"
    done = run(photos, "-m", "deconvnet", "-p", "unit=max", "-l", "0", "--metrics", "largest,deletion")
    assert [row["metric"] for row in done.rows] == ["largest"] and done.rows[0]["count"] == 3
    assert done.code == 3 and "not a class" in done.err
    maps = [float(np.load(path).max()) for path in out.rglob("*.npy") if "native" not in path.name]
    assert done.rows[0]["mean"] == pytest.approx(np.mean(maps))
    model = f"{photos.parent / 'toy.py'}:make"
    varied = ("-m", "backprop", "--vary", "reduce=max_abs,l2", "--metrics", "ssim,largest")
    assert visx("sensitivity", photos, "-M", model, "-o", out, *varied, "-q").code == 0
    ledger = out / "measured.jsonl"
    assert not ledger.exists() or not ledger.read_text()


def test_maps_of_explain_are_used_when_their_recipe_fits(photos: Path) -> None:
    model, out = f"{photos.parent / 'toy.py'}:make", photos.parent / "out"
    assert visx("explain", photos, "-m", "backprop", "-M", model, "-o", out, "-q").code == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    done = run(photos, "-m", "backprop", "-p", "deletion.steps=3", "--metrics", "deletion")
    assert done.code == 0 and "3 maps were there already" in done.err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == before
    again = run(photos, "-m", "backprop", "-p", "reduce=l2", "-p", "deletion.steps=3", "--metrics", "deletion")
    assert "already" not in again.err
    assert len(list(out.rglob("*.npy"))) == 6


def test_shards_write_files_of_their_own_and_a_run_over_all_sums_them_up(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("-m", "backprop", "--metrics", "insertion", "-p", "insertion.steps=4")
    whole, parts = run(photos, *asked), photos.parent / "parts"
    counts = []
    for n in (1, 2):
        part = run(photos, *asked, "-o", parts, "--shard", f"{n}/2")
        counts.append(part.rows[0]["count"])
        assert part.code == 0 and f"written to {parts}/evaluation.{n}-of-2.json" in part.err
    assert sum(counts) == 3 and min(counts) > 0
    names = {path.name for path in parts.iterdir() if path.is_file()}
    assert {f"{name}.{n}-of-2.{kind}" for n in (1, 2) for name, kind in SHARDED} <= names
    assert not names & {f"{name}.{kind}" for name, kind in SHARDED}

    def forgotten(*args: object) -> contract.Measured:
        raise AssertionError("measured again")

    metric = contract.REGISTRY["insertion"]
    monkeypatch.setitem(contract.REGISTRY, "insertion", dataclasses.replace(metric, run=forgotten))
    summed = run(photos, *asked, "-o", parts)
    assert summed.rows == whole.rows and "3 maps were there already" in summed.err
    maps = {
        path.relative_to(photos.parent / "out"): path.read_bytes() for path in (photos.parent / "out").rglob("*.npy")
    }
    assert len(maps) == 3 and maps == {path.relative_to(parts): path.read_bytes() for path in parts.rglob("*.npy")}


def test_a_shard_without_images_is_no_failure(photos: Path) -> None:
    empty = next(n for n in range(1, 10) if not shard([Item(p, p.name) for p in photos.iterdir()], n, 9))
    for command in (("evaluate",), ("sensitivity", "--vary", "seed=0,1")):
        done = visx(*command, photos, "-M", f"{photos.parent / 'toy.py'}:make", "--shard", f"{empty}/9")
        assert (done.code, done.out) == (0, "") and f"shard {empty}/9 has none of the 3 images" in done.err


def test_the_same_seed_gives_the_same_table_whatever_the_batch(photos: Path) -> None:
    arguments = ("-m", "gradcam", "--metrics", "insertion,infidelity,road", "-p", "insertion.steps=20")
    first = run(photos, *arguments)
    for changed in (("--batch-size", "3"), ("--overwrite",)):
        other = run(photos, *arguments, *changed)
        assert [r["mean"] for r in other.rows] == pytest.approx([r["mean"] for r in first.rows], abs=1e-5)


def test_boxes_are_asked_for_and_one_image_without_costs_only_itself(photos: Path) -> None:
    boxes = photos.parent / "boxes.csv"
    boxes.write_text("image,left,top,right,bottom\na.png,0,0,48,48\nb.png,0,0,48,48\n")
    asked = ("-m", "backprop", "--metrics", "energy,pointing_game,localisation")
    assert "needs --boxes" in run(photos, *asked).err
    done = run(photos, *asked, "--boxes", boxes)
    assert done.code == 3
    assert "no annotated box for c.png" in done.err
    assert {row["metric"]: row["mean"] for row in done.rows}["energy"] == 1.0
    assert {row["metric"]: row["mean"] for row in done.rows}["pointing_game"] == 1.0
    assert {row["count"] for row in done.rows} == {2}
    boxes.write_text("other.png,0,0,48,48\n")
    out = photos.parent / "out"
    nothing = visx("evaluate", photos, "-M", f"{photos.parent / 'toy.py'}:make", "-o", out, *asked, "--boxes", boxes)
    assert (nothing.code, nothing.out) == (1, "")


def test_a_missed_threshold_exits_5(photos: Path) -> None:
    asked = ("-m", "backprop", "--metrics", "deletion", "-p", "deletion.steps=3")
    assert run(photos, *asked, "--max", "deletion=1").code == 0
    done = run(photos, *asked, "--max", "deletion=0.0001")
    assert done.code == 5 and "is above 0.0001" in done.err
    assert run(photos, *asked, "--min", "deletion=0.999").code == 5
    assert run(photos, *asked, "--min", "insertion=0.1").code == 2


def test_a_metric_over_images_that_cannot_run_leaves_the_others(photos: Path) -> None:
    done = run(photos, "-m", "backprop", "--metrics", "average_drop,grid_pointing")
    assert done.code == 3
    assert "grid_pointing needs 4 images" in done.err
    assert [row["metric"] for row in done.rows] == ["average_drop"]


def test_the_grid_pointing_game_is_played_on_mosaics(photos: Path) -> None:
    targets = photos.parent / "targets.csv"
    Image.open(photos / "a.png").rotate(90).save(photos / "d.png")
    targets.write_text("a.png,0\nb.png,1\nc.png,2\nd.png,3\n")
    done = run(photos, "-m", "gradcam", "--metrics", "grid_pointing", "-p", "grid_pointing.confidence=0", "-t", targets)
    assert done.code == 0, done.err
    assert done.rows[0]["count"] == 4
    assert 0 <= done.rows[0]["mean"] <= 1
    values = json.loads((photos.parent / "out" / "evaluation.json").read_text())["values"]
    assert [v["target"] for v in values] == [v["details"]["target"] for v in values] == [0, 1, 2, 3]


def test_an_edge_detector_passes_the_randomisation_check_for_nothing(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that never looks at the weights has 1.0 through the whole command; one that does has less."""
    from visx.methods import contract, get_method

    def edges(req: contract.Request, p: object) -> contract.Attribution:
        across, down = (req.x.sum(1).diff(dim=d, append=req.x.sum(1).narrow(d, -1, 1)) for d in (1, 2))
        return contract.Attribution((across.abs() + down.abs()).unsqueeze(1))

    looking = get_method("backprop")
    monkeypatch.setitem(contract.REGISTRY, "backprop", dataclasses.replace(looking, run=edges))
    blind = run(photos, "-m", "backprop,input_x_gradient", "--metrics", "randomization")
    assert blind.code == 0, blind.err
    means = {row["method"]: row["mean"] for row in blind.rows}
    assert means["backprop"] == 1.0
    assert means["input_x_gradient"] < 0.9


def test_a_unit_is_no_class(photos: Path) -> None:
    done = run(photos, "-m", "deconvnet", "-p", "unit=max", "-l", "0", "--metrics", "deletion")
    assert done.code == 1
    assert "not a class" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--metrics", "insertoin"), "insertion"),
        (("--metrics", "ssim"), "evaluate cannot use the metric ssim"),
        (("-p", "insertion.setps=3"), "steps"),
        (("--metrics", "energy", "--boxes", "nowhere"), "no such file"),
    ],
)
def test_usage_errors(photos: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(photos, *arguments)
    assert done.code == 2, done.err
    assert said in done.err
