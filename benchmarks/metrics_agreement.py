"""visx's metrics against those of Quantus, torchcam, captum and grad-cam: the same picture, map and network.

    python benchmarks/metrics_agreement.py [--model efficientnet_lite0] [--image samples/chelsea.png]

Needs `pip install quantus torchcam captum grad-cam`; a row whose peer is missing is left out. Prints a Markdown table: what
visx says, what the peer says, and why they differ where they do. What agrees exactly is held so by tests/metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import visx
from visx.metrics import get_metric
from visx.metrics.common.imputing import impute
from visx.metrics.contract import Trial
from visx.network.outputs import LOGITS
from visx.network.randomize import cascade, groups
from visx.network.scorer import Scorer
from visx.ops.blur import gaussian_blur
from visx.seeds import generator, normal
from visx.targets.classes import Column
from visx.targets.contract import Objectives

STEPS = 28
Row = tuple[str, str, float, float, str]


class Probabilities(nn.Module):
    """A network behind its softmax. A class, because Quantus takes a last `nn.Softmax` off."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> probabilities (N, K)."""
        return self.net(x).softmax(1)


class Case:
    """One picture, its class, two maps (Grad-CAM; integrated gradients, signed) and the network."""

    def __init__(self, spec: str, image: str) -> None:
        self.model = visx.load_model(spec)
        rgb = np.asarray(Image.open(image).convert("RGB"))
        self.x = torch.from_numpy(self.model.preprocess(rgb)[0])
        self.cam = visx.explain(self.model, rgb, "gradcam")
        self.ig = visx.explain(self.model, rgb, "integrated_gradients", score="prob")
        self.target, self.net = self.cam.target, self.model.module.eval()
        self.probabilities = Probabilities(self.net).eval()
        self.side = self.x.shape[-1]
        self.box = tuple(part * self.side for part in (0.25, 0.2, 0.8, 0.75))
        self.mask = np.zeros((1, 1, *self.x.shape[-2:]))
        left, top, right, bottom = (round(edge) for edge in self.box)
        self.mask[..., top:bottom, left:right] = 1
        self.box = (left, top, right, bottom)

    def gradients(self, x: Tensor, net: nn.Module | None = None) -> np.ndarray:
        """The sum over channels of the probability's gradient, (N, H, W)."""
        x = x.float().detach().requires_grad_()
        score = (net or self.net)(x).softmax(1)[:, self.target].sum()
        return torch.autograd.grad(score, x)[0].sum(1).numpy()

    def trial(self, values: np.ndarray) -> Trial:
        """A map as visx's metrics get it."""
        score = Scorer(self.model.network().scores_of)
        return Trial(
            self.x,
            values.astype(np.float64),
            Objectives([[Column.of(self.target, LOGITS, None)]], LOGITS),
            0,
            "prob",
            score,
            self.gradients,
        )

    def ours(self, name: str, values: np.ndarray, **params: Any) -> float:
        """A metric of visx's."""
        metric = get_metric(name)
        p = metric.params(**params)
        if metric.kind == "box":
            return float(metric.run(values, [self.box], 0, p).value)
        with self.model.network().session():
            return float(metric.run(self.trial(values), p).value)

    def quantus(self, name: str, values: np.ndarray, explain: Callable[..., Any] | None = None, **options: Any) -> Any:
        """A metric of Quantus on one image, nothing normalised."""
        import quantus

        metric = getattr(quantus, name)(normalise=False, disable_warnings=True, display_progressbar=False, **options)
        masked = name in ("RelevanceMassAccuracy", "PointingGame")
        found = metric(
            self.probabilities, self.x[None].numpy(), np.array([self.target]), values[None, None],
            self.mask if masked else None, channel_first=True, softmax=False, device="cpu", explain_func=explain,
        )  # fmt: skip
        return found if isinstance(found, dict) else found[0]


def of_quantus(case: Case) -> Iterator[Row]:
    """Quantus."""
    import quantus
    from quantus.functions.perturb_func import noisy_linear_imputation

    cam, ig = case.cam.map.astype(np.float64), case.ig.map.astype(np.float64)
    step = case.side**2 // STEPS  # values, a third of as many pixels
    clean = float(case.probabilities(case.x[None])[0, case.target])

    def area(values: np.ndarray) -> float:
        curve = case.quantus("PixelFlipping", values, features_in_step=step, perturb_baseline=0.0)
        return float(np.trapezoid([clean, *curve[2::3]], dx=1 / STEPS))

    why = "channels of a pixel go one by one: a step may end inside a pixel"
    yield "deletion", "PixelFlipping, clean first", case.ours("deletion", ig, steps=STEPS), area(ig), why
    why = "ties (zeros of the map) go by position there, by a seeded shuffle here"
    yield "deletion of Grad-CAM", "PixelFlipping, clean first", case.ours("deletion", cam, steps=STEPS), area(cam), why

    removed = np.random.default_rng(0).random(cam.shape) < 0.5
    theirs = noisy_linear_imputation(case.x.double().numpy(), np.nonzero(removed.ravel())[0], noise=0.0)
    yield (
        "road's imputation, largest difference",
        "noisy_linear_imputation",
        0.0,
        float(np.abs(impute(case.x.double().numpy(), removed) - theirs).max()),
        "none; its ROAD is the share of images still classified right, one image has no value",
    )

    positive = np.maximum(ig, 0)
    yield (
        "energy, positive part",
        "RelevanceMassAccuracy",
        case.ours("energy", ig),
        float(case.quantus("RelevanceMassAccuracy", positive)),
        "none: Score-CAM's maps are not negative",
    )
    yield (
        "energy of a signed map",
        "RelevanceMassAccuracy",
        case.ours("energy", ig),
        float(case.quantus("RelevanceMassAccuracy", ig)),
        "it divides by a sum that cancels: no part of anything; the positive part counts here",
    )

    tied = np.zeros_like(cam)
    tied[0, 0] = tied[case.side // 2, case.side // 2] = 1
    game = get_metric("pointing_game")
    hits = [game.run(tied, [case.box], seed, game.params(tolerance=0)).value for seed in range(200)]
    why = "any tied maximum hits there; one point is drawn here, as the paper has one, and 15 pixels of tolerance"
    theirs = float(case.quantus("PointingGame", tied))
    yield "pointing game, maxima inside and outside", "PointingGame", float(np.mean(hits)), theirs, why

    gap, whole = case.ours("completeness", ig), float(case.quantus("Completeness", ig, perturb_baseline=0.0))
    yield "completeness", "Completeness", gap, whole, "whether two floats are equal there, the relative gap here"

    def explain(model: nn.Module, inputs: np.ndarray, targets: Any, **_: Any) -> np.ndarray:
        net = model.net if isinstance(model, Probabilities) else model
        return case.gradients(torch.from_numpy(np.asarray(inputs)), net)[:, None]

    gradient = case.gradients(case.x[None])[0]
    shifts = iter([torch.rand(case.x.shape, generator=generator(0, "box", i)) for i in range(5)])

    def shifted(arr: np.ndarray, **_: Any) -> np.ndarray:
        return (arr + 0.02 * (2 * next(shifts).numpy().reshape(arr.shape) - 1)).astype(np.float32)

    theirs = case.quantus("MaxSensitivity", gradient, explain, nr_samples=5, perturb_func=shifted)
    yield (
        "max_sensitivity, the same neighbours",
        "MaxSensitivity",
        case.ours("max_sensitivity", gradient, samples=5),
        float(theirs),
        "none; its own neighbours lie within 0.2, 200 of them, here within captum's 0.02",
    )

    theirs = case.quantus("Infidelity", ig, n_perturb_samples=1, perturb_patch_sizes=[56], perturb_baseline=0.0)
    why = "another quantity: patches that are never put back, not noise; captum's is the paper's"
    yield "infidelity", "Infidelity", case.ours("infidelity", ig, rescale=False), float(theirs), why

    scores = quantus.MPRT(
        normalise=False, disable_warnings=True, display_progressbar=False, return_average_correlation=True
    )(
        case.probabilities, case.x[None].numpy(), np.array([case.target]), gradient[None, None], channel_first=True,
        softmax=False, device="cpu", explain_func=explain,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [
            get_metric("spearman").run(gradient, case.gradients(case.x[None], module)[0], get_metric("spearman").params())
            for _, module in cascade(case.net, 5, 0)
        ]  # fmt: skip
    why = "signed, after each of its layers and once before any; five groups of layers here, drawn at their own scale"
    yield "randomization of the gradient", "MPRT", float(np.mean(found)), float(scores[0]), why
    from torchvision.models import vit_b_16

    vit = vit_b_16(weights=None)
    reached = {id(p) for m in vit.modules() if hasattr(m, "reset_parameters") for p in m.parameters(recurse=False)}
    sizes = {name: p.numel() for name, p in vit.named_parameters()}
    share = sum(p.numel() for p in vit.parameters() if id(p) in reached) / sum(sizes.values())
    ours = sum(sizes[name] for _, names in groups(vit, 5) for name in names) / sum(sizes.values())
    why = "layers without `reset_parameters` (attention's projections, tokens) are passed over there"
    yield "randomization, part of vit_b_16 reached", "MPRT", ours, share, why


def of_torchcam(case: Case) -> Iterator[Row]:
    """torchcam."""
    from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

    def extractor(values: np.ndarray) -> Any:
        class Given(SimpleNamespace):
            def __call__(self, *_: Any, **__: Any) -> list[Tensor]:
                return [torch.from_numpy(values)[None].float()]

        return Given(model=case.net, fuse_cams=lambda cams: cams[0], _hooks_off=contextlib.nullcontext)

    for name, baseline in (("deletion", None), ("insertion", lambda x: gaussian_blur(x, 5.0))):
        metric = DeletionInsertionMetric(extractor(case.ig.map), lambda s: s.softmax(1), steps=STEPS, baseline=baseline)
        metric.update(case.x[None], case.target)
        ours = case.ours(name, case.ig.map, steps=STEPS)
        yield name, "DeletionInsertionMetric", ours, metric.summary()[f"{name}_auc"], "none"
    drop = ClassificationMetric(extractor(case.cam.map / case.cam.map.max()), lambda s: s.softmax(1))
    drop.update(case.x[None], case.target)
    for name, key in (("average_drop", "avg_drop"), ("increase", "conf_increase")):
        yield name, "ClassificationMetric", case.ours(name, case.cam.map), drop.summary()[key], "none"


def of_captum(case: Case) -> Iterator[Row]:
    """captum."""
    from captum.metrics import infidelity

    noise = 0.2 * normal(0, (1, *case.x.shape[-2:]), 0, 16).expand(16, *case.x.shape)
    spread = torch.from_numpy(case.ig.map)[None, None].expand(1, *case.x.shape) / 3

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        return noise, inputs - noise

    def forward(inputs: Tensor) -> Tensor:
        return case.probabilities(inputs)[:, case.target]

    for rescale in (False, True):
        theirs = float(infidelity(forward, perturb, case.x[None], spread, n_perturb_samples=16, normalize=rescale))
        ours = case.ours("infidelity", case.ig.map, samples=16, rescale=rescale)
        yield f"infidelity, the same noise{', rescaled' * rescale}", "infidelity", ours, theirs, "none"


def of_grad_cam(case: Case) -> Iterator[Row]:
    """grad-cam."""
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    for name, values in (("road", case.ig.map), ("road of Grad-CAM", case.cam.map)):
        combined = ROADCombined([20, 40, 60, 80])
        target = [ClassifierOutputSoftmaxTarget(case.target)]
        theirs = float(combined(case.x[None], values[None], target, case.net)[0])
        why = "its noise" if name == "road" else "its noise; ties there are all removed or all kept, shuffled here"
        yield name, "ROADCombined", case.ours("road", values), theirs, why


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--image", default="samples/chelsea.png")
    asked = parser.parse_args()
    case = Case(asked.model, asked.image)
    print("| metric | peer | visx | peer's | why they differ |\n| --- | --- | ---: | ---: | --- |")
    for peer, rows in (
        ("Quantus", of_quantus),
        ("torchcam", of_torchcam),
        ("captum", of_captum),
        ("grad-cam", of_grad_cam),
    ):
        try:
            for name, theirs, ours, value, why in rows(case):
                print(f"| {name} | {peer} {theirs} | {ours:.4g} | {value:.4g} | {why} |", flush=True)
        except ImportError as error:
            print(f"| | {peer} | | | left out: {error} |")


if __name__ == "__main__":
    main()
