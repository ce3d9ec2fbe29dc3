"""A network seen from outside: passes, layers, gradients, ReLU rules. It leaves the model as it was, always.

Nothing is patched and nothing replaced. Everything happens inside `undisturbed` (visx/network/isolation.py); hooks live inside
`with`; ReLU rules hang on the graph of one pass and end with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from itertools import count
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError

from visx.errors import unsupported
from visx.network.behaviour import PLAIN, Behaviour, drawing
from visx.network.fast.exact import AsWritten
from visx.network.fast.fold import Folded, fold
from visx.network.fast.pending import Astray
from visx.network.forms import eager, input_dtype, scripted, submodule, unwrapped, whereabouts
from visx.network.grid import SPATIAL, FeatureGrid, Layer
from visx.network.isolation import hooked, undisturbed
from visx.network.norms import align_norms
from visx.network.outputs import LOGITS, Outputs, ScoreKind, in_full, require_graph
from visx.network.restoring import Kept
from visx.network.rules import Met, Rule, Rules, complete, guide, strangers
from visx.network.settings import seed_all
from visx.targets import Targets

# What runs with batch norms folded into convolutions: nothing; all but single gradients, which depend on rounding; or all.
Folding = Literal["none", "scores", "all"]
R = TypeVar("R")
P = ParamSpec("P")


class _StopForward(Exception):  # noqa: N818 (a signal, no error)
    """Ends a forward pass at a layer whose output is all that is needed."""


@dataclass
class InputGradients:
    """`grads` (B, T, C, H, W) float32; `scores` (B, T); `other_activations`: those that a ReLU rule left alone."""

    grads: Tensor
    scores: Tensor
    other_activations: Counter[str]


@dataclass
class LayerGradients:
    """`activation` (B, K, h, w) and `grads` (B, T, K, h, w) of one and the same tensor, float32; `layer` says how they
    were read."""

    activation: Tensor
    grads: Tensor
    scores: Tensor
    layer: Layer


def _recomputed(
    gradients: Callable[Concatenate[Network, P], R],
) -> Callable[Concatenate[Network, P], R]:
    """`gradients`, and once more where non-reentrant checkpointing has run parts of forward again in the backward pass:
    neither folding nor a rule on calls is in force there, so both are done without from then on."""

    @wraps(gradients)
    def run(network: Network, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with suppress(CheckpointError):
            return gradients(network, *args, **kwargs)
        network.recomputing, network.folding = True, "none"
        with suppress(CheckpointError):
            return gradients(network, *args, **kwargs)
        raise unsupported(*_CHECKPOINTED)

    return run


_CHECKPOINTED = (
    "its forward uses checkpointing, and what that runs again for the backward pass is not what ran before",
    "switch checkpointing off: it saves memory in training, which explaining does not need",
)


class Network:
    """A module seen from outside: logits, gradients and layers of batches of normalised images (B, C, H, W)."""

    def __init__(
        self,
        module: nn.Module,
        *,
        channels_last: bool = False,
        folding: Folding = "none",
        outputs: Callable[[], Outputs] = lambda: LOGITS,
        behaviour: Callable[[], Behaviour] = lambda: PLAIN,
    ) -> None:
        self.module: nn.Module = unwrapped(module)
        self.channels_last = channels_last
        self.folding = folding
        self._outputs = outputs  # found by running the network, so not before it is asked for
        self._behaviour = behaviour  # likewise
        self._seed = 0  # of the picture at work, from which a random forward draws
        self._surrounded = False  # whether the caller has a default device that is not the CPU
        self._initial: Kept | None = None  # what a module that changes itself held when the session began
        self._known: Folded | None = None
        self._as_written: AsWritten | None = None
        self._as_written_for = torch.Size()
        self._layers_as_written: set[str] = set()  # layers before whose output nothing may be folded
        self.recomputing = False  # whether checkpointing was seen to run parts of forward again in the backward pass
        self.local_plans: dict[Any, Any] = {}  # what visx.network.fast.crops has learnt
        self.recorded: dict[torch.Size, dict[str, Layer]] = {}  # by input shape: how every layer's output is read
        self._pooled: dict[torch.Size, FeatureGrid | None] = {}  # and what is averaged before the classifier
        self.dtype, self.device = input_dtype(self.module), whereabouts(self.module)
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
    def layout(self) -> torch.memory_format:
        """The memory format of the module's input. A module handed in may call `.view`, which needs the plain one."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @contextmanager
    def session(self) -> Iterator[Network]:
        """Everything that computes happens inside one; sessions may nest."""
        surrounded, before = torch.get_default_device().type != "cpu", (self._surrounded, self._initial)
        with eager(), undisturbed(self.module):
            self._surrounded = self._surrounded or surrounded
            self._initial = None
            if self.behaviour.changing:
                self._initial = Kept(self.module, parameters=self.behaviour.parameters)
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

    def prepare(self, x: Tensor) -> Tensor:
        """`x` on the module's device, in its precision and layout: a copy where the module would write to it."""
        prepared = x.detach().to(self.device, self.dtype)
        prepared = prepared.contiguous(memory_format=self.layout) if x.dim() == 4 else prepared
        return prepared if self._writes is False or prepared.data_ptr() != x.data_ptr() else prepared.clone()

    def logits(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> class columns (B, K): one forward pass, checked. Gradients flow if the caller enabled them."""
        if len(x) > 1 and self.behaviour.one_row:
            return torch.cat([self.logits(row) for row in x.split(1)])
        if x.requires_grad:
            return self.outputs.columns(self.run(x), x.shape[0])
        given = self.prepare(x)
        output = self.run(given)
        if self._writes is None:
            self._writes = not torch.equal(given, x.detach().to(given))
        return self.outputs.columns(output, x.shape[0])

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
        """Class columns (B, K) in float32, without gradients, folded where it may be. `seeds`: one a row, where rows are
        pictures of their own."""
        if seeds and self.behaviour.one_row:
            rows = []
            for row, seed in zip(x.split(1), seeds, strict=True):
                with self.of_picture(seed):
                    rows.append(self.scores_of(row))
            return torch.cat(rows)
        logits = self.run_folded(x.shape[1:], lambda _: self.logits(x))
        return logits.float() if self.dtype != torch.float64 else logits

    @torch.no_grad()
    def output_of(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A module's output, without gradients; nothing behind it is computed."""
        outputs: list[Tensor] = []

        def stop(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs.append(output)
            raise _StopForward

        with suppress(_StopForward), hooked(layer, stop):
            self.run(self.prepare(x))
        return outputs[0]

    def run_folded(self, shape: torch.Size, run: Callable[[Folded | None], R]) -> R:
        """What a pass over images of this shape (C, H, W) returns, batch norms folded into convolutions where the
        network's folding allows it. `run` is told whether they are, and called again without where its pass goes another
        way than the one that was learnt from.

        What can be folded is learnt once, from a picture of its own, so that it never depends on the images; values
        that changed since are folded anew.
        """
        folded = self._learnt(shape) if self.folding != "none" else None
        if folded:
            with suppress(Astray), folded:
                result = run(folded)
                folded.check()
                return result
        return run(None)

    def run_as_written(self, shape: torch.Size, run: Callable[[], R]) -> R:
        """What a pass over images of this shape (C, H, W) returns, the network run forwards as it is written, to the last
        bit of each ReLU's input, and backwards folded where it may be."""
        if self.folding == "none":
            return run()
        folded = self._learnt(shape)
        if self._as_written is None or self._as_written.folded is not folded or self._as_written_for != shape:
            mixed = self.channels_last and self.device.type == "cpu" and self.dtype == torch.float32
            self._as_written, self._as_written_for = AsWritten(folded, mixed), shape  # it keeps copies by size
        for linking in (True, False):
            self._as_written.linking = linking
            with suppress(Astray), self._as_written:
                return run()
        raise AssertionError("nothing goes astray where nothing is linked")

    def _learnt(self, shape: torch.Size) -> Folded:
        if self._known is None or not self._known.current():
            noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
            self._known = fold(self.module, self.prepare(noise))
        return self._known

    def layer(self, name: str) -> nn.Module:
        """The module at a path; a usage error with near matches where there is none."""
        _, layer = submodule(self.module, name)
        if scripted(layer):
            raise unsupported(
                f"layer {name} is scripted: nothing can look into it", "use the eager module, or backprop"
            )
        return layer

    def feature_layer(self, name: str, shape: torch.Size) -> Layer:
        """The layer at a path, whose output for inputs of this shape (C, H, W) is a feature map; else exit 4."""
        self.layer(name)
        name, _ = submodule(self.module, name)
        if name not in self.recorded.get(shape, {}):
            from visx.network.anatomy import look

            look(self, tuple(shape))
        layer = self.recorded[shape].get(name)
        if layer is None:
            raise unsupported(
                f"layer {name} is not used in the forward pass", "`visx layers MODEL` shows those that are"
            )
        if layer.grid is None:
            raise unsupported(f"layer {name} is not a feature map: {layer.reason}", SPATIAL)
        return layer

    def pooled_grid(self, shape: torch.Size) -> FeatureGrid | None:
        """How the features that CAM's head averages are read, where it averages over all axes but the first and last."""
        if shape not in self._pooled:
            from visx.network.anatomy import look, pooled

            run = look(self, tuple(shape))
            self._pooled[shape] = pooled(run.watcher, run.watcher.functions.head(self.outputs.tensor(run.output)))
        return self._pooled[shape]

    @_recomputed
    def input_gradients(
        self, x: Tensor, targets: Targets, kind: ScoreKind, rule: Rule | None = None, *, one_of_many: bool = False
    ) -> InputGradients:
        """Gradients of every target's score with respect to the input: one forward pass, one backward pass a target.

        For a plain gradient, which ReLUs pass is decided as in the network's own forward pass, to the last bit. A caller
        that sums many gradients, or takes many steps along them, may say `one_of_many`: then all may run folded, which is
        faster. The guided rule does so always: it hardly shows (r above 0.99998 on 24 photographs; the deconvnet's 0.9999).
        """

        def run(_: Folded | None = None) -> tuple[Tensor, Tensor, Met]:
            return self._differentiable(x, self.logits, rule)

        folds = one_of_many or rule == "guided" or self.folding == "all"
        with torch.enable_grad():
            leaf, logits, met = (self.run_folded if folds else self.run_as_written)(x.shape[1:], run)
            if rule is not None and not met.met:
                others = f" (it uses {', '.join(met.others)})" if met.others else ""
                raise unsupported(
                    f"the model has no ReLU for the {rule} rule{others}: the result would be the plain gradient",
                    "use backprop, smoothgrad or integrated_gradients",
                )
            ids = targets.resolve(logits)
            scores = self.outputs.scores(logits, ids, kind)
            grads = _gradients(scores, leaf)
        return InputGradients(grads, scores.detach(), met.others)

    @_recomputed
    def layer_gradients(self, x: Tensor, name: str, targets: Targets, kind: ScoreKind) -> LayerGradients:
        """Gradients with respect to a layer's output. Only what lies behind the layer is differentiated.

        What lies before runs folded if behind the layer no convolution follows that could be: there, ReLUs by the
        thousand would pass what they pass by their forward values, which rounding moves. Else all runs as written.
        """
        if len(x) > 1 and self.behaviour.one_row:
            assert targets.ids is not None, "copies have the targets of their picture"
            fixed = [Targets.fixed(ids) for ids in targets.ids.split(1)]
            rows = [self.layer_gradients(row, name, of, kind) for row, of in zip(x.split(1), fixed, strict=True)]
            activation, grads = torch.cat([r.activation for r in rows]), torch.cat([r.grads for r in rows])
            return LayerGradients(activation, grads, torch.cat([r.scores for r in rows]), rows[0].layer)
        layer = self.feature_layer(name, x.shape[1:])
        found: LayerGradients | None = None
        if name not in self._layers_as_written:
            found = self.run_folded(x.shape[1:], lambda folded: self._layer_gradients(x, layer, targets, kind, folded))
        if found is None:
            self._layers_as_written.add(name)
            found = self.run_as_written(x.shape[1:], lambda: self._layer_gradients(x, layer, targets, kind, None))
        assert found is not None
        return found

    def _layer_gradients(
        self, x: Tensor, layer: Layer, targets: Targets, kind: ScoreKind, folded: Folded | None
    ) -> LayerGradients | None:
        """None where folding changes the very output that was asked for, or the gradient behind it."""
        name = layer.name
        outputs: list[Tensor] = []
        calls = count()

        def cut(module: nn.Module, args: Any, output: Any) -> Tensor | None:
            if next(calls) % layer.runs != layer.call:  # checkpointing runs it again for the backward pass
                return None
            if folded is not None and folded.in_chain():
                raise _StopForward
            outputs.append(layer.output(output, len(x)).detach().requires_grad_())
            if folded is not None:
                folded.active = False  # the gradient is of the network as it is
            with torch.enable_grad():  # the layer may be the last under a no_grad of forward's own
                return outputs[-1].clone()  # what follows may work in place: the leaf keeps the layer's own output

        # Nothing before the layer wants a gradient, so nothing is recorded there; behind it forward decides.
        with torch.enable_grad(), hooked(self.layer(name), cut):
            try:
                logits = self.logits(x)
            except _StopForward:
                return None
            if folded is not None and folded.passed and self.folding != "all":
                return None
            if not outputs:
                raise unsupported(f"layer {name} ran in one forward pass and not in the next")
            require_graph(logits, f"layer {name}")
            ids = targets.resolve(logits)
            scores = self.outputs.scores(logits, ids, kind)
            leaf = outputs[0]
            grads = _gradients(scores, leaf)
        assert layer.grid is not None
        maps = torch.stack([layer.grid.maps(g) for g in grads.unbind(1)], 1)
        return LayerGradients(layer.grid.maps(in_full(leaf.detach())), maps, scores.detach(), layer)

    @_recomputed
    def project(self, x: Tensor, name: str, seed: Callable[[Tensor], Tensor], rule: Rule) -> tuple[Tensor, Tensor]:
        """The projection of a layer's output back to the input: `seed` maps the activation (B, K, h, w) to what is sent
        back. Returns (gradient (B, C, H, W), activation). Nothing behind the layer is computed."""
        layer = self.feature_layer(name, x.shape[1:])
        grid = layer.grid
        assert grid is not None
        outputs: list[Tensor] = []

        def run(x: Tensor) -> Tensor:
            calls = count()

            def stop(module: nn.Module, args: Any, output: Any) -> None:
                if next(calls) == layer.call:
                    outputs.append(layer.output(output, len(x)))
                    raise _StopForward

            with suppress(_StopForward), hooked(self.layer(name), stop):
                self.run(x)
                raise unsupported(f"layer {name} ran in one forward pass and not in the next")
            return outputs[-1]

        with torch.enable_grad():
            leaf, output, _ = self._differentiable(x, run, rule, f"layer {name}")
            maps = grid.maps(output.detach())
            align_norms(output)
            (grad,) = torch.autograd.grad(output, leaf, grid.output(seed(maps), output))
        return in_full(grad), in_full(maps)

    def _differentiable(
        self, x: Tensor, run: Callable[[Tensor], Tensor], rule: Rule | None, what: str = "the input"
    ) -> tuple[Tensor, Tensor, Met]:
        """A leaf of `x`, what `run` makes of it, with every ReLU between them under `rule`, and what the rule met."""
        if rule is not None and (inside := scripted(self.module)):
            raise unsupported(
                f"a ReLU rule cannot reach into the scripted module {inside}",
                "use the eager module, or backprop",
            )
        leaf = self.prepare(x).requires_grad_()
        if rule != "deconv" or self.recomputing:
            output = run(leaf.clone())  # a network may work in place on its input
            require_graph(output, what)
            met = guide(output, rule) if rule else Met()
            if met is not None:
                return leaf, output, met
        with Rules(rule or "guided") as rules:
            output = run(leaf.clone())
        require_graph(output, what)
        rules.found.met += complete(output, rules.rule)
        rules.found.others += strangers(output)
        return leaf, output, rules.found


def _gradients(scores: Tensor, wrt: Tensor) -> Tensor:
    """d scores[b, t] / d wrt[b] -> (B, T, ...) float32; images are independent of each other in eval mode."""
    align_norms(scores)
    targets = scores.shape[1]
    grads = []
    for t in range(targets):
        (grad,) = torch.autograd.grad(scores[:, t].sum(), wrt, retain_graph=t + 1 < targets, allow_unused=True)
        grads.append(torch.zeros_like(wrt) if grad is None else grad)
    return in_full(torch.stack(grads, 1)) if targets > 1 else in_full(grads[0]).unsqueeze(1)
