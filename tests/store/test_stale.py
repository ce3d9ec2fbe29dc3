"""Stale results: whatever a result follows from has changed, and it is computed anew; nothing else has, and it is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from in_process import make_work, visx
from visx.errors import VisxError
from visx.gallery.records import read_run
from visx.images.find import find
from visx.images.geometry import Preprocess
from visx.models.fingerprint import Fingerprint, same
from visx.store.read import read_results
from visx.store.recipe import of_preprocessing
from visx.store.recorder import _slug

FILE = """
import json, pathlib, visx
from blocks import Net
HERE = pathlib.Path(__file__).parent
def make():
    net = Net()
    net.gain = json.loads((HERE / "gain.json").read_text())
    return visx.wrap(net, size=24, resize=30, interpolation="bilinear", mean=(.5, .5, .5), std=(.2, .2, .2))
"""
BLOCKS = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.head, self.gain = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(6, 3), 1.0
    def forward(self, x):
        from late import power
        return self.head((self.gain * self.relu(self.conv(x)) ** power).mean((2, 3)))
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_work(tmp_path, "a")
    for name, text in (
        ("net.py", FILE),
        ("blocks.py", BLOCKS),
        ("late.py", "power = 1"),
        ("gain.json", "1.0"),
        ("other.py", "1"),
    ):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def explain(*more: object) -> SimpleNamespace:
    done = visx("explain", "photos", "-M", "net.py:make", "-m", "backprop", "-o", "out", "--json", *more)
    assert done.code == 0, done.err
    return SimpleNamespace(
        records=[json.loads(line) for line in done.out.splitlines()], err=done.err, reused="already there" in done.err
    )


def edit(path: str, old: str, new: str) -> None:
    text = Path(path).read_text()
    assert old in text
    Path(path).write_text(text.replace(old, new))


EDITS = {
    "mean": ("net.py", "mean=(.5", "mean=(.9"), "std": ("net.py", "std=(.2", "std=(.3"), "resize": ("net.py", "resize=30", "resize=40"),
    "size": ("net.py", "size=24", "size=20"), "interpolation": ("net.py", "bilinear", "nearest"),
    "a neighbour": ("blocks.py", "self.relu(self", "torch.sigmoid(self"), "a late neighbour": ("late.py", "1", "2"),
    "what the code reads": ("gain.json", "1.0", "3.0"),
}  # fmt: skip


@pytest.mark.parametrize("edited", EDITS)
def test_what_has_changed_is_computed_anew(edited: str, work: Path) -> None:
    explain()
    assert explain().reused
    edit(*EDITS[edited])
    again = explain()
    assert not again.reused
    assert explain().reused
    fresh = explain("-o", "fresh")  # the right value: what an empty folder gets
    (there,), (here,) = again.records, fresh.records
    assert np.array_equal(np.load(work / "out" / there["files"]["npy"]), np.load(work / "fresh" / here["files"]["npy"]))
    assert there["files"] == here["files"]


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Preprocess)])
def test_every_field_of_the_preprocessing_counts(field: str) -> None:
    plain = Preprocess(32, (24, 24))
    other = dataclasses.replace(plain, **{field: "something else"})
    assert of_preprocessing(plain) != of_preprocessing(other)
    assert json.loads(json.dumps(of_preprocessing(plain))) == of_preprocessing(plain)


def test_what_has_not_changed_is_not_computed_again(work: Path) -> None:
    first = explain()
    edit("other.py", "1", "2")
    Path("blocks.pyc").write_bytes(b"")
    for name in ("blocks.py", "net.py"):
        Path(name).touch()
    assert explain().reused
    assert [r["recipe"] for r in explain().records] == [r["recipe"] for r in first.records]
    assert first.records[0]["preprocessing"]["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("command", [("evaluate",), ("sensitivity", "--vary", "reduce=sum,l2")])
@pytest.mark.parametrize("edited", EDITS)
def test_what_was_measured_on_another_model_does_not_count(command: tuple[str, ...], edited: str, work: Path) -> None:
    def values(out: str) -> list[object]:
        asked = (
            "-M",
            "net.py:make",
            "-m",
            "backprop",
            "-o",
            out,
            "--metrics",
            "deletion",
            "-p",
            "deletion.steps=4",
            "--json",
            "-q",
        )
        done = visx(command[0], "photos", *asked, *command[1:])
        assert done.code == 0, done.err
        return [json.loads(line) for line in done.out.splitlines()]

    before = values("out")
    edit(*EDITS[edited])
    after = values("out")
    assert after == values("fresh")
    assert after != before


def test_a_fingerprint_of_outputs_is_compared_within_rounding() -> None:
    now = Fingerprint("", (1.0, -2.0, 3.0))
    assert same(now.as_dict(), now)
    assert same({"outputs": [1.0 + 1e-6, -2.0, 3.0]}, now)
    assert not same({"outputs": [1.001, -2.0, 3.0]}, now)
    for odd in (None, {}, {"outputs": None}, {"outputs": [1.0]}, {"outputs": ["1", 2, 3]}, []):
        assert not same(odd, now)
    assert same(None, None)
    assert same({"outputs": None}, Fingerprint("", None))


def two_cats(work: Path) -> None:
    for number, folder in enumerate(("d1", "d3")):
        (work / folder).mkdir()
        pixels = np.random.default_rng(number).integers(0, 255, (30, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(work / folder / "cat.png")


@pytest.mark.parametrize("target", ["top1", "0"])
def test_a_result_whose_file_another_took_is_withdrawn_and_said(work: Path, target: str) -> None:
    two_cats(work)

    def run(image: str, asked: str, *more: str) -> SimpleNamespace:
        done = visx("explain", image, "-M", "net.py:make", "-m", "backprop", "-t", asked, "-o", "out", *more)
        assert done.code == 0, done.err
        return done

    Path("blocks.py").write_text(
        BLOCKS.replace("1.0\n", "1.0\n        nn.init.zeros_(self.head.weight); self.head.bias.data[0] = 5\n")
    )
    edit("blocks.py", "zeros_(self.head.weight)", "uniform_(self.head.weight, -1e-3, 1e-3)")
    run("d1/cat.png", "top1")
    said = run("d3/cat.png", target).err
    assert "d1/cat.png" in said and "out" in said
    (result,) = read_results(work / "out")
    assert result.record.image == "d3/cat.png"
    assert "d3/cat.png" not in run("d3/cat.png", target).err.replace("already there", "")
    assert "already there" not in run("d1/cat.png", "top1").err  # its file held the other's map
    (result,) = read_results(work / "out")
    assert result.record.image == "d1/cat.png"
    fresh = visx("explain", "d1/cat.png", "-M", "net.py:make", "-m", "backprop", "-o", "fresh", "-q")
    assert fresh.code == 0
    name = result.record.npy
    assert np.array_equal(np.load(work / "out" / name), np.load(work / "fresh" / name))


def test_a_map_written_by_a_run_that_died_before_its_line(work: Path) -> None:
    two_cats(work)
    args = ("-M", "net.py:make", "-m", "backprop", "-o", "out")
    visx("explain", "d1/cat.png", *args)
    manifest = (work / "out" / "manifest.jsonl").read_bytes()
    visx("explain", "d3/cat.png", *args)
    (work / "out" / "manifest.jsonl").write_bytes(manifest)  # killed between the files and the line
    assert "already there" not in visx("explain", "d1/cat.png", *args).err


def test_a_picture_drawn_otherwise_under_another_target_of_the_same_name(work: Path) -> None:
    first = explain("--colormap", "turbo")
    target = str(first.records[0]["target"])
    picture = work / "out" / first.records[0]["files"]["overlay"]
    drawn = picture.read_bytes()
    explain("-t", target, "--colormap", "viridis", "--alpha", "0.9")
    explain("--colormap", "turbo")
    assert picture.read_bytes() == drawn


def test_a_copied_folder_is_resumed(work: Path) -> None:
    import shutil

    explain()
    shutil.copytree("out", "moved")  # with new times
    for path in Path("moved").rglob("*.npy"):
        path.touch()
    assert explain("-o", "moved").reused


def test_an_older_manifest_is_read_and_computed_anew(work: Path) -> None:
    explain()
    path = work / "out" / "manifest.jsonl"
    record = json.loads(path.read_text())
    for key in ("written", "fingerprint", "preprocessing"):
        del record[key]
    path.write_text(json.dumps(record) + "\n")
    assert len(read_results(work / "out")) == 1
    assert visx("report", "out").code == 0
    again = explain()
    assert not again.reused and "1 result of an older visx computed anew" in again.err
    assert "older" not in explain("-o", "out", "--seed", "0").err


def test_of_two_journals_the_record_that_wrote_last_counts(tmp_path: Path) -> None:
    def line(image: str, modified: int | None) -> str:
        written = {} if modified is None else {"written": {"npy": [1, modified, ""]}}
        files = {"npy": "a.png/x.npy"}
        return json.dumps({"schema_version": 1, "image": image, "method": "m", "files": files, **written}) + "\n"

    for first, second, wins in ((5, 4, "whole"), (4, 5, "shard"), (None, None, "whole"), (7, None, "shard")):
        (tmp_path / "manifest.1-of-2.jsonl").write_text(line("shard", second if first != 7 else 7))
        (tmp_path / "manifest.jsonl").write_text(line("whole", first if first != 7 else None))
        assert [s.record.image for s in read_results(tmp_path)] == [wins]
        assert [r.image for r in read_run(tmp_path).results] == [wins]


def test_two_names_of_one_file_are_one_result(tmp_path: Path) -> None:
    """As on file systems that take capitals for small letters: here by a link."""
    (tmp_path / "cat.png").mkdir()
    (tmp_path / "cat.png" / "x.npy").write_bytes(b"")
    (tmp_path / "Cat.png").symlink_to("cat.png")
    lines = [
        {"schema_version": 1, "image": name, "method": "m", "files": {"npy": f"{name}/x.npy"}}
        for name in ("cat.png", "Cat.png")
    ]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [s.record.image for s in read_results(tmp_path)] == ["Cat.png"]


@pytest.mark.parametrize("pair", [("Cat", "cat"), ("caf\u00e9", "cafe\u0301")])
@pytest.mark.parametrize("one", [True, False])
def test_names_that_the_file_system_takes_for_one(
    pair: tuple[str, str], one: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in pair:
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    if one:
        monkeypatch.setattr(Path, "exists", lambda self: True)
        with pytest.raises(VisxError, match="would both write"):
            find([str(tmp_path)], tmp_path / "out")
    else:
        assert len(find([str(tmp_path)], tmp_path / "out")) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{name}.png" for name in pair)


def test_layers_whose_names_look_alike_in_a_file_name_do_not_meet() -> None:
    assert len({_slug(name) for name in ("a.b", "a-b", "a/b", "a b", "a:b")}) == 5
    assert _slug("layer4.1.conv2") == "layer4.1.conv2"


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        ("cat dog bird", "dog cat bird", "cat"),  # the label is another class now
        ("cat dog bird", "cat bird dog", "bi"),  # so is the one that a part of a label fits
        ("cat dog bird", "lynx wolf crow", "top2"),  # the classes are called otherwise
    ],
)
def test_labels_that_were_edited(before: str, after: str, target: str, work: Path) -> None:
    labels = work / "labels.txt"
    labels.write_text(before.replace(" ", "\n"))
    asked = ("--labels", labels, "-t", target)
    explain(*asked)
    assert explain(*asked).reused
    labels.write_text(after.replace(" ", "\n"))
    again = explain(*asked)
    assert not again.reused
    assert explain(*asked).reused
    fresh = explain(*asked, "-o", "fresh")
    keys = ("target", "label", "score", "files")
    assert [[r[k] for k in keys] for r in again.records] == [[r[k] for k in keys] for r in fresh.records]
    standing = [
        [s.record.as_dict()[k] for k in keys] for s in read_results(work / "out")
    ]  # what it was called is withdrawn
    assert standing == [[r[k] for k in keys] for r in again.records]


def test_an_edited_picture_whose_likeliest_class_is_another_is_one_result(work: Path) -> None:
    Path("blocks.py").write_text(BLOCKS.replace("return ", "return x.mean((2, 3)) + 0 * "))  # a class a colour
    for target, colour in enumerate(("red", "lime", "blue")):
        Image.new("RGB", (30, 30), colour).save("photos/a.png")
        (record,) = explain().records
        (result,) = read_results(work / "out")
        assert result.record.files == record["files"] and record["target"] == target


def test_a_shard_after_a_whole_run_of_a_picture_that_was_edited_since(work: Path) -> None:
    explain()
    Image.new("RGB", (30, 30), (1, 200, 3)).save("photos/a.png")
    assert not explain("--shard", "1/1").reused
    assert explain("--shard", "1/1").reused
    assert explain().reused
