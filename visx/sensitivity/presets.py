"""Presets: the experiments of SAM (Bansal et al. 2020, arXiv:2003.08754) by name. This module imports no torch.

Every setting of the paper and its program is stated, so that a preset stays the same where a method's default changes. All
experiments explain probabilities and average the signed channels. What the program calls a zero baseline or background are
black pixels. A `--param` of the command line overrides a setting. Occlusion with stride 3 has 3364 passes an image; for a CPU
take `-p stride=5` (with more, patches of 5 would leave gaps).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from visx.errors import unknown


@dataclass(frozen=True)
class Experiment:
    """One method and the groups of settings within which its maps are compared.

    Each group holds `--vary` texts. `params` are the parameters that stay, and the defaults of those that vary.
    """

    method: str
    groups: tuple[tuple[str, ...], ...]
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """Several experiments; `metrics` are parameters of metrics (METRIC.KEY=VALUE), `score` is the score that is explained."""

    experiments: tuple[Experiment, ...]
    metrics: tuple[str, ...] = ()
    score: Literal["prob"] = "prob"


NOISE = (("noise=0,0.1",),)
OCCLUSION = {"patch": "53", "stride": "3", "fill": "zero", "pad": "false", "hide": "fill"}
LIME = {
    "segmenter": "slic", "segments": "50", "compactness": "30", "sigma": "3", "samples": "1000", "hide": "0",
    "kernel_width": "0.25", "alpha": "1", "significance": "0",
}  # fmt: skip
MEANINGFUL_PERTURBATION = {
    "mask_size": "28", "init": "circular", "iterations": "300", "lr": "0.1", "l1": "1e-4", "tv": "1e-2", "tv_beta": "3",
    "jitter": "4", "blur_radius": "10", "upsample": "nearest", "final_blur": "1",
}  # fmt: skip
SMOOTHGRAD = {"samples": "50", "spread": "0.15", "base": "backprop", "reduce": "mean"}
INTEGRATED_GRADIENTS = {
    "steps": "50", "rule": "trapezoid", "baseline": "black", "tolerance": "0", "reduce": "mean",
}  # fmt: skip

PRESETS: dict[str, Preset] = {
    "sam-occlusion": Preset((Experiment("occlusion", (("patch=52,53,54",), ("patch=5,29,53",)), OCCLUSION),)),
    "sam-lime": Preset((Experiment("lime", (("seed=0..4",),), LIME),)),
    "sam-mp": Preset(
        (Experiment("meaningful_perturbation", (("blur_radius=5,10,30",),), MEANINGFUL_PERTURBATION),),
        ("ssim.scale=none", "ssim.data_range=1"),  # its masks lie in 0..1
    ),
    "sam-smoothgrad": Preset((Experiment("smoothgrad", (("spread=0.1,0.2,0.3",), ("samples=25,50,75",)), SMOOTHGRAD),)),
    "sam-gradient": Preset(
        (
            Experiment("backprop", NOISE, {"reduce": "mean"}),
            Experiment("input_x_gradient", NOISE, {"reduce": "mean"}),
            Experiment("integrated_gradients", NOISE, INTEGRATED_GRADIENTS),
        )
    ),
}


def get_preset(name: str) -> Preset:
    """The preset called `name`. Raises `VisxError` (usage, exit 2) with near matches where there is none."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
