"""Jobs: a method with its parameters on a layer, and what a method needs of a model before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from visx.errors import ExitCode, VisxError, unknown, unsupported, usage
from visx.methods.contract import NEEDS, Method
from visx.models import Model
from visx.network.anatomy import ONLY_SCORES, reaches
from visx.network.blackbox import BlackBox
from visx.network.forms import closed, quantised, scripted
from visx.network.outputs import ScoreKind
from visx.network.paths import layer_paths
from visx.params import Params, parse

_FUSING = "name each with a --layer of its own; gradcam and guided_gradcam fuse layers"


@dataclass(frozen=True)
class Job:
    """One method with its parameters, the layer it looks at (`A+B` for one map of two; None where it needs none) and the
    scalar it explains."""

    method: Method
    params: Params
    layer: str | None
    kind: ScoreKind

    @property
    def of_a_class(self) -> bool:
        """Whether its maps are of a target."""
        return self.params.of_a_class()

    @property
    def default_params(self) -> bool:
        """Whether every parameter has its default value and the score is the method's own."""
        return self.params == self.method.params() and self.kind == self.method.score

    @property
    def signed(self) -> bool:
        """Whether negative values of its maps mean something."""
        return self.method.signed_with(self.params.model_dump())


def plan(
    model: Model,
    methods: Iterable[Method],
    layers: Sequence[str] = (),
    params: Mapping[str, Mapping[str, Any] | Params] | None = None,
    score: ScoreKind | None = None,
    on_unfit: Callable[[VisxError], None] | None = None,
) -> list[Job]:
    """The jobs of a run: every method, once a layer where it looks at layers.

    Raises what is wrong (exit 2) and what does not fit the model (exit 4). With `on_unfit`, which is told of them, methods
    that do not fit are left out as long as another one does.
    """
    if score is not None and score not in get_args(ScoreKind):
        raise unknown("score", score, get_args(ScoreKind))
    layers = list(dict.fromkeys("+".join(layer_paths(model.module, name)) for name in layers))
    jobs: list[Job] = []
    unfit: list[VisxError] = []
    for method in methods:
        values = parse(method.params, (params or {}).get(method.name, {}), method.name)
        try:
            jobs += _jobs(model, method, values, layers, score)
        except VisxError as error:
            if error.code != ExitCode.UNSUPPORTED or on_unfit is None:
                raise
            unfit.append(error)
    if unfit and not jobs:
        raise unfit[0]
    for each in unfit:
        assert on_unfit is not None
        on_unfit(each)
    return jobs


def _jobs(model: Model, method: Method, values: Params, layers: Sequence[str], score: ScoreKind | None) -> list[Job]:
    lacking = missing(model, method, values, layers)
    if lacking:
        raise unsupported(f"{method.name} does not fit {model.name}: {lacking}", _alternatives(model, method, values))
    kind = score or method.score
    if kind == "logprob" and not model.outputs.has_probabilities:
        raise unsupported(f"--score logprob: {model.outputs} have no probability", "--score logit")
    if "layer" not in method.needs_with(values):
        return [Job(method, values, None, kind)]
    jobs = []
    for name in layers or [str(model.anatomy.default_layer)]:
        parts = layer_paths(model.module, name)
        if len(parts) > 1 and not method.fuses:
            raise unsupported(f"{method.name} makes no map of several layers: {name}", _FUSING)
        paths = [model.network().feature_layer(part, model.input_shape).name for part in parts]
        jobs.append(Job(method, values, "+".join(paths), kind))
    return jobs


def missing(model: Model, method: Method, params: Params, layers: Sequence[str] = ()) -> str:
    """What `method` needs and `model` does not have, in words; empty where it fits. Every need is checked."""
    needs, anatomy = method.needs_with(params), model.anatomy
    for need in needs - NEEDS.keys():
        raise usage(
            f"{method.name} declares a need that visx does not know: {need!r}", f"these are: {', '.join(NEEDS)}"
        )
    if isinstance(model.source, BlackBox):
        if not needs:
            return ""
        why = model.open()
        if isinstance(model.source, BlackBox):
            needed = " and ".join(text for need, text in NEEDS.items() if need in needs)
            return f"{ONLY_SCORES}; {method.name} needs {needed}{f': {why}' if why else ''}"
        anatomy = model.anatomy
    if needs - {"grad"} and (reason := closed(model.module)):
        return reason
    if "relu" in needs and (inside := scripted(model.module)):
        return f"a ReLU rule does not reach into its scripted module {inside}"
    if "rules" in needs and (inside := scripted(model.module)):
        return f"a relevance rule does not reach into its scripted module {inside}"
    if "grad" in needs and anatomy.no_input_gradient and "gap_head" not in needs:  # CAM differentiates nothing
        looked_at = [part for name in layers for part in layer_paths(model.module, name)] or [
            anatomy.default_layer or ""
        ]
        if needs != {"grad", "layer"} or not all(reaches(model.network(), model.input_shape, n) for n in looked_at):
            return anatomy.no_input_gradient
    if "layer" in needs and (kind := quantised(model.module)):
        return f"it is quantised ({kind}), and so are the values of its layers"
    if "layer" in needs and not layers and anatomy.default_layer is None:
        return anatomy.no_layer
    if "gap_head" in needs and not anatomy.gap_head:
        return anatomy.no_gap_head or f"it has no {NEEDS['gap_head']}"
    if needs & {"attention", "tokens"} and anatomy.no_attention:
        return anatomy.no_attention
    if "tokens" in needs and anatomy.no_tokens:
        return anatomy.no_tokens
    if "relu" in needs and anatomy.relus == 0:
        others = f"; it uses {', '.join(anatomy.others)}" if anatomy.others else ""
        return f"it has no ReLU whose rule could change{others}"
    if "rules" in needs and anatomy.no_rules:
        return anatomy.no_rules
    if "droppable" in needs:
        with model.network().session() as network:
            tokens = network.tokens(model.input_shape)
        return f"it is no {NEEDS['droppable'].removeprefix('a ')}: {tokens}" if isinstance(tokens, str) else ""
    return ""


def _alternatives(model: Model, method: Method, values: Params) -> str:
    from visx.methods import all_methods

    default = method.params()
    if method.needs_with(values) > method.needs_with(default) and not missing(model, method, default):
        return f"{method.name} fits with other parameters, for instance its defaults"
    fitting = [m.name for m in all_methods() if m.name != method.name and not missing(model, m, m.params())]
    return f"these fit: {', '.join(fitting)}" if fitting else ""
