"""Every file name survives `visx explain`, from the folder to the manifest and back, and none leads out of OUT."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ODD = [
    b"with space.png", b" .png", b"two\nlines.png", b"tab\tand\rreturn.png", b"\xff\xfe.png", b"\xed\xa0\x80.png", b"x" * 251 + b".png",
    b"\xff" * 251 + b".png", b"-x.png", b"--json.png", b"*?[a].png", b"'\"$(x)`.png", b"back\\slash.png", b"%00%s{}.png", "é".encode() + b".png",
    "e\u0301.png".encode(), "\U0001f431\u202e.png".encode(), b"..png", b"...png", b"manifest.jsonl.png", b"CON.png",
]  # fmt: skip


@pytest.fixture
def photos(visx: Any) -> list[str]:
    """One picture under every odd name, in `in/` and in a folder of an odd name in that; returns their names."""
    deep = Path("in", os.fsdecode(b"-d \n\xff"))
    deep.mkdir(parents=True)
    for number, name in enumerate(ODD):
        folder = deep if number % 3 == 0 else Path("in")
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        try:
            Image.fromarray(pixels).save(folder / os.fsdecode(name), "PNG")
        except OSError:
            pytest.skip(f"this file system holds no file of the name {name!r}")
    return sorted(str(path.relative_to("in")) for path in Path("in").rglob("*") if path.is_file())


def everything() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file() and p.name != "manifest.jsonl"}


def test_names_in_a_folder(explain: Any, photos: list[str]) -> None:
    before = everything()
    photos = [name for name in photos if not Path(name).name.startswith(".")]  # a walk leaves out hidden files
    run = explain("in", "--json")
    assert run.code == 0, run.err
    assert sorted(row["name"] for row in run.rows) == photos
    assert sorted(row["image"] for row in run.rows) == sorted(f"in/{name}" for name in photos)
    for row in run.rows:
        file = Path("visx-out", row["files"]["npy"])
        assert file.parent == Path("visx-out", row["name"])
        assert np.load(file).shape == (32, 32)
    after = everything()
    assert {k: v for k, v in after.items() if not k.startswith("visx-out/")} == before
    assert len(after) == len(before) + sum(name is not None for row in run.rows for name in row["files"].values())
    again = explain("in", "--json")
    assert (again.code, again.rows) == (0, run.rows)
    assert f"0 written, {len(photos)} already there" in again.err
    assert everything() == after
    lines = explain("in")
    assert lines.out.count("\n") == len(photos)
    assert all(line.isprintable() for line in lines.out.split("\n"))


def test_names_on_standard_input_in_shards(explain: Any, photos: list[str]) -> None:
    listed = [f"in/{name}" for name in photos]
    stdin = b"\0".join(map(os.fsencode, listed))
    found: list[str] = []
    for part in ("1/3", "2/3", "3/3"):
        run = explain("-", "-0", "--json", "--shard", part, stdin=stdin)
        assert run.code == 0, run.err
        found += [row["image"] for row in run.rows]
    assert sorted(found) == sorted(listed)
    run = explain("-", "-0", stdin=stdin)
    assert run.code == 0
    assert f"0 written, {len(photos)} already there" in run.err


def test_names_that_fail_are_told_in_one_line_each(explain: Any) -> None:
    Path("in").mkdir()
    for name in ODD:
        Path("in", os.fsdecode(name)).write_bytes(b"no picture")
    run = explain("in", "--json")
    assert run.code == 1
    told = [line for line in run.err.splitlines() if line.startswith("visx: in/")]
    assert len(told) == len(run.rows)
    assert all(line.isprintable() for line in told)
    assert {row["image"] for row in run.rows} == {str(p) for p in Path("in").iterdir() if not p.name.startswith(".")}


def test_an_image_that_looks_like_an_option(explain: Any) -> None:
    Path("-x.png").write_bytes(Path("cat.png").read_bytes())
    for args in (["--", "-x.png"], ["./-x.png"], ["-"]):
        run = explain("--json", "-o", f"out{len(args[-1])}", *args, stdin=b"-x.png\n")
        assert run.code == 0, run.err
        assert [row["name"] for row in run.rows] == ["-x.png"]
    run = explain("-x.png")
    assert run.code == 2
    assert "No such option" in run.err


def test_an_image_that_looks_like_a_temporary_file(explain: Any) -> None:
    Path(".visx-tmp-1.png").write_bytes(Path("cat.png").read_bytes())
    for done in ("written", "already there"):
        run = explain(".visx-tmp-1.png", "cat.png")
        assert run.code == 0, run.err
        assert f"2 {done}" in run.err
    assert Path(".visx-tmp-1.png").exists()


def test_no_path_leads_out(explain: Any) -> None:
    Path("deep/er").mkdir(parents=True)
    Path("deep/a.png").write_bytes(Path("cat.png").read_bytes())
    work = Path.cwd()
    listed = [
        "deep/../cat.png",
        "deep/er/../a.png",
        f"../../../../../../../../../..{work}/cat.png",
        f"{work}/deep/a.png",
    ]
    before = set(work.parent.rglob("*"))
    run = explain("-", "--json", "-o", "out", stdin="\n".join(listed).encode())
    assert run.code == 0, run.err
    assert len(run.rows) == 4
    assert all(".." not in Path(row["name"]).parts and not Path(row["name"]).is_absolute() for row in run.rows)
    new = set(work.parent.rglob("*")) - before
    assert new
    assert all(path == work / "out" or work / "out" in path.parents for path in new)
    assert "4 already there" in explain("-", "-o", "out", stdin="\n".join(listed).encode()).err


def test_images_that_would_meet_do_not(explain: Any) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "x.png").write_bytes(Path("cat.png").read_bytes())
    run = explain("a/x.png", "b/x.png")
    assert run.code == 2
    assert "a/x.png and b/x.png would both write to x.png/" in run.err
    Path("b/a").symlink_to(Path("b").resolve())
    run = explain("-", stdin=b"a/x.png\n../a/x.png\nb/../a/x.png\n")  # the second is not there, the third is the first
    assert run.code == 2
    assert "would both write to a/x.png/" in run.err
    assert not Path("visx-out").exists()
    Path("b/a").unlink()
    run = explain("a", "b", "--json")
    assert [row["name"] for row in run.rows] == ["a/x.png", "b/x.png"]


def test_the_results_of_an_older_run_are_no_images(explain: Any) -> None:
    Path("in").mkdir()
    Path("cat.png").rename("in/cat.png")
    for out in ("in/old", "in/sub/shard"):
        assert explain("in", "-o", out, *(["--shard", "1/1"] if "shard" in out else [])).code == 0
    Path("in/mine").mkdir()
    Path("in/mine/manifest.jsonl").write_text(json.dumps({"image": "a", "files": {"npy": "b"}}) + "\n")
    Path("in/cat.png").rename("in/mine/cat.png")
    Path("in/failed").mkdir()
    Path("in/failed/cat.png").write_bytes(Path("in/mine/cat.png").read_bytes())
    error = {"schema_version": 1, "image": "a", "method": None, "error": {"code": 1, "message": "", "hint": ""}}
    Path("in/failed/manifest.jsonl").write_text(json.dumps(error) + "\n")
    run = explain("in", "--json")
    assert run.code == 0
    assert [row["name"] for row in run.rows] == ["failed/cat.png", "mine/cat.png"]
    assert run.err.splitlines()[:2] == [
        f"passing over in/{name}: results of an older run" for name in ("old", "sub/shard")
    ]
    asked = explain("in/old", "--json", "-o", "other")  # by name it is what was asked for
    assert [Path(row["name"]).parts[0] for row in asked.rows] == ["cat.png"]


@pytest.mark.parametrize(
    "edit",
    [
        {"files": {"npy": "a\0b", "overlay": "a\0b"}}, {"files": {"npy": "\udc80", "overlay": None}}, {"files": {"npy": None, "overlay": None}},
        {"method": ["x"]}, {"label": "\ud800\n"}, {"label": [1]}, {"probability": "x"}, {"image": None}, {"error": {}},
        {"input_size": [10**30, -1]}, {"targets": 0}, {"targets": 2**70}, {"rank": True}, {"image_stat": [[]]}, {"schema_version": "1"},
        {"warnings": [None, "\ud800"]}, {"extras": json.loads("[" * 400 + "]" * 400)},
    ],
)  # fmt: skip
def test_a_manifest_that_somebody_took_apart(explain: Any, edit: dict[str, Any]) -> None:
    assert explain("cat.png").code == 0
    results = {k: v for k, v in everything().items() if k.startswith("visx-out/")}
    manifest = Path("visx-out/manifest.jsonl")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | edit) + "\n")
    run = explain("cat.png")
    assert (run.code, run.out.count("\n")) == (0, 1)
    assert "bug" not in run.err
    assert explain("cat.png", "--json").code == 0
    assert {k: v for k, v in everything().items() if k.startswith("visx-out/")} == results
