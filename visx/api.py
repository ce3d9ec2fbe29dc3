"""The Python API: the engine without a shell."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from visx.engine import arguments
from visx.engine.batch import Answer, each_once
from visx.engine.explainer import Explainer, Prepared, prepare, stacked
from visx.engine.jobs import Job, plan
from visx.errors import VisxError, usage
from visx.images.decode import Picture, as_picture
from visx.images.geometry import Placement
from visx.images.numeric import check_range
from visx.models import Model
from visx.network.isolation import refuse_transforms
from visx.network.outputs import ScoreKind

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Result:
    """One explanation.

    `map` is (H, W) float32 at the model's input size, raw; `native` the coarse map before upsampling and `channels` the
    signed (C, H, W) input gradient, where the method has them; `remarks` what was done to the picture (which of its values
    are black and white, pages left out). `overlay()` draws it over the picture.
    """

    map: np.ndarray
    target: int | None
    label: str
    score: float
    score_kind: str
    probability: float | None
    method: str
    layer: str | None
    native: np.ndarray | None = None
    channels: np.ndarray | None = None
    extras: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    _picture: Picture | None = field(default=None, repr=False)
    _place: Placement | None = field(default=None, repr=False)
    _job: Job | None = field(default=None, repr=False)

    def overlay(self, colormap: str = "turbo", alpha: float = 0.5) -> np.ndarray:
        """The picture at full size with the map where the network looked: (H, W, 3) uint8 RGB."""
        from visx.draw.colours import check_colormap
        from visx.engine.picture import draw

        assert self._picture is not None and self._place is not None and self._job is not None
        rgb, colours = self._picture.rgb, check_colormap(colormap)
        return draw(rgb, self._place, self._job, self.map, self.channels, colours, alpha)


@torch.inference_mode(False)  # a notebook may run in it; inputs and half-precision copies made there know no gradients
def explain(
    model: Model | nn.Module | str,
    image: Any,
    method: str | Sequence[str] = "gradcam",
    *,
    layer: str | nn.Module | Sequence[str | nn.Module | Sequence[str | nn.Module]] | None = None,
    target: str | int | Sequence[str | int] = "top1",
    score: ScoreKind | None = None,
    seed: int = 0,
    precision: str = "fp32",
    batch_size: int = 16,
    range: tuple[float, float] | None = None,
    **params: Any,
) -> Any:
    """Explain one image, or a list of them.

    `model` comes from `load_model` or `wrap`; a bare `nn.Module` is wrapped with ImageNet's preprocessing, a name is loaded.
    `image` is a path, an open file or its bytes, a Pillow image or an array (H, W) or (H, W, C): uint8, floats of 0..1, or any
    other numbers with `range`, the (black, white) of numeric pictures (a table of targets, `FILE.csv`, needs paths).
    `method` is a name, or several; `layer` a path (`a.0.b`, `a[-1]`), a module of the model, or several, a map each; `A+B`,
    or a list within the list, is one map of several layers. `params` are the methods'. Returns a `Result`; a list of them where there are several images, methods, layers or targets (`top3`, a list): by image,
    then method, layer and target. Raises `VisxError` for every wrong argument. The model is left as it was.
    """
    refuse_transforms()
    methods, dealt = arguments.methods_of(method, params)
    images, several = arguments.images_of(image)
    texts = arguments.targets_of(target)
    score, precision = arguments.score_of(score), arguments.precision_of(precision)
    seed, batch_size = arguments.whole("seed", seed), arguments.whole("batch_size", batch_size, least=1)
    wrapped = arguments.model_of(model)
    if wrapped is model:
        wrapped.refresh(precision)
    model = wrapped
    jobs = plan(model, methods, arguments.layers_of(layer, model), dealt, score)
    spec = model.targets(texts, any(job.of_a_class for job in jobs))
    shown = model.preprocess.range if range is None else _range(range)
    remarks = {job.kind: model.outputs.remark(job.kind) for job in jobs}
    results: list[Result] = []
    explainer = Explainer(model, model.black_box(precision), batch_size, _warn)
    for chunk in _chunks(images, batch_size):
        prepared = [prepare(model, as_picture(i, shown, model.preprocess.channels), seed) for i in chunk]
        paths = [str(i) if isinstance(i, (str, Path)) else "" for i in chunk]
        specs = [spec.for_image(path, model.names, model.anatomy.classes) for path in paths]
        x, seeds = stacked(prepared), [image.seed for image in prepared]
        with explainer.network.session():
            answers = [explainer.explain(job, x, specs, seeds) for job in jobs]
        for b, one in enumerate(prepared):
            for job, of_job in zip(jobs, answers, strict=True):
                result = of_job[b]
                if isinstance(result, VisxError):
                    raise result
                results += [_result(job, answer, one, remarks[job.kind]) for answer in each_once(result)]
    return results if several or len(results) != 1 else results[0]


def _chunks(images: list[Any], size: int) -> list[list[Any]]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _range(value: Any) -> tuple[float, float]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise usage(f"range={value!r} is not (black, white)", "for instance range=(0, 4095)")
    return check_range(*value)


def _warn(text: str) -> None:
    """What the commands say on standard error, as a Python warning."""
    warnings.warn(text, RuntimeWarning, stacklevel=2)


def _result(job: Job, a: Answer, image: Prepared, remark: str) -> Result:
    warned = (*a.warnings, *([remark] if remark else ()))
    return Result(
        a.map, a.objective.index, a.objective.label, a.score, a.score_kind, a.probability, job.method.name, job.layer,
        a.native, a.channels, a.extras, warned, image.picture.remarks, image.picture, image.place, job,
    )  # fmt: skip
