"""Models: from a SPEC (`efficientnet_lite0`, `resnet50`, `timm/NAME`, `FILE.py:FACTORY`) to a `Model` that can be explained."""

from __future__ import annotations

from visx.models.load import load_model, wrap
from visx.models.model import Model, Weights

__all__ = ["Model", "Weights", "load_model", "wrap"]
