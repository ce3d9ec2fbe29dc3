"""The layers of a recorded pass: one for each module, the run of it that is explained."""

from __future__ import annotations

from visx.network.grid import Layer
from visx.network.record import ModuleRun, Record, ancestors


def layers(record: Record) -> dict[str, Layer]:
    """One layer a module, by its path and in the order of the runs that are explained. Of several runs of a module that is
    the last one that is a feature map and that the explained output was made from; else the last that saw the picture."""
    score = record.score[0].node if record.score is not None else None
    behind = ancestors(score) if score is not None else set()
    runs: dict[str, list[ModuleRun]] = {}
    for run in record.runs:
        runs.setdefault(run.name, []).append(run)
    explained = {}
    for name, several in runs.items():
        seeing = [i for i, run in enumerate(several) if run.node is not None]
        leading = [i for i in seeing if several[i].node in behind] if len(seeing) > 1 else seeing
        maps = (i for i in reversed(leading) if len(leading) < 2 or several[i].grid is not None)
        last = next(maps, (leading or seeing or [len(several) - 1])[-1])
        explained[name] = last, len(seeing)
    counted: dict[str, int] = {}
    result: dict[str, Layer] = {}
    for run in record.runs:
        number = counted[run.name] = counted.get(run.name, -1) + 1
        call, calls = explained[run.name]
        if number == call:
            shape = None if run.shape is None else run.shape[1:]
            result[run.name] = Layer(run.name, run.type, shape, run.read, call, calls, len(runs[run.name]))
    return result
