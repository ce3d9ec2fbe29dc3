"""ONNX files (extra `visx[onnx]`): classifiers of any framework, run by onnxruntime.

The file says what its input is called, which order of axes, size and element type it has, and what comes last; the rest is
found by running it. How pictures become the input, options or `FILE.json` beside it say (`visx.models.onnx.beside`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from visx.errors import VisxError, unsupported, usage
from visx.images.geometry import Preprocess
from visx.models.model import Weights
from visx.models.onnx import beside, reading
from visx.models.onnx.box import OnnxBox
from visx.models.preprocessing import adapted, of_config
from visx.models.sources.contract import Source
from visx.network.blackbox import BlackBox

SUFFIX = ".onnx"
_IMAGENET: dict[str, tuple[float, ...]] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_GREY: dict[str, tuple[float, ...]] = {"mean": (0.449,), "std": (0.226,)}  # ImageNet's, averaged over the channels
_FEW = 4  # more channels than a picture with opacity has are bands


Layout = Literal["NCHW", "NHWC"]


class Onnx(Source):
    """A network in an ONNX file. Raises `VisxError` where it cannot be read or takes something else than pictures."""

    example = "net.onnx"
    layers_weights = "default"

    def __init__(self, spec: str) -> None:
        self.name, path = spec, Path(spec)
        self.file = reading.read(path)
        self.beside = beside.read(path)
        self.means, self.head = self.beside.means, self.beside.head

    @cached_property
    def _layout(self) -> Layout:
        """The order of axes, found by running where the file leaves both sides of a picture and its channels open."""
        dims = self.file.input.dims
        if dims[1] is not None or dims[3] is not None:
            return _layout(dims)
        size = self.beside.pictures.get("input_size", (3, 224, 224))
        for nhwc in (False, True):
            with suppress(VisxError):
                OnnxBox(self.name, self.file, nhwc=nhwc).examine(tuple(size))
                return "NHWC" if nhwc else "NCHW"
        return "NCHW"

    @classmethod
    def takes(cls, spec: str) -> bool:
        return spec.lower().endswith(SUFFIX)

    def build(self) -> nn.Module:
        raise unsupported(f"{self.name} brings its own weights", "--weights default")

    def preprocess(self) -> Preprocess:
        dims = self.file.input.dims
        layout = self.beside.layout or self._layout
        height, width, channels = (dims[1], dims[2], dims[3]) if layout == "NHWC" else (dims[2], dims[3], dims[1])
        config = self.beside.pictures
        size = config.get("input_size", (3, 224, 224))
        crop = (height or size[1], width or size[2])
        colours = self._colours(channels or size[0])
        if {"crop_pct", "crop_mode"} & config.keys():
            how = of_config({**config, "input_size": (0, *crop), **colours})
        else:
            squash = True if crop[0] != crop[1] else None
            interpolation = config.get("interpolation")
            how = adapted(Preprocess(256, (224, 224)), size=crop, squash=squash, interpolation=interpolation, **colours)
        return replace(how, layout=layout, bgr=self.beside.bgr)

    def _colours(self, channels: int) -> dict[str, Any]:
        """The mean and standard deviation of pixels, where no option states them."""
        if self.file.input.dtype == torch.uint8:  # 0..255, as they are
            return {"mean": (0.0,) * channels, "std": (1 / 255,) * channels}
        plain = {1: _GREY, 3: _IMAGENET}.get(channels, {"mean": (0.0,) * channels, "std": (1.0,) * channels})
        return {key: self.beside.pictures.get(key, plain[key]) for key in ("mean", "std")}

    def labels(self, module: nn.Module | BlackBox) -> tuple[str, ...] | None:
        return self.beside.labels

    def default(self) -> tuple[BlackBox, Weights]:
        how, input = self.preprocess(), self.file.input
        nhwc = how.layout == "NHWC"
        _check(self.name, input.dims, how, self.given, input.dtype)
        box = OnnxBox(self.name, self.file, nhwc=nhwc, bgr=how.bgr)
        self.remarks = tuple(self._said(how))
        return box, Weights(self.file.path.name, self.file.digest)

    def _said(self, how: Preprocess) -> list[str]:
        """What was taken of the preprocessing although nothing stated it."""
        stated = self.given | self.beside.pictures.keys()
        says = f"{self.name}: neither the file nor an option nor {self.file.path.stem}.json says"
        remarks = []
        if self.file.input.dtype != torch.uint8 and not {"mean", "std"} <= stated:
            which = "those of ImageNet are taken" if how.channels in (1, 3) else "0 and 1 are taken"
            remarks.append(f"{says} the mean and standard deviation of pixels: {which} (--mean, --std)")
        dims = self.file.input.dims
        if None in (dims[1:3] if how.layout == "NHWC" else dims[2:]) and not {"size", "input_size"} & stated:
            remarks.append(f"{says} the size: {how.crop[0]} x {how.crop[1]} is taken (--size)")
        return remarks


def _layout(dims: tuple[int | None, ...]) -> Layout:
    """The order of axes of dimensions (N, ., ., .): channels are the few, or alone of a fixed size."""
    first, last = dims[1], dims[3]
    if first is None or last is None:
        return "NHWC" if last is not None else "NCHW"
    return "NHWC" if last <= _FEW < first else "NCHW" if first <= _FEW else "NHWC" if last < first else "NCHW"


def _check(name: str, dims: tuple[int | None, ...], how: Preprocess, given: frozenset[str], dtype: torch.dtype) -> None:
    """A usage error (exit 2) where pictures would not be what the file takes."""
    wanted = (*how.crop, how.channels) if how.layout == "NHWC" else (how.channels, *how.crop)
    if any(d is not None and d != w for d, w in zip(dims[1:], wanted, strict=True)):
        shown = " x ".join("?" if d is None else str(d) for d in dims[1:])
        asked = " x ".join(map(str, wanted))
        options = [f"--{key}" for key in ("size", "layout", "mean", "std") if key in given]
        hint = f"leave out {' and '.join(options)}" if options else "FILE.json beside it says something else"
        raise usage(f"{name} takes pictures of {shown} ({how.layout}), not {asked}", hint)
    if dtype == torch.uint8 and {"mean", "std"} & given:
        raise usage(f"{name} takes pixels of 0..255 (uint8), which are not normalised", "leave out --mean and --std")
