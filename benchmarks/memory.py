"""The peak memory of `visx explain` over a folder, and over one with ten times as many images.

python benchmarks/memory.py [480] [--method gradcam] [--side 96]

Every run is a process of its own with a tiny network of one's own (32 pixels), so that what grows with the number of
images is not hidden behind a large model: the modules alone are most of what is measured. The third run finds everything
done, and holds the index of the manifest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

NET = """
import visx
from torch import nn

def make():
    return visx.wrap(nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ), size=32)
"""


def peak(command: list[str], folder: Path) -> tuple[float, float]:
    """MiB at most and seconds of a command that must succeed."""
    begun = time.perf_counter()
    child = subprocess.Popen(command, cwd=folder)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)  # it is waited for already
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=480)
    parser.add_argument("--method", default="gradcam")
    parser.add_argument("--side", type=int, default=96, help="pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "net.py").write_text(NET)
        rng = np.random.default_rng(0)
        for part, count in (("few", options.count), ("many", 9 * options.count)):
            (folder / "photos" / part).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (options.side, options.side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / part / f"{number}.jpg")
        visx = [sys.executable, "-c", "from visx.cli import main; main()", "explain", "-q", "-M", "net.py:make"]
        visx += ["-m", options.method]
        few, _ = peak([*visx, "photos/few", "-o", "few"], folder)
        print(f"{options.count} images: {few:.0f} MiB")
        for run in ("", ", all done already"):
            many, seconds = peak([*visx, "photos", "-o", "many"], folder)
            print(f"{10 * options.count} images{run}: {many:.0f} MiB, {many / few:.3f} times as much ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
