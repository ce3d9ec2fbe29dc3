"""What every command that computes does first: check what was typed before torch is imported, then load and plan."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visx.cli.options import ComputeOptions, MapOptions
from visx.cli.pictures import PictureOptions
from visx.cli.talk import Talk
from visx.errors import VisxError, usage

if TYPE_CHECKING:
    import torch

    from visx.engine.jobs import Job
    from visx.images.find import Item
    from visx.methods.contract import Method
    from visx.models import Model
    from visx.network.outputs import ScoreKind
    from visx.params import Params
    from visx.store.settings import Settings

_GC_THRESHOLD = 700  # new objects between two collections of garbage: Python's own default


@dataclass(repr=False, eq=False)
class Prepared:
    """A command's options, checked. `names` are the methods' (`all` among them), `pairs` their `--param` pairs, `texts` the
    same by method; `items` are the images, of `listed` ones where they are a shard; `size` is the batch size, None for auto."""

    talk: Talk
    options: MapOptions
    compute: ComputeOptions
    pictures: Mapping[str, Any]
    names: Sequence[str]
    pairs: Sequence[str]
    texts: Mapping[str, Mapping[str, str]]
    items: Sequence[Item]
    listed: int
    shard: tuple[int, int] | None
    size: int | None

    @property
    def idle(self) -> bool:
        """Whether the shard has no images; if so, that is printed."""
        if self.shard and not self.items:
            self.talk.say(f"shard {self.shard[0]}/{self.shard[1]} has none of the {self.listed} images")
        return not self.items

    @cached_property
    def params(self) -> dict[str, Params]:
        """Every method's parameters. A usage error for a value that is not allowed."""
        from visx.methods import get_method
        from visx.params import parse

        return {name: parse(get_method(name).params, values, name) for name, values in self.texts.items()}

    @cached_property
    def device(self) -> torch.device:
        """The device that `--device` names. A usage error where it is not there."""
        return pick_device(self.compute.device)

    def load(self, spec: str) -> Model:
        """The model of a SPEC on the device."""
        return load(spec, self.options, self.pictures, self.device)

    def methods(self, *models: Model) -> list[Method]:
        """The methods of `--method`; `all` stands for every one that fits one of the models. A usage error where `--param`
        names one that is not among them."""
        from visx.params import assign

        methods = list(dict.fromkeys(method for model in models for method in pick_methods(self.names, model)))
        if "all" in self.names:
            assign(self.pairs, {method.name: method.params for method in methods})
        return methods

    def plan(self, model: Model) -> tuple[list[Job], list[VisxError]]:
        """The jobs on a model, and why methods that do not fit it are left out, which is printed."""
        from visx.engine.jobs import plan

        unfit: list[VisxError] = []
        options = self.options
        jobs = plan(model, self.methods(model), split(options.layer), self.params, options.score, unfit.append)
        for error in unfit:
            self.talk.error(str(error))
        return jobs, unfit

    def settings(self, model: Model, out: Path, seed: int, of_classes: bool = True, **rest: Any) -> Settings:
        """The settings of a run of the model into `out`. Raises `VisxError` where `--target` is none of the model's."""
        from visx.store.settings import Settings

        target = model.targets(self.options.target or (), of_classes)
        return Settings(
            out, target, seed, self.compute.precision, self.size, shard=self.shard, listed=self.listed, **rest
        )

    def describe_outputs(self, model: Model, kinds: Iterable[ScoreKind] = ()) -> None:
        """Print what the model's output means, where it is not the plain case, and what that makes of the scores."""
        from visx.models.telling import notes

        reason = f": {model.outputs.seen}" if model.outputs.seen else ""
        meaning = "" if model.outputs.plain else f"{model.name} gives {model.outputs}{reason}"
        scores = dict.fromkeys(map(model.outputs.remark, kinds))
        for text in filter(None, (*notes(model), meaning, *scores)):
            self.talk.say(text)


def prepare(
    talk: Talk,
    options: MapOptions,
    compute: ComputeOptions,
    pictures: PictureOptions,
    *,
    methods: Sequence[str] = (),
    params: Sequence[str] | None = None,
    inputs: Sequence[str] = (),
    out: Path | None = None,
    null: bool = False,
    shard: str | None = None,
    varied: bool = False,
) -> Prepared:
    """Check what a command was given, without torch: usage errors come before a model is loaded.

    Images are looked for in `inputs`, but not in `out`. `params` are the `--param` pairs of the methods (None: all of them);
    where parameters are `varied`, their values are checked with those that they vary with, not here.
    """
    from visx.images import find
    from visx.methods import all_methods
    from visx.params import assign
    from visx.store.manifest import holds_results

    picked = pick_methods(methods)
    size, given, part = compute.size, pictures.given(), parse_shard(shard)
    listed = find.find(inputs, out, sys.stdin.buffer, null, talk.say, holds_results) if inputs else []
    items = find.shard(listed, *part) if part else listed
    pairs = (options.param if params is None else params) or ()
    texts = assign(pairs, {m.name: m.params for m in (all_methods() if "all" in methods else picked)})
    ready = Prepared(talk, options, compute, given, methods, pairs, texts, items, len(listed), part, size)
    if not varied:
        _ = ready.params
    return ready


def load(spec: str, options: MapOptions, pictures: Mapping[str, Any], device: str | torch.device) -> Model:
    """The model of a SPEC on a device, here or in a worker (where a device is picked by its name)."""
    from visx.models import load_model

    place = pick_device(device) if isinstance(device, str) else device
    means, head, labels = options.means, options.head, options.labels
    return load_model(spec, options.weights, labels=labels, device=place, means=means, head=head, **pictures)


def pick_device(text: str) -> torch.device:
    """The device that `--device` names, the process made ready to compute. A usage error where it is not there."""
    import torch

    from visx.run.allocator import keep_freed_memory

    keep_freed_memory()
    gc.freeze()  # what was imported stays
    gc.set_threshold(_GC_THRESHOLD)

    mps = torch.backends.mps.is_available()
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise usage(f"unknown device {text!r}", "auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise usage(
            f"device {text} is not there",
            f"CUDA devices found: {torch.cuda.device_count()}; --device auto takes what there is",
        )
    if device.type == "mps" and not mps:
        raise usage("device mps is not there", "--device auto takes what there is")
    if device.type not in ("cpu", "cuda", "mps"):
        raise usage(f"unknown device {text!r}", "auto, cpu, cuda, cuda:N or mps")
    return device


def pick_methods(names: Sequence[str], model: Model | None = None) -> list[Method]:
    """The methods of these names; `all` stands for every one that fits the model (for none without a model)."""
    from visx.methods import all_methods, get_method

    picked: list[Method] = []
    for name in names:
        if name != "all":
            picked.append(get_method(name))
        elif model is not None:
            from visx.engine.jobs import missing

            picked += [method for method in all_methods() if not missing(model, method, method.params())]
    return list(dict.fromkeys(picked))


def split(values: Sequence[str] | None, default: Sequence[str] = ()) -> list[str]:
    """Repeatable, comma-separated options as one list without doubles; `default` where there are none."""
    parts = [part.strip() for value in values or () for part in value.split(",") if part.strip()]
    return list(dict.fromkeys(parts or default))


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """`--shard I/N` as (I, N), from 1. A usage error for anything else."""
    if text is None:
        return None
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise usage(f"--shard {text!r} is not I/N with I from 1 to N", "for instance --shard 2/8")
    return int(number), int(count)
