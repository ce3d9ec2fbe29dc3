"""The explanation methods, one a file. To add a method: write `visx/methods/NAME.py` and add NAME to `NAMES`."""

from __future__ import annotations

import importlib

from visx.errors import unknown
from visx.methods.contract import REGISTRY, Method

NAMES = (
    "backprop",
    "deconvnet",
    "guided_backprop",
    "input_x_gradient",
    "integrated_gradients",
    "libragrad",
    "attnlrp",
    "smoothgrad",
    "cam",
    "gradcam",
    "guided_gradcam",
    "reciprocam",
    "attention",
    "rollout",
    "transformer_attribution",
    "legrad",
    "occlusion",
    "lime",
    "meaningful_perturbation",
    "rise",
    "tis",
    "vit_cx",
)


def get_method(name: str) -> Method:
    """The method called `name`. Only the module of that method is imported, so that listing methods stays fast.

    Raises `VisxError` (usage, exit 2) with near matches where there is no such method.
    """
    if name not in NAMES:
        raise unknown("method", name, NAMES)
    importlib.import_module(f"visx.methods.{name}")
    return REGISTRY[name]


def all_methods() -> list[Method]:
    """Every method, in the order of `NAMES`."""
    return [get_method(name) for name in NAMES]
