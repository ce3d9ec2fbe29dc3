"""`visx sensitivity` from the command line's function to its files, on a toy model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from in_process import TOY, make_work, visx
from visx.errors import VisxError
from visx.images.geometry import Preprocess
from visx.params import parse
from visx.sensitivity.measure import NoisyPreprocess
from visx.sensitivity.presets import PRESETS
from visx.sensitivity.settings import parse_vary


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_work(tmp_path, "abc") / "photos"


def run(photos: Path, *args: object) -> SimpleNamespace:
    model, out = f"{photos.parent / 'toy.py'}:make", photos.parent / "out"
    done = visx("sensitivity", photos, "-M", model, "-o", out, "--json", *args)
    done.rows = [json.loads(line) for line in done.out.splitlines()] if done.code in (0, 3) else []
    return done


def mean(rows: list[dict[str, Any]], metric: str, pair: str = "all") -> float:
    return next(float(r["mean"]) for r in rows if (r["metric"], r["pair"]) == (metric, pair))


def test_every_pair_is_compared_and_summed_up_over_images(photos: Path) -> None:
    done = run(photos, "-m", "smoothgrad", "--vary", "spread=0.1,0.2,0.4", "-p", "samples=4", "--metrics", "spearman")
    assert done.code == 0, done.err
    pairs = [row["pair"] for row in done.rows]
    assert pairs == ["all", "spread=0.1 | spread=0.2", "spread=0.1 | spread=0.4", "spread=0.2 | spread=0.4"]
    assert mean(done.rows, "spearman") == pytest.approx(np.mean([row["mean"] for row in done.rows[1:]]))
    out = photos.parent / "out"
    with (out / "sensitivity.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 9
    one = [float(r["value"]) for r in lines if (r["first"], r["second"]) == ("spread=0.1", "spread=0.4")]
    assert done.rows[2]["mean"] == pytest.approx(np.mean(one))
    assert done.rows[2]["std"] == pytest.approx(np.std(one))
    assert json.loads((out / "sensitivity.json").read_text())["table"] == done.rows


def test_scores_are_those_of_the_maps_on_disk(photos: Path) -> None:
    from scipy.stats import spearmanr

    done = run(photos, "-m", "smoothgrad", "--vary", "samples=2,9", "--metrics", "spearman")
    maps: dict[tuple[str, int], np.ndarray] = {}
    for line in (photos.parent / "out" / "manifest.jsonl").read_text().splitlines():
        record = json.loads(line)
        maps[record["image"], record["params"]["samples"]] = np.load(photos.parent / "out" / record["files"]["npy"])
    images = sorted({image for image, _ in maps})
    expected = [spearmanr(maps[i, 2].ravel(), maps[i, 9].ravel()).statistic for i in images]
    assert len(images) == 3
    assert mean(done.rows, "spearman") == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_method_without_chance_does_not_move_with_the_seed_and_one_with_it_does(photos: Path) -> None:
    still = run(photos, "-m", "backprop", "--vary", "seed=0..2", "--metrics", "ssim")
    assert [row["mean"] for row in still.rows] == [1.0] * 4
    moved = run(photos, "-m", "smoothgrad", "--vary", "seed=0..2", "-p", "samples=3", "--metrics", "ssim")
    assert mean(moved.rows, "ssim") < 0.99


def test_noise_moves_the_map_and_not_the_class(photos: Path) -> None:
    done = run(photos, "-m", "backprop", "--vary", "noise=0,0.1", "--metrics", "spearman", "-p", "reduce=sum")
    assert mean(done.rows, "spearman") < 0.99
    records = [json.loads(line) for line in (photos.parent / "out" / "manifest.jsonl").read_text().splitlines()]
    targets: dict[str, set[int]] = {}
    for record in records:
        targets.setdefault(record["image"], set()).add(record["target"])
    assert len(records) == 6
    assert all(len(found) == 1 for found in targets.values())
    assert {record["model"].partition("+")[2] for record in records} == {"", "noise0.1"}


def test_noise_has_its_variance_on_the_pixels_and_follows_from_seed_and_picture() -> None:
    grey = np.full((80, 80, 3), 128, dtype=np.uint8)
    noisy = {s: NoisyPreprocess(None, (80, 80), variance=0.01, seed=s) for s in (0, 1)}
    clean, place = Preprocess(None, (80, 80))(grey)
    x, where = noisy[0](grey)
    std = np.array(noisy[0].std)[:, None, None]
    assert where == place
    assert float(np.var((x - clean) * std)) == pytest.approx(0.01, rel=0.05)
    assert (noisy[0](grey)[0] == x).all()
    assert (noisy[1](grey)[0] != x).any()
    wild, _ = NoisyPreprocess(None, (80, 80), variance=4.0)(grey)
    pixels = wild * std + np.array(noisy[0].mean)[:, None, None]
    assert float(pixels.min()) == pytest.approx(0, abs=1e-5) and float(pixels.max()) == pytest.approx(1, abs=1e-5)


def test_against_the_default(photos: Path) -> None:
    varied = ("--vary", "samples=2,4", "--metrics", "ssim", "--against", "default")
    done = run(photos, "-m", "smoothgrad", *varied)
    assert [row["pair"] for row in done.rows] == ["all", "default | samples=2", "default | samples=4"]
    done = run(photos, "-m", "smoothgrad", *varied, "-p", "samples=4")
    assert [row["pair"] for row in done.rows] == ["all", "samples=4 | samples=2"]


def test_metrics_of_one_map_score_every_setting_by_itself(photos: Path) -> None:
    asked = ("-m", "backprop", "--metrics", "deletion,average_drop,ssim", "-p", "deletion.steps=9")
    done = run(photos, *asked, "--vary", "reduce=sum,l2,max_abs")
    assert done.code == 0, done.err
    of = {(row["metric"], row["setting"]): row for row in done.rows if row["setting"]}
    names = ["all", "reduce=sum", "reduce=l2", "reduce=max_abs"]
    assert list(of) == [(metric, name) for metric in ("deletion", "average_drop") for name in names]
    assert all((row["pair"] is None) == (row["metric"] != "ssim") for row in done.rows)
    lines = list(csv.DictReader((photos.parent / "out" / "sensitivity.csv").open()))
    values = {(r["image"], r["first"]): float(r["value"]) for r in lines if r["metric"] == "deletion"}
    table = np.array([[values[str(photos / f"{image}.png"), name] for name in names[1:]] for image in "abc"])
    assert len(values) == 9 and {r["second"] for r in lines if r["metric"] == "deletion"} == {""}
    for column, name in enumerate(names[1:]):
        row = of["deletion", name]
        assert (row["mean"], row["std"]) == pytest.approx((table[:, column].mean(), table[:, column].std()))
        assert row["images"] == 3 and row["between"] is None
    whole = of["deletion", "all"]
    assert (whole["mean"], whole["std"]) == pytest.approx((table.mean(), table.mean(1).std()))
    assert whole["between"] == pytest.approx(np.sqrt(table.var(1).mean()))
    # and they are what `visx evaluate` says of the same maps
    model, out = f"{photos.parent / 'toy.py'}:make", photos.parent / "evaluated"
    rows = visx("evaluate", photos, "-M", model, "-o", out, "--json", *asked[:2], "--metrics", "deletion", *asked[4:])
    assert of["deletion", "reduce=max_abs"]["mean"] == pytest.approx(json.loads(rows.out)["mean"], abs=1e-9)


def test_a_map_that_does_not_move_scores_alike_whatever_its_seed(photos: Path) -> None:
    """Metrics draw from the run's seed and a method from its map's: ties are not shuffled anew with every setting."""
    names = "insertion,infidelity,max_sensitivity"
    done = run(photos, "-m", "gradcam", "--vary", "seed=0..2", "--metrics", names, "-p", "insertion.steps=9")
    assert done.code == 0, done.err
    assert [row["between"] for row in done.rows if row["setting"] == "all"] == pytest.approx([0] * 3, abs=1e-12)
    moved = run(photos, "-m", "smoothgrad", "-p", "smoothgrad.samples=3", "--vary", "seed=0..2", "--metrics", names)
    assert all(row["between"] > 1e-5 * row["mean"] for row in moved.rows if row["setting"] == "all")


def test_a_noisy_map_is_measured_on_the_picture_it_explains(photos: Path) -> None:
    """Integrated gradients add up to the score's gain on the noisy picture; on the clean one the gap would be large."""
    done = run(
        photos, "-m", "integrated_gradients", "--vary", "noise=0,0.1", "--metrics", "completeness", "-p", "steps=300"
    )
    assert {row["setting"]: row["mean"] < 0.05 for row in done.rows} == {
        "all": True, "noise=0": True, "noise=0.1": True,
    }  # fmt: skip


def test_boxes_score_every_setting_and_an_image_without_is_named_once(photos: Path) -> None:
    boxes = photos.parent / "boxes.csv"
    boxes.write_text("image,left,top,right,bottom\na.png,0,0,48,48\nb.png,0,0,48,48\n")
    asked = ("-m", "backprop", "--vary", "reduce=l2,max_abs", "--metrics", "energy,pointing_game,localisation")
    done = run(photos, *asked, "--boxes", boxes)
    assert done.code == 3
    assert done.err.count("no annotated box for c.png") == 3  # once a metric, not once a setting
    assert {(row["metric"], row["mean"]) for row in done.rows if row["metric"] != "localisation"} == {
        ("energy", 1.0), ("pointing_game", 1.0),
    }  # fmt: skip
    assert {row["images"] for row in done.rows} == {2}


def test_the_printed_tables_tell_pairs_from_settings(photos: Path) -> None:
    model, out = f"{photos.parent / 'toy.py'}:make", photos.parent / "out"
    asked = ("-m", "backprop", "--vary", "reduce=sum,l2", "-p", "deletion.steps=3", "-q")
    both = visx("sensitivity", photos, "-M", model, "-o", out, *asked, "--metrics", "ssim,deletion").out.splitlines()
    assert both[0] == f"{model}  backprop  reduce=sum,l2"  # what is the same in all rows is said once
    assert [line.split() for line in (both[1], both[5])] == [["pair", "ssim"], ["setting", "deletion", "(-)"]]
    assert both[4] == ""
    assert [line.split()[0] for line in both[6:]] == ["all", "between", "reduce=sum", "reduce=l2"]
    alone = visx("sensitivity", photos, "-M", model, "-o", out, *asked, "--metrics", "deletion").out.splitlines()
    assert alone[1:] == both[5:]


def test_a_second_run_finds_its_maps(photos: Path) -> None:
    arguments = ("-m", "smoothgrad", "--vary", "samples=2,3", "--vary", "seed=0,1", "--metrics", "ssim")
    first, second = run(photos, *arguments), run(photos, *arguments)
    assert second.rows == first.rows
    assert "12 maps were there already" in second.err and "already" not in first.err


def test_shards_write_files_of_their_own_and_a_run_over_all_sums_them_up(photos: Path) -> None:
    asked = ("-m", "smoothgrad", "--vary", "seed=0,1", "-p", "samples=3", "--metrics", "ssim,average_drop")
    whole, parts = run(photos, *asked), photos.parent / "parts"
    images = 0
    for n in (1, 2):
        part = run(photos, *asked, "-o", parts, "--shard", f"{n}/2")
        assert part.code == 0 and f"written to {parts}/sensitivity.{n}-of-2.json" in part.err
        images += part.rows[0]["images"]
    names = {path.name for path in parts.iterdir() if path.is_file()}
    pictures = {name for name in names if name.endswith(".png")}
    assert images == 3 and {f"sensitivity.{n}-of-2.{kind}" for n in (1, 2) for kind in ("json", "csv")} <= names
    assert len(pictures) == 2 and all(f".{n}-of-2.png" in "".join(pictures) for n in (1, 2))
    before = {path: path.read_bytes() for path in parts.glob("measured*")}
    summed = run(photos, *asked, "-o", parts)
    assert summed.rows == whole.rows and "6 maps were there already" in summed.err
    assert len(before) == 2 and all(path.read_bytes() == content for path, content in before.items())
    assert not (parts / "measured.jsonl").exists()


def test_a_metric_that_does_not_fit_is_refused_before_a_map_is_made(photos: Path) -> None:
    done = run(photos, "-m", "backprop", "--vary", "seed=0,1", "--metrics", "ssim,hog", "-p", "hog.cell=20")
    assert done.code == 2 and "a block of 60 pixels does not fit maps of 48x48" in done.err
    assert not (photos.parent / "out").exists()


def test_settings_that_two_groups_share_are_computed_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from visx.sensitivity.presets import Experiment, Preset

    groups = (("samples=2,3",), ("samples=3,4",))
    monkeypatch.setitem(PRESETS, "two", Preset((Experiment("smoothgrad", groups),)))
    done = run(photos, "--preset", "two", "--metrics", "ssim")
    assert done.code == 0, done.err
    assert {row["varied"] for row in done.rows} == {"samples=2,3", "samples=3,4"}
    assert len((photos.parent / "out" / "manifest.jsonl").read_text().splitlines()) == 9


def test_the_teaser_has_a_row_an_image_and_a_column_a_setting(photos: Path) -> None:
    done = run(photos, "-m", "backprop", "--vary", "reduce=sum,l2", "--metrics", "ssim,spearman")
    assert done.code == 0, done.err
    (path,) = (photos.parent / "out").glob("sensitivity.*backprop*.png")
    picture = np.asarray(Image.open(path))
    from visx.sensitivity.report import CELL, GAP, LINE

    assert picture.shape == (3 * LINE + 3 * (CELL + 2 * LINE + GAP), 3 * (CELL + GAP) + GAP, 3)
    for row in range(3):
        for column in range(3):
            top, left = 2 * LINE + row * (CELL + 2 * LINE + GAP), GAP + column * (CELL + GAP)
            assert picture[top : top + CELL, left : left + CELL].std() > 5


@pytest.mark.parametrize("vary", ["reduce=sum,l2", "seed=0..2", "noise=0,0.1"])
def test_one_broken_image_costs_only_itself_and_is_named_once(photos: Path, vary: str) -> None:
    (photos / "broken.png").write_bytes(b"no image")
    done = run(photos, "-m", "backprop", "--vary", vary, "--metrics", "ssim,average_drop")
    assert done.code == 3
    assert done.err.count("broken.png: not an image") == 1
    assert {row["images"] for row in done.rows} == {3}
    for path in photos.glob("[abc].png"):
        path.unlink()
    done = run(photos, "-m", "backprop", "--vary", vary, "--metrics", "ssim,average_drop")
    assert (done.code, done.out) == (1, "")


def test_several_models_give_a_row_each(photos: Path) -> None:
    toy = photos.parent / "toy.py"
    (photos.parent / "other.py").write_text(TOY.replace("manual_seed(0)", "manual_seed(1)"))
    both = f"{toy}:make,{photos.parent / 'other.py'}:make"
    vary = ("--vary", "reduce=sum,l2", "--metrics", "ssim", "--json", "-o", photos.parent / "out")
    done = visx("sensitivity", photos, "-M", both, "-m", "backprop", *vary)
    assert done.code == 0, done.err
    models = {json.loads(line)["model"] for line in done.out.splitlines()}
    assert len(models) == 2


ELSEWHERE = {  # no settings of SAM's experiments: pictures, other segmenters, what another parameter switches off
    "lime": {"kernel_size", "max_dist", "ratio", "scale", "min_size", "features", "show"},
    "meaningful_perturbation": {"frames"},
    "integrated_gradients": {"trials", "max_steps"},
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_their_methods_and_lean_on_no_default(name: str) -> None:
    from visx.methods import get_method
    from visx.metrics.names import METRICS

    for experiment in PRESETS[name].experiments:
        method = get_method(experiment.method)
        for group in experiment.groups:
            for key, values in parse_vary(group).items():
                for value in values if key not in ("seed", "noise") else ():
                    parse(method.params, {**experiment.params, key: value}, method.name)
        assert set(method.params.model_fields) - set(experiment.params) == ELSEWHERE.get(method.name, set())
    assert all(text.partition(".")[0] in METRICS for text in PRESETS[name].metrics)


def test_vary_is_parsed() -> None:
    assert parse_vary(["patch=52, 53,52", "seed=0..2,7"]) == {"patch": ["52", "53"], "seed": ["0", "1", "2", "7"]}
    assert parse_vary(["seed=0", "seed=0,4"]) == {"seed": ["0", "4"]}
    for bad in ("patch", "patch=", "=1", "seed=3..1", "seed=0..999999999"):
        with pytest.raises(VisxError, match="--vary"):
            parse_vary([bad])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing varies"),
        (("--vary", "reduce=sum", "-m", "backprop"), "one setting has no other"),
        (("--vary", "reduec=sum,l2", "-m", "backprop"), "reduce"),
        (("--vary", "noise=-1,0", "-m", "backprop"), "is no variance"),
        (("--vary", "seed=x,0", "-m", "backprop"), "--vary seed=x: a seed is a whole number"),
        (("--preset", "sam-gradeint"), "sam-gradient"),
        (("--preset", "sam-gradient", "-m", "backprop"), "brings its own"),
        (("--vary", "seed=0,1", "--metrics", "randomization"), "sensitivity cannot use the metric randomization"),
        (("--vary", "seed=0,1", "--metrics", "insertoin"), "did you mean insertion"),
        (("--vary", "seed=0,1", "--metrics", "energy"), "energy needs --boxes"),
        (("--vary", "seed=0,1", "--metrics", "energy", "--boxes", "nowhere"), "no such file or folder: nowhere"),
        (("--vary", "seed=0,1", "--metrics", "insertion", "-p", "insertion.setps=3"), "steps"),
        (("--vary", "noise=0,1", "-m", "backprop", "-t", "top2"), "one class an image"),
    ],
)
def test_usage_errors(photos: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run(photos, *arguments)
    assert done.code == 2, done.err
    assert said in done.err
