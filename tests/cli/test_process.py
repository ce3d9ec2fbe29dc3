"""The command as a process: imports, streams, signals and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

VISX = [sys.executable, "-c", "from visx.cli import main; main()"]
SLOW_NET = """
import time, torch, visx
from torch import nn
class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)
    def forward(self, x):
        if x[:, 0].std() < 1e-6 and -1.3 < x.mean() < -1:  # at 1.png, when 0.png is done
            time.sleep(60)
        return self.head(self.conv(x).mean((2, 3)))
def slow(): return visx.wrap(Slow(), size=16)
"""


@pytest.mark.parametrize(
    "args", [["--help"], ["methods"], ["methods", "gradcam"], ["methods", "--json"], ["explain", "--help"]]
)
def test_listing_and_help_import_no_torch(args: list[str]) -> None:
    code = (
        "import os, sys\n"
        "def leave(code):\n"
        "    heavy = {'torch', 'torchvision', 'timm', 'cv2', 'skimage', 'sklearn', 'PIL'}\n"
        "    heavy |= {'pydantic'} if sys.argv[1:] == ['--help'] else set()\n"
        "    heavy &= set(sys.modules)\n"
        "    sys.stderr.write(f'{code} {sorted(heavy)}')\n"
        "    sys.stderr.flush()\n"
        "    left(code)\n"
        "left, os._exit = os._exit, leave\n"
        "from visx.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.stderr == "0 []"
    assert done.stdout


@pytest.mark.parametrize(
    ("own", "seen"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"KMP_BLOCKTIME": "0"}, {"KMP_BLOCKTIME": "0"}),
    ],
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(own: dict[str, str], seen: dict[str, str]) -> None:
    code = (
        "import os, sys\n"
        "def leave(code):\n"
        "    names = ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY', 'KMP_BLOCKTIME')\n"
        "    sys.stderr.write(repr({name: os.environ[name] for name in names if name in os.environ}))\n"
        "    sys.stderr.flush()\n"
        "    left(code)\n"
        "left, os._exit = os._exit, leave\n"
        "import visx.cli\n"
        "assert 'torch' not in sys.modules\n"  # OpenMP reads them when torch comes
        "visx.cli.main()\n"
    )
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    env = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run([sys.executable, "-c", code, "--version"], env={**env, **own}, capture_output=True, text=True)
    assert done.stderr == repr(seen)


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize(
    ("sent", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_signals_keep_what_was_finished(sent: signal.Signals, code: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SLOW_NET)
    for i in range(4):
        Image.fromarray(np.full((20, 20, 3), i * 50, np.uint8)).save(tmp_path / f"{i}.png")
    command = [*VISX, "explain", ".", "-M", "net.py:slow", "-m", "backprop", "--batch-size", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not list(tmp_path.glob("visx-out/*/*.png")):
        time.sleep(0.05)
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code, err
    assert f"visx: {said}; what was finished is kept" in err
    assert "Traceback" not in err
    done = list(tmp_path.glob("visx-out/*/*.png"))
    assert done
    assert (tmp_path / "visx-out/manifest.jsonl").read_text().count("\n") == len(done)
    assert not list(tmp_path.rglob(".visx-tmp-*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_and_a_closed_pipe_are_no_tracebacks() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*VISX, "methods"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "visx: No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*VISX, "methods"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for debug in ("", "1"):
        done = subprocess.run([*VISX, "explain", "gone.png"], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "VISX_DEBUG": debug})  # fmt: skip
        assert done.returncode == 2
        assert done.stderr.startswith("visx: no such file")
        assert ("Traceback" in done.stderr) is bool(debug)


def test_garbage_is_looked_for_seldom_until_there_is_something_to_compute() -> None:
    import gc

    from visx.cli.prepare import pick_device

    usual = gc.get_threshold()
    try:
        gc.set_threshold(200_000)
        pick_device("cpu")
        assert gc.get_threshold()[0] == 700
        assert gc.get_freeze_count() > 100_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*usual)
