"""Memory that a batch frees is there for the next one, in whichever thread it runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, threading
import numpy as np
from visx.run.allocator import keep_freed_memory

keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def batch():
    for _ in range(3):
        blocks = [np.ones(30_000_000, np.uint8) for _ in range(3)]
        before.append(faults())
        del blocks

for run in (batch, lambda: [t.start() or t.join() for t in [threading.Thread(target=batch)]]):
    before = []
    run()
    print(before[-1] - before[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_what_is_freed_is_not_faulted_in_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    faults = list(map(int, done.stdout.split()))
    assert max(faults) < 1000, "two more batches of 90 MB are 44,000 pages"
