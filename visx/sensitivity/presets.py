"""Presets: the experiments of SAM (Bansal et al. 2020, arXiv:2003.08754) by name. Imports no torch.

Settings are the paper's and its program's, every one of them stated, so that they stay what they are when a method's own
defaults move; probabilities are explained throughout, and channels are averaged, signs and all. What its program calls a
zero baseline and background are black pixels. What a command line gives with `--param` comes on top: occlusion at stride 3
is 3364 passes an image, so a CPU will want `-p stride=5` (no wider: patches of 5 would leave gaps).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from visx.errors import unknown


@dataclass(frozen=True)
class Experiment:
    """One method whose maps are compared within each of some groups of settings: `groups` holds `--vary` texts, `params`
    what stays, and the default of what varies."""

    method: str
    groups: tuple[tuple[str, ...], ...]
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    """Experiments, the scalar that is explained in all of them, and parameters of the metrics."""

    experiments: tuple[Experiment, ...]
    metrics: tuple[str, ...] = ()
    score: Literal["prob"] = "prob"


NOISE = (("noise=0,0.1",),)
OCCLUSION = {"patch": "53", "stride": "3", "fill": "zero", "pad": "false"}
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
    """The preset called `name`; a typo is a usage error with near matches."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
