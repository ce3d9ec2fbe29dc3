"""The stream of a recorded pass: the tensors that every way from the picture to the score leads through.

In a transformer these are the token sequences before, between and behind its blocks (its residual stream). They are found
in the record of a pass (visx/network/record.py), not by names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from visx.network.grid import FeatureGrid, read
from visx.network.record import ModuleRun, Node, Record, ancestors


@dataclass(frozen=True)
class Tap:
    """A place where a hook sees a tensor of the stream: the first argument (`entering`) or the output of run number `call`
    of the module `name`. `grid` says how the tensor's tokens are read."""

    name: str
    call: int
    entering: bool
    grid: FeatureGrid


def stream(score: Node) -> list[Node]:
    """The operations' results that every way from the picture to `score` leads through, in the order of the pass."""
    nodes = sorted(ancestors(score), key=lambda node: node.index)
    last_use = {before: node.index for node in nodes for before in node.inputs}
    result, reach = [], 0
    for node in nodes:
        if reach <= node.index:  # no operation behind it uses anything from before it
            result.append(node)
        reach = max(reach, last_use.get(node, 0))
    return result


def entrances(record: Record) -> list[Tap] | str:
    """Where the token sequence can be taken hold of before the first attention: the likeliest tap first; or why there is
    none. `record` is closed."""
    score = record.score[0].node if record.score is not None else None
    if score is None:
        return "its output does not depend on the picture"
    attentions = _attentions(score)
    if not attentions:
        return "it has no attention"
    before = [node for node in stream(score) if node.index < attentions[0].index]
    result = [tap for node in reversed(before) for tap in _taps(record, node)]
    if result:
        return result
    grid = read(before[-1].shape, before[-1].places, paired=before[-1].paired)
    if _tokens(before[-1]) is not None:
        return "none of its modules takes or returns the sequence of tokens that its first attention sees"
    what = grid if isinstance(grid, str) else f"the last that everything passes through is a map, {grid.layout}"
    return f"no single sequence of tokens leads to its first attention ({what})"


def blocks(record: Record) -> list[Tap]:
    """The outputs of a transformer's blocks, in order: for each attention the smallest module that takes and returns the
    stream and has the attention inside."""
    score = record.score[0].node if record.score is not None else None
    if score is None:
        return []
    through = set(stream(score))
    inner: dict[Node, tuple[int, Tap]] = {}
    attentions = _attentions(score)
    for run, call in _numbered(record):
        entered = run.inputs[0].node if run.inputs else None
        if run.node not in through or entered not in through or not run.name:
            continue
        assert run.node is not None and entered is not None
        grid, span = _tokens(run.node), run.node.index - entered.index
        if grid is None:
            continue
        for attention in attentions:
            if entered.index < attention.index < run.node.index and span < inner.get(attention, (span + 1,))[0]:
                inner[attention] = span, Tap(run.name, call, False, grid)
    return list(dict.fromkeys(inner[a][1] for a in attentions if a in inner))


def _attentions(score: Node) -> list[Node]:
    return sorted((node for node in ancestors(score) if node.attends), key=lambda node: node.index)


def _taps(record: Record, node: Node) -> list[Tap]:
    """Where hooks see the tensor `node`, if it is a sequence of tokens: as the output of a module, the last to return it
    first; as its input, the outermost first."""
    grid = _tokens(node)
    if grid is None:
        return []
    runs = [(run, call) for run, call in _numbered(record) if run.name]
    leaving = [Tap(run.name, call, False, grid) for run, call in runs if run.node is node]
    entering = [Tap(run.name, call, True, grid) for run, call in runs if run.inputs and run.inputs[0].node is node]
    return leaving[::-1] + sorted(entering, key=lambda tap: tap.name.count("."))


def _numbered(record: Record) -> Iterator[tuple[ModuleRun, int]]:
    """Every run of a module and its number among the runs of that module."""
    counted: dict[str, int] = {}
    for run in record.runs:
        counted[run.name] = counted.get(run.name, -1) + 1
        yield run, counted[run.name]


def _tokens(node: Node) -> FeatureGrid | None:
    """How a tensor is read as a sequence of tokens, one a patch and perhaps others; None where it is none."""
    if len(node.shape) != 3 or node.places is None:
        return None
    grid = read(node.shape, node.places, paired=node.paired)
    fits = isinstance(grid, FeatureGrid) and not grid.single and len(grid.features) == len(grid.places) == 1
    return grid if fits and isinstance(grid, FeatureGrid) else None
