"""Anatomy: what a network is made of, found by running it once, not from a table of names."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visx.network.choice import Exit, choose
from visx.network.forms import named_modules
from visx.network.grid import FeatureGrid, Layer, read
from visx.network.head import Head, Trace
from visx.network.meaning import recognise
from visx.network.network import Network
from visx.network.outputs import Outputs
from visx.network.probe import DryRun, dry_run
from visx.network.trace import Node, Recorder, ancestors


@dataclass(frozen=True)
class Anatomy:
    """What one run showed. `default_layer` is None where there is none, and `no_layer` says why; `gap_head` says whether
    the logits are one linear map of globally averaged features; `relus` and `others` count activations; `outputs` says
    what comes out; `no_input_gradient` says why none can be had (empty where one can)."""

    layers: tuple[Layer, ...]
    default_layer: str | None
    no_layer: str
    gap_head: bool
    relus: int
    others: tuple[str, ...]
    outputs: Outputs
    no_input_gradient: str = ""

    @property
    def classes(self) -> int:
        """The number of class columns."""
        return self.outputs.classes


class _Watch:
    """Records one pass: functions, operations, and the runs of all modules."""

    def __init__(self) -> None:
        self.functions, self.operations = Trace(), Recorder()
        self.exits: list[Exit] = []

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Record `module` and all of its submodules for the time of the `with`."""
        with ExitStack() as stack:
            for name, child in named_modules(module):
                if isinstance(child, torch.jit.ScriptModule):
                    continue  # it takes no hooks
                entered: list[Any] = []

                def enter(_: nn.Module, args: Any, root: bool = not name, entered: list[Any] = entered) -> None:
                    if root and args and isinstance(args[0], Tensor):
                        self.operations.start(args[0])
                    entered.append(self.operations.node(args[0]) if args else None)

                def leave(m: nn.Module, args: Any, output: Any, name: str = name, entered: list[Any] = entered) -> None:
                    self.exits.append(self._exit(name, m, output, entered.pop() if entered else None))

                stack.callback(child.register_forward_pre_hook(enter).remove)
                stack.callback(child.register_forward_hook(leave).remove)
            stack.enter_context(self.functions)
            stack.enter_context(self.operations)
            yield

    def _exit(self, name: str, module: nn.Module, output: Any, came: Any) -> Exit:
        kind = type(module).__name__
        if not isinstance(output, Tensor):
            return Exit(name, kind, None, None, None, False)
        node = self.operations.node(output)
        edge = torch.autograd.graph.get_gradient_edge(output) if output.requires_grad else None
        return Exit(name, kind, tuple(output.shape), node, edge, node is not None and node is came)

    def layers(self, score: Node | None) -> dict[str, Layer]:
        """One layer a module, in the order of the runs that are explained: of several the last that the score (its node)
        was made from and that is a feature map; else the last that saw the picture."""
        behind = ancestors(score) if score is not None else set()
        runs: dict[str, list[Exit]] = {}
        for run in self.exits:
            runs.setdefault(run.name, []).append(run)
        explained = {}
        for name, several in runs.items():
            seeing = [i for i, run in enumerate(several) if run.node is not None]
            leading = [i for i in seeing if several[i].node in behind] if len(seeing) > 1 else seeing
            read = (i for i in reversed(leading) if len(leading) < 2 or several[i].grid is not None)
            last = next(read, (leading or seeing or [len(several) - 1])[-1])
            explained[name] = last, len(seeing)
        counted: dict[str, int] = {}
        found: dict[str, Layer] = {}
        for run in self.exits:
            number = counted[run.name] = counted.get(run.name, -1) + 1
            call, calls = explained[run.name]
            if number == call:
                shape = None if run.shape is None else run.shape[1:]
                found[run.name] = Layer(run.name, run.type, shape, run.read, call, calls, len(runs[run.name]))
        return found


def examine(
    network: Network,
    shape: tuple[int, ...],
    means: str | None = None,
    head: str | int | None = None,
    labels: int = 0,
) -> Anatomy:
    """Run the network once on a picture (C, H, W) of this shape and describe it. `means` and `head` overrule what its
    output is found to be, `labels` is how many class names there are.

    Costs one pass, and a backward pass through what lies behind the default layer.
    """
    with network.session():
        run = dry_run(network, shape, _Watch)
        headless = getattr(network.module, "num_classes", None) == 0  # timm's way to say so
        outputs = recognise(run.graphed, means=means, head=head, headless=headless, labels=labels)
        watch, logits = run.watcher, outputs.tensor(run.output)
        cam = watch.functions.head(logits)
        gap = cam is not None and (not cam.last_axis or pooled(watch, cam) is not None)
        score = watch.operations.node(logits)
        default, why = choose(watch.exits, logits, score)
        layers = network.recorded[torch.Size(shape)] = watch.layers(score)
    return Anatomy(
        tuple(layers.values()),
        default,
        why,
        gap,
        watch.functions.relus,
        tuple(watch.functions.others),
        outputs,
        run.no_input_gradient,
    )


def pooled(watch: _Watch, head: Head | None) -> FeatureGrid | None:
    """How the features of a head that averages over all axes but the first and last are read; None where something else
    than the cells of a grid is averaged, too."""
    node = watch.operations.node(head.features) if head is not None else None
    found = read(node.shape, node.places, paired=node.paired) if node is not None else ""
    if isinstance(found, str) or found.single:
        return None
    return found if found.cells is None or len(found.cells) == math.prod(found.places) else None


def look(network: Network, shape: tuple[int, ...]) -> DryRun[_Watch]:
    """Run the network once on a picture of this shape, so that it knows how its layers' outputs are read.

    Inside a session: a lane has none of its own, and would wait for the run's.
    """
    run = dry_run(network, shape, _Watch)
    score = run.watcher.operations.node(network.outputs.tensor(run.output))
    network.recorded[torch.Size(shape)] = run.watcher.layers(score)
    return run
