"""`visx explain`: what it writes, and how it answers everything a stranger may do to it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visx.network.network import Network


def files(root: str = "visx-out") -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in Path(root).rglob("*") if p.is_file()}


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows with every forward pass on pictures (the look at the anatomy aside)."""
    seen: list[int] = []
    logits = Network.logits

    def counted(self: Network, x: Any) -> Any:
        seen.append(len(x))
        return logits(self, x)

    monkeypatch.setattr(Network, "logits", counted)
    return seen


def folder(count: int = 3) -> None:
    Path("in").mkdir()
    for i in range(count):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (30 + i, 40, 3), dtype=np.uint8)).save(f"in/{i}.png")


def test_results_and_manifest(explain: Any) -> None:
    run = explain("cat.png", "-m", "gradcam,backprop", "-t", "top2", "--json", "--raw-channels")
    assert run.code == 0
    assert len(run.rows) == 4
    assert run.rows == [json.loads(line) for line in Path("visx-out/manifest.jsonl").read_text().splitlines()]
    for row in run.rows:
        assert next(iter(row)) == "schema_version"
        assert len(row["weights"]["sha256"]) == 64
        values = np.load(Path("visx-out", row["files"]["npy"]))
        assert values.dtype == np.float32
        assert values.shape == (32, 32)
        assert row["min"] == pytest.approx(values.min())
        with Image.open(Path("visx-out", row["files"]["overlay"])) as picture:
            assert picture.size == (60, 40)
        if row["method"] == "backprop":
            channels = np.load(Path("visx-out", row["files"]["channels"]))
            assert channels.shape == (3, 32, 32)
            assert channels.min() < 0
            assert np.abs(channels).max(0) == pytest.approx(values)


def test_no_overlay_quiet_and_several_layers(explain: Any) -> None:
    run = explain("cat.png", "--no-overlay", "-q", "-l", "conv", "-l", "relu", "-p", "relu=false")
    assert (run.code, run.out, run.err) == (0, "", "")
    names = sorted(n for n in files() if n != "manifest.jsonl")
    assert [n.split("/")[1].split(".")[1] for n in names] == ["conv", "relu"]
    assert all(n.endswith(".npy") for n in names)


def test_resume_computes_nothing_and_changes_nothing(explain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder()
    assert explain("in", "-t", "top2").code == 0
    before = files()
    seen = passes(monkeypatch)
    run = explain("in", "-t", "top2", "--json")
    assert (run.code, seen, len(run.rows)) == (0, [], 6)
    assert files() == before
    explain("in", "-t", "top2", "--overwrite")
    assert seen
    after = files()
    assert {k: v for k, v in after.items() if k != "manifest.jsonl"} == {
        k: v for k, v in before.items() if k != "manifest.jsonl"
    }


def test_resume_recomputes_what_is_missing_changed_or_half_there(explain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder()
    explain("in", "-t", "top2")
    before = files()
    seen = passes(monkeypatch)

    def again(*args: str) -> int:
        seen.clear()
        assert explain("in", "-t", "top2", *args).code == 0
        return len(seen)

    first = next(n for n in before if n.startswith("0.png") and n.endswith(".png"))
    Path("visx-out", first).unlink()
    assert again() > 0
    journal = Path("visx-out/manifest.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[1:6]) + lines[6 % len(lines)][:40])  # one record of two lost, a torn last line
    assert again() > 0
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    assert again() == 0
    assert again("--colormap", "viridis") > 0
    assert again("--colormap", "viridis") == 0
    assert again("-p", "relu=false") > 0
    assert again("--colormap", "turbo") > 0
    assert {k: v for k, v in files().items() if k in before and k != "manifest.jsonl"} == {
        k: v for k, v in before.items() if k != "manifest.jsonl"
    }
    Path("in/1.png").write_bytes(Path("in/2.png").read_bytes())
    assert again() > 0
    journal.write_text(
        '{"schema_version": 1, "recipe": "x"}\n[]\n{"schema_version": 1, "recipe": 3, "files": {"npy": 3}}\n'
    )
    assert again() > 0


def test_one_bad_image_does_not_stop_the_others(explain: Any) -> None:
    folder()
    Path("in/text.jpg").write_text("no picture")
    Path("in/empty.png").touch()
    Path("in/0.png").write_bytes(Path("in/0.png").read_bytes()[:300])
    run = explain("in", "--json")
    assert run.code == 3
    errors = [row for row in run.rows if "error" in row]
    assert [Path(row["image"]).name for row in errors] == ["0.png", "empty.png", "text.jpg"]
    assert all(row["error"]["code"] == 1 for row in errors)
    assert len(run.rows) == 5
    assert sum(line.startswith("visx: in/") for line in run.err.splitlines()) == 3
    assert not [n for n in files() if n.startswith(("0.png", "text", "empty", ".visx"))]
    assert explain("in/text.jpg", "-o", "other").code == 1


def test_one_folder_that_cannot_be_written_does_not_stop_the_others(explain: Any) -> None:
    folder()
    Path("visx-out").mkdir()
    Path("visx-out/1.png").touch()
    run = explain("in")
    assert run.code == 3
    assert "in/1.png: cannot write to visx-out/1.png: a file is in the way" in run.err
    assert {n.split("/")[0] for n in files()} == {"0.png", "1.png", "2.png", "manifest.jsonl"}
    Path("file").touch()
    run = explain("in", "-o", "file/x")
    assert run.code == 1
    assert "a file is in the way" in run.err


def test_a_directory_that_cannot_be_listed_is_one_failure(explain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder()
    Path("in/locked").mkdir()
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    run = explain("in")
    assert run.code == 3
    assert "in/locked: cannot read the directory: Permission denied" in run.err
    assert run.out.count("\n") == 3


def test_a_failing_disk_leaves_nothing_half_written(explain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        write(self, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    run = explain("cat.png")
    assert run.code == 1
    assert "No space left" in run.err
    assert {n for n in files() if n != "manifest.jsonl"} == set()


def test_labels_find_targets(explain: Any) -> None:
    for text, target in [("cat", 2), ("tom", 3), ("DOG", 4), ("1", 1)]:
        assert explain("cat.png", "-t", text, "--json", "-o", text).rows[0]["target"] == target
    Path("names.json").write_text('["a", "b", "c", "d", "e f"]')
    assert explain("cat.png", "--labels", "names.json", "-t", "e f", "--json", "-o", "n").rows[0]["label"] == "e f"
    Path("short.txt").write_text("a\nb\n")
    assert "2 labels for a model of 5" in explain("cat.png", "--labels", "short.txt").err


def test_targets_from_a_table(explain: Any) -> None:
    folder()
    Path("t.csv").write_text("image,target\n0.png,dog\n./in/1.png,0\n")
    run = explain("in", "-t", "t.csv", "--json")
    assert run.code == 3
    assert [row.get("target") for row in run.rows if "error" not in row] == [4, 0]
    assert "no target for this image" in run.err
    Path("t.csv").write_text("0.png\n")
    assert explain("in", "-t", "t.csv").code == 2


def test_nan_logits_for_one_image_and_a_gradient_of_zero(explain: Any) -> None:
    folder(2)
    Image.new("RGB", (40, 40), "white").save("in/white.png")
    run = explain("in", "--json", net="nan")
    assert run.code == 3
    assert "logits for this image are not finite" in run.err
    assert len([row for row in run.rows if "error" not in row]) == 2
    run = explain("cat.png", "--json", "-o", "z", net="zero")
    assert run.code == 0
    assert "zero everywhere" in run.rows[0]["warnings"][0]


def test_paths_on_standard_input(explain: Any) -> None:
    names = ["with space.png", "two\nlines.png", os.fsdecode(b"\xff\xfe.png"), "x" * 251 + ".png"]
    for name in names:
        Path(name).write_bytes(Path("cat.png").read_bytes())
    absolute = str(Path("cat.png").resolve())
    stdin = b"\0".join(map(os.fsencode, [*names, "../" + Path.cwd().name + "/cat.png", absolute]))
    run = explain("-", "-0", "--json", stdin=stdin)
    assert run.code == 0, run.err
    assert len(run.rows) == 6
    assert len([p for p in Path("visx-out").iterdir() if p.suffix == ".png"]) == 4
    assert not [p for p in Path("..").iterdir() if p != Path("..") / Path.cwd().name and p.suffix == ".npy"]
    run = explain("-", stdin=b"cat.png\0cat.png")
    assert run.code == 2
    assert "-0" in run.err
    assert explain("-", stdin=b"\n").code == 2
    assert explain("-", "-o", "crlf", stdin=b"cat.png\r\ngone.png\r\n").code == 3


def test_a_plain_module_and_the_streams(visx: Any) -> None:
    run = visx("explain", "cat.png", "-M", "nets.py:plain", "-m", "backprop")
    assert run.code == 0
    assert run.out.count("\n") == 1
    assert visx("explain", "cat.png", "-M", "nets.py").code == 2
    assert visx("explain", "cat.png", "-M", "gone.py:f").code == 2
    assert visx("explian").err.startswith("visx: No such command")
    assert visx().code == 2
    assert visx().err == ""


def test_of_several_methods_those_that_fit_are_done(visx: Any) -> None:
    """Exit 3 with a line for each that does not; exit 4 where none fits."""
    folder(1)
    Path("hard.py").write_text(
        "import torch, visx\n"
        "class Hard(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 3)\n"
        "    @torch.no_grad()\n"
        "    def forward(self, x):\n"
        "        return self.head(self.conv(x).sigmoid().mean((2, 3)))\n"
        "def make(): return visx.wrap(Hard(), size=16)\n"
    )
    args = ("explain", "in", "-M", "hard.py:make", "-p", "rise.masks=4", "--json")
    run = visx(*args, "-m", "backprop,rise,gradcam")
    assert run.code == 3
    assert [row["method"] for row in run.rows] == ["rise"]
    assert "backprop does not fit" in run.err and "gradcam does not fit" in run.err
    assert visx(*args[:-3], "-m", "backprop,gradcam").code == 4
    assert visx("evaluate", "in", "-M", "hard.py:make", "-m", "cam,backprop", "--metrics", "deletion").code == 3
