"""From a SPEC and `--weights` to a `Model`, and from a user's module to a `Model`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visx.errors import VisxError, unknown, unsupported, usage
from visx.images.geometry import Preprocess
from visx.models import checkpoint, sources
from visx.models.labels import labels_of
from visx.models.model import Model, Weights
from visx.models.preprocessing import Size, adapted, override, sides, taking_nhwc
from visx.models.seeded import seeded
from visx.models.sources import DEFAULT_MODEL
from visx.models.sources.contract import Source
from visx.network.behaviour import take_as_plain
from visx.network.blackbox import BlackBox
from visx.network.called import TAKES, Called, Takes
from visx.network.fast import plain
from visx.network.meaning import check_means
from visx.network.probe import complete


@torch.inference_mode(False)  # parameters created in inference mode have no gradients
def load_model(
    spec: str = DEFAULT_MODEL,
    weights: str = "default",
    *,
    labels: str | Path | Iterable[str] | Mapping[int, str] | None = None,
    device: str | torch.device = "cpu",
    means: str | None = None,
    head: str | int | None = None,
    size: Size | None = None,
    resize: Size | None = None,
    squash: bool | None = None,
    interpolation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    layout: str | None = None,
    range: Sequence[float] | None = None,
) -> Model:
    """Load a model.

    `spec` is a name or a file, such as "resnet50" or "net.py:make"; `visx.models.sources.FORMS` has all its forms. `weights`
    is `default`, `random` (the same values every time) or a checkpoint file; `labels` a file of class names, or the names
    themselves (a list, or a mapping from index to name); `means` what the output
    means (logits, probabilities, sigmoid, regression) and `head` which member of it is explained, where running the model
    could not tell. From `size` on: how a picture becomes the input where the model's own source says something else or
    nothing (`visx.models.preprocessing` says what each takes; None: as the source says). Raises `VisxError` with
    a usage code for unknown names, with a failure code where weights cannot be had or do not fit.
    """
    check_means(means)
    if not isinstance(spec, str) or not isinstance(weights, (str, Path)):
        raise usage(
            f"load_model() takes the name of a model and of its weights, not {spec!r:.60} and {weights!r:.60}",
            "for instance load_model('resnet50', 'default'); visx.wrap() takes a module",
        )
    given = None if labels is None else labels_of(labels)  # before anything is loaded, so that an error comes at once
    place = _device(device)
    source = sources.find(spec)
    pictures = {
        "size": size, "resize": resize, "squash": squash, "interpolation": interpolation, "mean": mean, "std": std,
        "layout": layout, "range": range,
    }  # fmt: skip
    lacking = [name for name in source.unstated if pictures[name] is None]
    if lacking:
        raise usage(
            f"{spec}: {source.why_unstated}",
            f"say it by {' '.join(f'--{name}' for name in lacking)} ({', '.join(f'{name}=' for name in lacking)} in Python)",
        )
    own = source.preprocess()
    if any(value is not None for value in pictures.values()):
        override(source, pictures)
    with _plain_defaults():  # a factory has been called before, under the user's own defaults
        if weights == "random":
            model = _random(source, spec)
        elif weights == "default":
            module, origin = seeded(source.default)
            names = source.labels(module)
            if source.preprocess().layout == "NHWC" and isinstance(module, nn.Module):
                module = taking_nhwc(module)
            model = _model(source, spec, module, origin, names)
            model.as_default = own if spec == DEFAULT_MODEL else None
            model.remarks = source.remarks
        else:
            model = _from_checkpoint(source, spec, Path(weights))
        if isinstance(model.source, nn.Module):
            model.module = source.sized(model.source)
    model.labels = model.labels if given is None else given
    model.means = means or source.means
    model.head = source.head if head is None else head
    _settle(model, place)
    if source.plain and not isinstance(model.source, BlackBox):
        take_as_plain(model.source)
    return model


def wrap(
    module: nn.Module | Callable[[Any], Any],
    *,
    size: Size | None = None,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    resize: Size | None = None,
    squash: bool | None = None,
    interpolation: str = "bilinear",
    layout: str = "NCHW",
    range: Sequence[float] | None = None,
    labels: str | Path | Iterable[str] | Mapping[int, str] | None = None,
    name: str | None = None,
    means: str | None = None,
    head: str | int | None = None,
    accelerate: bool = True,
    takes: Takes | None = None,
    batch: int | None = None,
) -> Model:
    """A `Model` around your own module, which is used in place and left exactly as it was; or around any callable that
    scores a batch of pictures.

    `size` is the input's (height, width) or one number for both (default: 224; of a callable it must be said); `resize` the
    shorter side before the central crop (default: the same proportion as ImageNet's 256 to 224), `squash` stretches the
    picture to the input instead; `mean` and `std` are of pixels in 0..1, one number a channel: three, one where the module takes grey pictures (N, 1, H, W), or
    as many as it takes. `layout` is NHWC where it takes (N, H, W, C); `range` is (black, white) of numeric pictures. `means`
    says what the output means ("logits", "probabilities", "sigmoid" or "regression") and `head` which member of it is
    explained (a key, an index, or a path such as "out.cls"), where running the module could not tell. `labels` are the classes'
    names: a list or array of them, {index: name}, or a file. `accelerate`: perturbed copies are scored by faster ways on a
    CPU (normalisations folded, another memory layout) if their scores are the module's own, but for rounding; False, or
    `VISX_PLAIN=1` in the environment, runs the module as it is.

    A callable gets one batch (N, C, H, W), float32, normalised by `mean` and `std`, and returns scores (N, K), (N,) or (N, 1)
    as an array, a tensor or nested lists, or several such in a dict or tuple (`head`). `takes` is "numpy" or "torch"; by
    default it is called with an array, and with a tensor where that fails. `batch` is how many pictures it takes at most.
    Methods that need more than scores are refused.
    """
    scores = not isinstance(module, nn.Module) and callable(module) and not isinstance(module, type)
    if not isinstance(module, nn.Module) and not scores:
        kind = "the class" if isinstance(module, type) else "the name" if isinstance(module, str) else "a"
        shown = f"{module!r:.60}" if isinstance(module, str) else getattr(module, "__name__", type(module).__name__)
        raise usage(
            f"wrap() takes a torch.nn.Module or a callable that scores a batch, not {kind} {shown}",
            "an instance: visx.wrap(Net()); of a model by its name: visx.load_model('resnet50')",
        )
    if not scores and (takes is not None or batch is not None):
        raise usage("takes and batch are of a callable", "leave them out for a torch.nn.Module")
    if name is not None and not isinstance(name, str):
        raise usage(f"name is {name!r:.60}", "a text that maps and manifests show for the model")
    source = module if isinstance(module, nn.Module) else _called(module, name, size, takes, layout, batch)
    size = 224 if size is None else size
    crop = sides("size", size)
    if resize is None and squash is None and crop[0] != crop[1]:
        squash = True
    preprocess = adapted(
        Preprocess(256, (224, 224)), size=size, resize=resize, squash=squash, interpolation=interpolation,
        mean=mean, std=std, layout=layout, range=range,
    )  # fmt: skip
    name = name or (source.name if isinstance(source, Called) else type(source).__name__)
    weights = Weights("callable", "")
    if isinstance(source, nn.Module):
        source = taking_nhwc(source) if preprocess.layout == "NHWC" else source
        complete(name, source, (preprocess.channels, *crop))
        weights = Weights("in-memory", checkpoint.digest_state(source))
    return Model(
        name,
        source,
        preprocess,
        weights,
        None if labels is None else labels_of(labels),
        means=check_means(means),
        head=head,
        accelerate=accelerate,
        code=str,  # an empty digest: its sources are not known
    )


def _called(
    call: Callable[[Any], Any], name: str | None, size: Size | None, takes: Any, layout: str, batch: Any
) -> Called:
    """The black box of a callable. Raises `VisxError` (usage, exit 2) for arguments that say something else."""
    shown = getattr(call, "__name__", type(call).__name__)
    if size is None:
        raise usage(f"the size of the pictures that {shown} takes is not said", "visx.wrap(callable, size=224)")
    if takes is not None and takes not in TAKES:
        raise unknown("takes", str(takes), TAKES)
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise usage(f"batch is {batch!r:.60}", "the largest number of pictures that the callable takes at a time")
    fallback = "callable" if shown == "<lambda>" else shown
    return Called(name or fallback, call, takes=takes, nhwc=layout == "NHWC", most=batch)


def _device(device: Any) -> torch.device:
    """The device of that name. Raises `VisxError` (usage, exit 2) where there is no such kind."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise usage(f"unknown device {device!r:.60}", "cpu, cuda, cuda:N or mps, or a torch.device") from None


def _random(source: Source, spec: str) -> Model:
    """The source's model with random weights, the same in every run."""
    module, preprocess = seeded(source.build), source.preprocess()
    complete(spec, module, (len(preprocess.mean), *preprocess.crop))
    return _model(source, spec, module, Weights("random", checkpoint.digest_state(module)), source.labels(module))


def _from_checkpoint(source: Source, spec: str, path: Path) -> Model:
    """The source's model with the weights of a checkpoint file. Raises `VisxError` where they cannot be read or do not fit."""
    remarks: list[str] = []
    state = checkpoint.read(path, remarks.append)
    digest = checkpoint.digest_file(path)
    module = seeded(lambda: source.build_for(state, digest=digest))
    classes = checkpoint.classes_in(module, state)
    if classes is not None and source.resizable:
        module = seeded(lambda: source.build_for(state, classes, digest))
    remarks += checkpoint.fit(module, state, path)
    labels = source.labels(module) if classes is None else None
    model = _model(source, spec, module, Weights(path.name, digest), labels)
    model.remarks = tuple(remarks)
    return model


def _model(
    source: Source, spec: str, module: nn.Module | BlackBox, weights: Weights, labels: tuple[str, ...] | None
) -> Model:
    """The `Model` of a network that a source has built, whatever its weights."""
    return Model(
        spec,
        module,
        source.preprocess(),
        weights,
        labels,
        channels_last=source.channels_last,
        owned=source.owned,
        accelerate=source.owned,
        rounding_safe=source.rounding_safe,
        code=source.code,
    )


@contextmanager
def _plain_defaults() -> Iterator[None]:
    """The context in which torch's defaults are float32 and the CPU, so that a library's model is the same everywhere."""
    dtype = torch.get_default_dtype()
    try:
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
        with torch.device("cpu"):
            yield
    finally:
        if dtype != torch.float32:
            torch.set_default_dtype(dtype)


def _settle(model: Model, device: torch.device) -> None:
    """Freeze a model that visx has loaded and move it to its device, in its fastest memory layout.

    Raises `VisxError` where the device cannot be used. A black box has nothing to freeze, and may have a device of its own.
    """
    if isinstance(model.source, BlackBox):
        model.source.move(device)
        return
    if not isinstance(model.module, nn.Module):
        raise unsupported(f"{model.name} is not a torch.nn.Module")
    complete(model.name, model.module, (len(model.preprocess.mean), *model.input_size))
    with suppress(NotImplementedError):  # an exported program has no modes
        model.module.eval()
    for parameter in model.module.parameters():  # a scripted module has no `requires_grad_`
        parameter.requires_grad_(False)
    try:
        model.module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise VisxError(f"cannot use device {device}: {str(error).splitlines()[0]}") from None
    model.channels_last = model.channels_last and not plain()
    if model.channels_last:
        model.module._apply(_channels_last)


def _channels_last(tensor: Tensor) -> Tensor:
    """The tensor in the channels-last layout where it has four dimensions, as weights of 2-d convolutions have."""
    other = tensor.dim() != 4 or tensor.layout is not torch.strided
    return tensor if other else tensor.contiguous(memory_format=torch.channels_last)
