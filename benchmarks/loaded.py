"""Passes on a quiet machine and beside a process that keeps one core busy: how OpenMP's threads should wait.

    python benchmarks/loaded.py [--models efficientnet_lite0,resnet50] [--batches 1,16] [--rounds 7]

Each contender is a process of its own, since OpenMP reads its settings once; they take turns. "the command" has what
`visx` sets for itself and scores as for many copies, "one pass" the same in one pass on all cores, "torch" sets nothing,
"one lane a core" scores parts of the batch side by side, each on one thread, in a plain pool.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from visx.cli import SPIN_COUNT

SETTINGS = {
    "the command": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "one pass": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "torch": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
    "one lane a core": {},
}
MANY = 0  # instead of a number of lanes: as the command scores copies
SECONDS = 0.7  # a turn


def work(name: str, batch: int, lanes: int) -> None:
    """Answer each line on standard input with the milliseconds an image that passes of a turn took."""
    import torch

    import visx

    torch.manual_seed(0)
    model = visx.load_model(name, "random")
    _, network = model.outputs, model.network()  # what an output means is found before the lanes run
    parts = torch.randn(batch, 3, *model.input_size).chunk(max(1, lanes))
    shared = {id(t): t for t in (*network.module.parameters(), *network.module.buffers())}
    networks = [network] + [network.around(copy.deepcopy(network.module, shared)) for _ in parts[1:]]
    pool = ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,)) if lanes > 1 else None

    def run() -> None:
        if lanes == MANY:
            network.scores_of_many(parts[0])
        elif pool is None:
            network.scores_of(parts[0])
        else:
            list(pool.map(lambda pair: pair[0].scores_of(pair[1]), zip(networks, parts, strict=True)))

    with network.session():
        run()
        print("ready", flush=True)
        for _ in sys.stdin:
            begun, passes = time.perf_counter(), 0
            while time.perf_counter() - begun < SECONDS:
                run()
                passes += 1
            print((time.perf_counter() - begun) / passes / batch * 1000, flush=True)


def start(name: str, batch: int, settings: dict[str, str], lanes: int) -> subprocess.Popen[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, __file__, "--work", name, str(batch), str(lanes)]
    return subprocess.Popen(
        command, env={**plain, **settings}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def turn(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def compare(name: str, batch: int, rounds: int) -> None:
    lanes = {"the command": MANY, "one lane a core": os.cpu_count() or 1}
    processes = {
        setting: start(name, batch, values, lanes.get(setting, 1))
        for setting, values in SETTINGS.items()
        if batch > 1 or setting != "one lane a core"
    }
    for process in processes.values():
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    medians: dict[str, list[float]] = {setting: [] for setting in processes}
    for busy in (False, True):
        neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
        times: dict[str, list[float]] = {setting: [] for setting in processes}
        for _ in range(rounds):
            for setting, process in processes.items():
                times[setting].append(turn(process))
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()
        for setting, values in times.items():
            medians[setting].append(statistics.median(values))
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.close()
    best = [min(values) for values in zip(*medians.values(), strict=True)]
    print(f"### {name}, batch {batch}\n")
    print(
        "| | quiet, ms an image | x best | one core busy, ms an image | x best |\n| --- | ---: | ---: | ---: | ---: |"
    )
    for setting, (quiet, busy_) in medians.items():
        print(f"| {setting} | {quiet:.1f} | {quiet / best[0]:.2f} | {busy_:.1f} | {busy_ / best[1]:.2f} |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="efficientnet_lite0,resnet50")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work[0], *map(int, options.work[1:]))
        return
    print(f"{os.cpu_count()} cores\n")
    for name in options.models.split(","):
        for batch in map(int, options.batches.split(",")):
            compare(name, batch, options.rounds)


if __name__ == "__main__":
    main()
