"""A run that dies at any moment and is started again ends with the bytes of one that did not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NET = """
import torch
from torch import nn
import visx

def build():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return visx.wrap(net, size=32)
"""

# One process that has imported everything forks a child for each attempt and kills it after a random part of the time
# that an undisturbed run takes; then it lets one finish.
KILLER = """
import json, os, random, shutil, signal, sys, time
import torch
import visx.api, visx.draw.overlay, visx.cli.app
import visx.models.sources.python, visx.run.threads, visx.run.pipeline
arguments, kills, seed, lanes = json.loads(sys.argv[1]), *map(int, sys.argv[2:])
torch.set_num_threads(lanes)
if lanes > 1:  # as for a model that visx loads itself, in a larger folder
    visx.models.sources.python.Factory.owned, visx.run.threads.LANES_FROM = True, 8

def start(out):
    pid = os.fork()
    if pid == 0:
        sys.argv = ["visx", *arguments, "-o", out]
        from visx.cli import main
        main()
    return pid

begun = time.monotonic()
_, status = os.waitpid(start("calm"), 0)
assert os.waitstatus_to_exitcode(status) == 3, status  # one image of the folder is broken
whole = time.monotonic() - begun
dice, killed = random.Random(seed), 0
while killed < kills:
    pid = start("disturbed")
    time.sleep(dice.random() * whole)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        killed += 1
    else:  # it had finished before: begin anew
        shutil.rmtree("disturbed")
_, status = os.waitpid(start("disturbed"), 0)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dice = np.random.default_rng(0)
    for number in range(40):
        path = tmp_path / "photos" / f"{number % 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"not an image")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and "manifest" not in p.name}


def lines(out: Path) -> list[str]:
    records = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    return sorted(
        json.dumps({k: v for k, v in r.items() if k not in ("seconds", "written")}, sort_keys=True) for r in records
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("kills", "lanes"), [(20, 1), (5, 2)])
def test_kills_and_a_clean_finish_leave_the_same_bytes(folder: Path, kills: int, lanes: int) -> None:
    arguments = ["explain", "photos", "-M", "net.py:build", "-m", "gradcam,backprop", "-t", "top2", "--batch-size", "4"]
    command = [sys.executable, "-c", KILLER, json.dumps([*arguments, "-q", "--device", "cpu"])]
    command += map(str, (kills, 7, lanes))
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    calm, disturbed = folder / "calm", folder / "disturbed"
    assert int(done.stdout.splitlines()[-1]) == 3
    assert files(disturbed) == files(calm)
    assert lines(disturbed) == lines(calm)
    assert len(lines(calm)) == 40 * 2 * 2 + 1
    assert not [p for p in disturbed.rglob("*") if "tmp" in p.name or "lock" in p.name]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_is_finished_and_says_what_is_left(folder: Path, number: int, code: int) -> None:
    command = [sys.executable, "-c", "from visx.cli import main; main()", "explain", "photos", "-M", "net.py:build", "-m",
               "smoothgrad", "-p", "samples=4000", "--batch-size", "1", "-o", "out", "--json"]  # fmt: skip
    run = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    while "npy" not in run.stdout.readline():
        assert run.poll() is None
    run.send_signal(number)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == code
    assert "left" in errors and "Traceback" not in errors
    for record in map(json.loads, (folder / "out" / "manifest.jsonl").read_text().splitlines()):
        assert "error" in record or (folder / "out" / record["files"]["npy"]).is_file()
    assert not list((folder / "out").rglob(".visx*"))


def test_a_full_disk_stops_the_run_and_room_resumes_it(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    command = [sys.executable, "-c", "from visx.cli import main; main()", "explain", "photos", "-M", "net.py:build",
               "--batch-size", "4", "-q", "-o"]  # fmt: skip
    try:
        full = subprocess.run([*command, "disk/out"], cwd=folder, capture_output=True, text=True)
        assert full.returncode == 1
        assert "No space left" in full.stderr and "Traceback" not in full.stderr
        assert not list((disk / "out").rglob(".visx*"))
        for line in (disk / "out" / "manifest.jsonl").read_text().splitlines():
            json.loads(line)
        subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=True)
        assert subprocess.run([*command, "disk/out"], cwd=folder, capture_output=True).returncode == 3
        assert subprocess.run([*command, "calm"], cwd=folder, capture_output=True).returncode == 3
        assert files(disk / "out") == files(folder / "calm")
        assert lines(disk / "out") == lines(folder / "calm")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_two_runs_into_one_folder_the_second_refuses(folder: Path) -> None:
    from visx.errors import VisxError
    from visx.store.manifest import Journal

    out = folder / "out"
    with Journal(out):
        with pytest.raises(VisxError, match="another run"), Journal(out):
            pass
        with pytest.raises(VisxError, match="another run"), Journal(out, (1, 2)):
            pass
    beside = Journal(out, (2, 2))
    with Journal(out, (1, 2)), Journal(out, (2, 2)), pytest.raises(VisxError, match="another run"), beside:
        pass
    with Journal(out):
        pass
    assert sorted(p.name for p in out.iterdir()) == ["manifest.1-of-2.jsonl", "manifest.2-of-2.jsonl", "manifest.jsonl"]
