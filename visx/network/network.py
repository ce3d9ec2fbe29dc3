"""A torch module seen from outside: its passes, its layers, and its gradients (visx/network/gradients.py).

The module is left as it was, whatever happens: nothing is patched or replaced, everything runs inside `undisturbed`
(visx/network/isolation.py), and hooks are removed at the end of their `with`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from visx.errors import unsupported
from visx.network import gradients, probe, token_trial
from visx.network.behaviour import PLAIN, Behaviour, drawing
from visx.network.blackbox import BlackBox
from visx.network.fast import Accelerated
from visx.network.forms import at, eager, input_dtype, scripted, submodule, unwrapped, whereabouts
from visx.network.grid import SPATIAL, Layer
from visx.network.isolation import StopForward, hooked, undisturbed
from visx.network.layers import layers
from visx.network.outputs import LOGITS, Outputs, in_full
from visx.network.products import queries_read
from visx.network.record import Record
from visx.network.relevance import relevance
from visx.network.restoring import SavedState
from visx.network.scorer import Patch, Patched
from visx.network.settings import default_device, seed_all
from visx.network.tokens import Tokens
from visx.network.trace import glance


class Network(BlackBox):
    """A module seen from outside: logits, gradients and layers of batches of normalised images (B, C, H, W).

    `owned`: whether visx has loaded the module; `accelerate`: whether faster ways to the same answers are taken, and
    `rounding_safe`: whether single gradients bear their rounding (visx/network/fast/accelerated.py).
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        channels_last: bool = False,
        owned: bool = False,
        accelerate: bool = False,
        rounding_safe: bool = False,
        outputs: Callable[[], Outputs] = lambda: LOGITS,
        behaviour: Callable[[], Behaviour] = lambda: PLAIN,
    ) -> None:
        self.module: nn.Module = unwrapped(module)
        self.channels_last = channels_last
        self.owned, self.accelerate, self.rounding_safe = owned, accelerate, rounding_safe
        self._outputs = outputs  # found by running the network, so not before it is asked for
        self._behaviour = behaviour  # likewise
        self._seed = 0  # of the picture at work, from which a random forward draws
        self._surrounded = False  # whether the caller has a default device that is not the CPU
        self._initial: SavedState | None = None  # what a module that changes itself held when the session began
        self.recomputing = False  # whether checkpointing was seen to run parts of forward again in the backward pass
        self._plain_names: dict[str, str] = {}  # by the path that was asked for
        self.recorded: dict[torch.Size, dict[str, Layer]] = {}  # by input shape: how every layer's output is read
        self._record: Record | None = None  # of the latest pass over noise
        self.dtype, self.device = input_dtype(self.module), whereabouts(self.module)
        self.fast = Accelerated(self)
        self._tokens: tuple[Record, Tokens | str] | None = None  # and the record from which they were learnt
        self._writes: bool | None = None  # whether the module works in place on its input; not known before a pass

    @property
    def outputs(self) -> Outputs:
        """What the module's raw output means."""
        return self._outputs()

    @property
    def behaviour(self) -> Behaviour:
        """What the module's output for a picture depends on besides the picture."""
        return self._behaviour()

    @property
    def steady(self) -> bool:
        """Whether an output depends on its picture alone, and a pass changes nothing in the module."""
        return not self.behaviour.one_row and not self.behaviour.changing

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of the module's input. A module handed in may call `.view`, which needs the plain one."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @contextmanager
    def session(self) -> Iterator[Network]:
        """A session with the module (`isolation.undisturbed`). Everything that computes is called inside one; sessions may nest."""
        surrounded, before = default_device().type != "cpu", (self._surrounded, self._initial)
        with eager(), undisturbed(self.module):
            self._surrounded = self._surrounded or surrounded
            self._initial = None
            if self.behaviour.changing:
                self._initial = SavedState(self.module, parameters=self.behaviour.parameters)
            try:
                yield self
            finally:
                if self._initial is not None:
                    self._initial.restore()
                self._surrounded, self._initial = before

    @contextmanager
    def of_picture(self, seed: int) -> Iterator[None]:
        """Inside, passes are over one picture and its copies, with this seed. It counts only where forward draws random
        numbers."""
        before, self._seed = self._seed, seed
        try:
            yield
        finally:
            self._seed = before

    def prepare(self, x: Tensor, layout: torch.memory_format | None = None) -> Tensor:
        """`x` on the module's device, in its precision, and in a memory format (None: the network's own): a copy where the
        module would write to it."""
        prepared = x.detach().to(self.device, self.dtype)
        prepared = prepared.contiguous(memory_format=layout or self.layout) if x.dim() == 4 else prepared
        return prepared if self._writes is False or prepared.data_ptr() != x.data_ptr() else prepared.clone()

    def logits(self, x: Tensor, layout: torch.memory_format | None = None) -> Tensor:
        """(B, C, H, W) -> values (B, ...), class columns (B, K) of a classifier: one forward pass, checked. Gradients flow
        if the caller enabled them."""
        if len(x) > 1 and self.behaviour.one_row:
            return torch.cat([self.logits(row, layout) for row in x.split(1)])
        if x.requires_grad:
            return self.outputs.values(self.run(x), x.shape[0])
        given = self.prepare(x, layout)
        output = self.run(given)
        if self._writes is None:
            self._writes = not torch.equal(given, x.detach().to(given))
        return self.outputs.values(output, x.shape[0])

    def run(self, x: Tensor) -> Any:
        """The module's raw output for prepared pictures (B, C, H, W), in one pass."""
        behaviour = self.behaviour
        if not behaviour.one_row and not self._surrounded:
            return self.module(x)
        with ExitStack() as stack:
            if self._surrounded:
                stack.enter_context(self.device)  # where the tensors that forward makes are wanted
            if behaviour.random:
                stack.enter_context(drawing)
                seed_all(self._seed)
            if behaviour.stateful and self._initial is not None:
                self._initial.restore()
            return self.module(x)

    @torch.no_grad()
    def scores_of(self, x: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """Values (B, ...), class columns (B, K) of a classifier, in float32, without gradients, by the fastest way. `seeds`:
        one a row, where rows are pictures of their own."""
        if seeds and self.behaviour.one_row:
            rows = []
            for row, seed in zip(x.split(1), seeds, strict=True):
                with self.of_picture(seed):
                    rows.append(self.scores_of(row))
            return torch.cat(rows)
        return self._full(self.fast.scores(x))

    @torch.no_grad()
    def scores_of_many(self, x: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        """As `scores_of`, of one batch among many: parts of it may be scored side by side."""
        return self.scores_of(x, seeds) if self.behaviour.one_row else self._full(self.fast.scores_of_many(x))

    def _full(self, values: Tensor) -> Tensor:
        """Values in float32, or in the float64 that they have."""
        return values.float() if self.dtype != torch.float64 else values

    @torch.no_grad()
    def patched(self, image: Tensor, patches: Sequence[Patch]) -> Patched | None:
        """A faster way to score copies of an image (C, H, W) with one of `patches` filled; None where there is none."""
        return self.fast.patched(image, patches)

    def tokens(self, shape: torch.Size) -> Tokens | str:
        """The tokens of pictures of this shape (C, H, W), any of which can be left out, or why none can, in words. Call inside a
        session."""
        record = self.record(shape)
        if self._tokens is None or self._tokens[0] is not record:
            self._tokens = record, token_trial.learn(self, shape)
        return self._tokens[1]

    @torch.no_grad()
    def output_of(
        self, layer: nn.Module, x: Tensor, layout: torch.memory_format | None = None, call: int = 0
    ) -> Tensor:
        """A module's output in its run number `call`, without gradients; nothing behind it is computed."""
        outputs: list[Tensor] = []
        calls = count()

        def stop(module: nn.Module, args: Any, output: Tensor) -> None:
            if next(calls) == call:
                outputs.append(output)
                raise StopForward

        with suppress(StopForward), hooked(layer, stop):
            self.run(self.prepare(x, layout))
        return outputs[0]

    def features(self, x: Tensor, name: str) -> tuple[Tensor, Layer]:
        """The feature maps (B, K, h, w) of the layer at a path, in float32 or better, without gradients; and the layer.
        Raises `VisxError` (exit 4) where its output is no feature map."""
        layer = self.feature_layer(name, x.shape[1:])
        output = layer.output(self.output_of(self.layer(name), x, call=layer.call), len(x))
        assert layer.grid is not None
        return in_full(layer.grid.maps(output)), layer

    def around(self, module: nn.Module) -> Network:
        """A network like this one, of another module: a copy of this one's."""
        return Network(
            module,
            channels_last=self.channels_last,
            owned=self.owned,
            accelerate=self.accelerate,
            rounding_safe=self.rounding_safe,
            outputs=self._outputs,
            behaviour=self._behaviour,
        )

    def converted(self, dtype: torch.dtype) -> Network:
        """The same network in another precision."""
        return self.around(copy.deepcopy(self.module).to(dtype))

    def layer(self, name: str) -> nn.Module:
        """The module at a path; a usage error with near matches where there is none."""
        layer = at(self.module, name)
        if scripted(layer):
            raise unsupported(
                f"layer {name} is scripted: nothing can look into it", "use the eager module, or backprop"
            )
        return layer

    def feature_layer(self, name: str, shape: torch.Size) -> Layer:
        """The layer at a path, whose output for inputs of this shape (C, H, W) is a feature map; else exit 4."""
        if name not in self._plain_names:
            self.layer(name)
            self._plain_names[name], _ = submodule(self.module, name)
        name = self._plain_names[name]
        if name not in self.recorded.get(shape, {}):
            self.look(shape)
        layer = self.recorded[shape].get(name)
        if layer is None:
            raise unsupported(
                f"layer {name} is not used in the forward pass", "`visx layers MODEL` shows those that are"
            )
        if layer.grid is None:
            raise unsupported(f"layer {name} is not a feature map: {layer.reason}", SPATIAL)
        return layer

    def record(self, shape: torch.Size, *, operations: bool = True) -> Record:
        """What a pass over a noise picture of this shape (C, H, W) shows of the module as it is now. Without `operations` the
        places of values need not be known."""
        known = self._record
        if known is None or not known.of(shape) or not known.current() or (operations and not known.operations):
            known = self.look(shape) if operations else glance(self.module, self.prepare(probe.noise(shape)))
            self._record = known
        return known

    def look(self, shape: torch.Size) -> Record:
        """Run the network once on a picture of this shape (C, H, W), and remember what that shows.

        Inside a session: a lane has none of its own, and would wait for the run's.
        """
        record = probe.look(self.module, self.prepare(probe.noise(shape)))
        self.remember(shape, record, self.outputs)
        return record

    def remember(self, shape: torch.Size, record: Record, outputs: Outputs) -> None:
        """Remember the record of a pass whose outputs mean this, and how its layers are read."""
        graphed = outputs.tensor(record.graphed)
        if isinstance(graphed, Tensor):
            record.reads = queries_read(record, graphed)
        record.close(outputs.tensor(record.output))
        self.recorded[shape] = layers(record)
        self._record = record

    # These take a Network as their first argument, as methods do.
    input_gradients = gradients.input_gradients
    layer_gradients = gradients.layer_gradients
    layers_gradients = gradients.layers_gradients
    project = gradients.project
    relevance = relevance
