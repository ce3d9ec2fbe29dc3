"""Sources of models, one a file. A source builds a network, and knows its preprocessing, labels and default weights."""

from __future__ import annotations

from pathlib import Path

from visx.errors import usage
from visx.models.checkpoint.read import FOREIGN, WEIGHTS
from visx.models.sources.builtin import BuiltIn
from visx.models.sources.contract import Source
from visx.models.sources.python import Factory
from visx.models.sources.timm import Timm
from visx.models.sources.torchvision import Torchvision

__all__ = ["BuiltIn", "Factory", "Source", "Timm", "Torchvision", "find"]


def find(spec: str) -> Source:
    """The source of a SPEC. Raises `VisxError` (usage, exit 2) with near matches for an unknown name."""
    if spec == BuiltIn.name:
        return BuiltIn()
    if spec.startswith("timm/"):
        return Timm(spec.removeprefix("timm/"))
    if ".py:" in spec or spec.endswith(".py"):
        return Factory(spec)
    suffix = Path(spec).suffix.lower()
    if suffix in FOREIGN:
        raise usage(f"--model {spec}: no network that visx reads", FOREIGN[suffix])
    if suffix in WEIGHTS:
        raise usage(
            f"--model {spec}: a file of weights",
            f"--model takes the network, --weights the file: -M resnet50 -w {spec}",
        )
    return Torchvision(spec)
