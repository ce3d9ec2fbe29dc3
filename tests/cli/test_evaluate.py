"""`visx evaluate` from the command line's function to its files, on a toy model."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from in_process import make_work, visx


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_work(tmp_path, "abc") / "photos"


def run(photos: Path, *args: object) -> SimpleNamespace:
    model, out = f"{photos.parent / 'toy.py'}:make", photos.parent / "out"
    done = visx("evaluate", photos, "-M", model, "-o", out, "--json", *args)
    done.rows = [json.loads(line) for line in done.out.splitlines()] if done.code in (0, 3, 5) else []
    return done


def test_every_metric_runs_and_all_is_written(photos: Path) -> None:
    names = "insertion,deletion,road,average_drop,increase,completeness,infidelity,max_sensitivity,randomization"
    done = run(photos, "-m", "backprop,input_x_gradient", "--metrics", names, "-p", "insertion.steps=9")
    assert done.code == 0, done.err
    assert [(row["metric"], row["method"]) for row in done.rows] == [
        (metric, method) for metric in names.split(",") for method in ("backprop", "input_x_gradient")
    ]
    assert all(row["count"] == 3 for row in done.rows)
    assert all(row["low"] <= row["mean"] <= row["high"] for row in done.rows)
    out = photos.parent / "out"
    record = json.loads((out / "evaluation.json").read_text())
    assert record["table"] == done.rows and len(record["values"]) == 54 and record["errors"] == []
    with (out / "evaluation.csv").open() as file:
        lines = list(csv.DictReader(file))
    mine = [float(r["value"]) for r in lines if (r["method"], r["metric"]) == ("backprop", "insertion")]
    assert len(lines) == 54
    assert done.rows[0]["mean"] == pytest.approx(np.mean(mine))
    picture = np.asarray(Image.open(out / "evaluation.png"))
    colours = {tuple(c) for c in picture.reshape(-1, 3)}
    assert (0x00, 0x72, 0xB2) in colours and (0xD5, 0x5E, 0x00) in colours  # both methods' curves


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
