"""`visx diff`: pairing, thresholds in both directions, exit codes, JUnit, and input that is not to be trusted."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from in_process import visx

RUN = "from visx.cli import main; main()"


def shell(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", RUN, *map(str, args)], capture_output=True, text=True)


def put(out: Path, image: str, values: np.ndarray, **changed: Any) -> Path:
    """One result as `visx explain` leaves it."""
    record = {
        "schema_version": 1, "image": f"/somewhere/{image}", "method": "gradcam", "params": {"relu": True},
        "layer": "layer4", "target": 3, "label": "shark", "score_kind": "logit", "seed": 0, **changed,
    }  # fmt: skip
    name = f"{image}/{record['method']}.{record['layer']}.{record['target']}.{len(str(record['params']))}.npy"
    (out / image).mkdir(parents=True, exist_ok=True)
    np.save(out / name, values.astype(np.float32))
    record.setdefault("files", {"npy": name})
    with (out / "manifest.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    return out / name


@pytest.fixture
def maps() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {f"{name}.jpg": random.random((64, 64)) for name in "abc"}


@pytest.fixture
def base(tmp_path: Path, maps: dict[str, np.ndarray]) -> Path:
    for image, values in maps.items():
        put(tmp_path / "base", image, values)
    return tmp_path / "base"


def rows(done: SimpleNamespace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


def test_exit_codes_reach_the_shell_and_torch_is_not_imported(base: Path) -> None:
    assert shell("diff", base, base, "--min", "spearman=1").returncode == 0
    assert shell("diff", base, base, "--min", "spearman=1.1").returncode == 5
    assert shell("diff", base, base / "none").returncode == 2
    code = (
        f"import sys; from visx.cli.app import app; app(['diff', {str(base)!r}, {str(base)!r}], standalone_mode=False)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('torch' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_identical_runs_pass(base: Path, tmp_path: Path, maps: dict[str, np.ndarray]) -> None:
    for image, values in maps.items():
        put(tmp_path / "new", image, values)
    done = visx("diff", base, tmp_path / "new", "--min", "spearman=1", "--min", "ssim=1", "--json")
    assert done.code == 0, done.err
    assert [row["metrics"] for row in rows(done)] == [{"spearman": 1.0, "ssim": 1.0}] * 3


def test_a_flipped_map_fails_and_is_named_first(base: Path, tmp_path: Path, maps: dict[str, np.ndarray]) -> None:
    noise = np.random.default_rng(1).random((64, 64))
    put(tmp_path / "new", "a.jpg", maps["a.jpg"] + 0.1 * noise)
    put(tmp_path / "new", "b.jpg", maps["b.jpg"][:, ::-1])
    put(tmp_path / "new", "c.jpg", maps["c.jpg"])
    done = visx("diff", base, tmp_path / "new", "--min", "spearman=0.9", "--json")
    assert done.code == 5
    found = rows(done)
    assert [row["image"] for row in found] == ["b.jpg", "a.jpg", "c.jpg"]
    assert [bool(row["misses"]) for row in found] == [True, False, False]
    assert "is below 0.9" in found[0]["misses"][0]
    assert visx("diff", base, tmp_path / "new", "--min", "spearman=-1").code == 0


def test_another_layer_or_target_is_compared_and_is_a_miss(
    base: Path, tmp_path: Path, maps: dict[str, np.ndarray]
) -> None:
    put(tmp_path / "new", "a.jpg", maps["a.jpg"])
    put(tmp_path / "new", "b.jpg", maps["b.jpg"] + 1e-3, layer="layer3")
    put(tmp_path / "new", "c.jpg", maps["a.jpg"], target=7, label="ray")
    found = rows(visx("diff", base, tmp_path / "new", "--json"))
    assert [(row["image"], row["misses"]) for row in found] == [
        ("c.jpg", ["target changed: 3 shark -> 7 ray"]),
        ("b.jpg", ["layer changed: layer4 -> layer3"]),
        ("a.jpg", []),
    ]
    assert found[1]["metrics"]["spearman"] > 0.99


def test_missing_and_extra_results_count_and_are_listed(
    base: Path, tmp_path: Path, maps: dict[str, np.ndarray]
) -> None:
    put(tmp_path / "new", "a.jpg", maps["a.jpg"])
    put(tmp_path / "new", "d.jpg", maps["a.jpg"])
    done = visx("diff", base, tmp_path / "new", "--json")
    assert done.code == 5
    assert {(row["image"], row["status"]) for row in rows(done)} == {
        ("a.jpg", "compared"), ("b.jpg", "missing"), ("c.jpg", "missing"), ("d.jpg", "extra"),
    }  # fmt: skip


def test_settings_tell_results_of_one_method_apart(tmp_path: Path, maps: dict[str, np.ndarray]) -> None:
    a, b = maps["a.jpg"], maps["b.jpg"]
    for out in ("base", "new"):
        put(tmp_path / out, "a.jpg", a, params={"samples": 5})
        put(tmp_path / out, "a.jpg", b, params={"samples": 50})
    assert visx("diff", tmp_path / "base", tmp_path / "new", "--min", "spearman=1").code == 0
    put(tmp_path / "one", "a.jpg", a, params={"samples": 500})
    assert visx("diff", tmp_path / "one", tmp_path / "base").code == 2  # which of the two is not for us to guess


def test_of_two_records_for_one_file_the_last_counts(base: Path, maps: dict[str, np.ndarray], tmp_path: Path) -> None:
    for image in maps:
        put(tmp_path / "new", image, 1 - maps[image])
        put(tmp_path / "new", image, maps[image])
    assert visx("diff", base, tmp_path / "new", "--min", "spearman=1").code == 0


def test_two_npy_files(tmp_path: Path, maps: dict[str, np.ndarray]) -> None:
    np.save(tmp_path / "a.npy", maps["a.jpg"])
    np.save(tmp_path / "b.npy", np.exp(maps["a.jpg"]))
    np.save(tmp_path / "small.npy", np.zeros((8, 8)))
    a, b = tmp_path / "a.npy", tmp_path / "b.npy"
    assert visx("diff", a, b, "--min", "spearman=1").code == 0
    assert visx("diff", a, b, "--min", "pearson=0.9999").code == 5
    done = visx("diff", a, tmp_path / "small.npy")
    assert done.code == 2
    assert "64x64" in done.err and "8x8" in done.err


def test_junit_holds_every_pair_and_survives_hostile_names(tmp_path: Path, maps: dict[str, np.ndarray]) -> None:
    name = 'a<&"\x01]]>.jpg'
    for out, values in (("base", maps["a.jpg"]), ("new", -maps["a.jpg"])):
        put(tmp_path / out, name, values)
        put(tmp_path / out, "fine.jpg", maps["b.jpg"])
    put(tmp_path / "base", "gone.jpg", maps["c.jpg"])
    report = tmp_path / "reports" / "drift.xml"
    done = visx("diff", tmp_path / "base", tmp_path / "new", "--min", "spearman=0.5", "--junit", report, "-q")
    assert done.code == 5
    suites = ET.parse(report).getroot()
    assert (suites.get("tests"), suites.get("failures"), suites.get("errors")) == ("3", "2", "0")
    cases = {case.get("name"): case for case in suites.iter("testcase")}
    assert set(cases) == {'a<&"\\x01]]>.jpg', "fine.jpg", "gone.jpg"}
    failure = cases['a<&"\\x01]]>.jpg'].find("failure")
    assert failure is not None and "spearman -1.0000 is below 0.5" in str(failure.get("message"))
    assert cases["fine.jpg"].find("failure") is None
    assert cases["fine.jpg"].get("classname") == "gradcam.layer4.3"


def test_maps_of_other_shapes_are_misses_of_their_own(base: Path, tmp_path: Path, maps: dict[str, np.ndarray]) -> None:
    put(tmp_path / "new", "a.jpg", maps["a.jpg"])
    put(tmp_path / "new", "b.jpg", maps["b.jpg"])
    put(tmp_path / "new", "c.jpg", maps["c.jpg"][:32])
    done = visx("diff", base, tmp_path / "new", "--json")
    assert done.code == 5
    assert (rows(done)[0]["image"], rows(done)[0]["misses"]) == ("c.jpg", ["shape changed: 64x64 -> 32x64"])


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch bomb-went-off",)


@pytest.mark.parametrize("form", ["nan", "object", "pickle", "truncated", "huge", "header", "text", "cube", "complex"])
def test_a_bad_npy_is_refused_and_nothing_in_it_runs(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good, bad = Path("good.npy"), Path("bad.npy")
    np.save(good, np.ones((8, 8)))
    if form == "nan":
        np.save(bad, np.full((8, 8), np.nan))
    elif form == "object":
        np.save(bad, np.array([[Bomb()]], dtype=object), allow_pickle=True)
    elif form == "pickle":
        bad.write_bytes(pickle.dumps(Bomb()))
    elif form == "truncated":
        bad.write_bytes(good.read_bytes()[:-9])
    elif form == "huge":
        assert b"(8, 8), }         " in good.read_bytes()
        bad.write_bytes(good.read_bytes().replace(b"(8, 8), }         ", b"(88888, 888888), }"))
    elif form == "header":
        bad.write_bytes(good.read_bytes().replace(b"(8, 8), }", b"(8, 8),  "))
    elif form == "text":
        bad.write_text("no map")
    elif form == "cube":
        np.save(bad, np.ones((2, 8, 8)))
    else:
        np.save(bad, np.ones((8, 8), dtype=complex))
    done = visx("diff", good, bad)
    assert done.code == 1, done.err
    assert "bad.npy" in done.err
    assert not Path("bomb-went-off").exists()


def test_a_newer_schema_an_empty_folder_and_a_path_that_leads_out(base: Path, tmp_path: Path) -> None:
    put(tmp_path / "newer", "a.jpg", np.ones((8, 8)), schema_version=99)
    done = visx("diff", base, tmp_path / "newer")
    assert done.code == 1 and "schema 99" in done.err and "newer" in done.err
    put(tmp_path / "without", "a.jpg", np.ones((8, 8)), schema_version=None)
    done = visx("diff", base, tmp_path / "without")
    assert done.code == 1 and "visx did not write it" in done.err and "update" not in done.err
    (tmp_path / "empty").mkdir()
    done = visx("diff", base, tmp_path / "empty")
    assert done.code == 2 and "no manifest.jsonl" in done.err
    put(tmp_path / "out", "a.jpg", np.ones((8, 8)), files={"npy": "../base/a.jpg/x.npy"})
    done = visx("diff", base, tmp_path / "out")
    assert done.code == 1 and "leads out of the folder" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--min", "spearman"], "is not METRIC=VALUE"),
        (["--min", "spearman=nan"], "is not METRIC=VALUE"),
        (["--min", "insertion=0.5"], "insertion"),
        (["--min", "spearmn=1"], "did you mean spearman"),
        (["-p", "window=7"], "is no metric's"),
    ],
)
def test_usage_errors(base: Path, arguments: list[str], said: str) -> None:
    done = visx("diff", base, base, *arguments)
    assert done.code == 2
    assert said in done.err


def test_nothing_to_pair(base: Path, tmp_path: Path) -> None:
    put(tmp_path / "new", "z.jpg", np.ones((64, 64)))
    done = visx("diff", base, tmp_path / "new")
    assert done.code == 2 and "counterpart" in done.err
