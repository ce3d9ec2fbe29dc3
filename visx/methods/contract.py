"""The method contract: what a method is asked (`Request`), what it answers (`Attribution`), and how it is declared.

A method is one function in one file, `visx/methods/NAME.py`, declared by `@method` and listed in
`visx.methods.NAMES`. Declarations import no torch, so that listing methods stays instant: a method's module imports
torch inside its function, if it needs the name at all. What methods share is in `visx/methods/common/`: a method that
declares `needs={"layer"}` gives `layers.layer_warnings(layer)` with each of its maps. `visx methods NAME` prints the
module's docstring: the formula and its source, then "Deviations" from the paper, and "Extension" for what goes beyond it.

Images, gradients and maps are float32, or float64 where the network's parameters are float64; a method keeps the dtype
of what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from visx.params import Params

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from visx.images.geometry import Placement
    from visx.network.gradients import InputGradients, LayerGradients
    from visx.network.network import Network
    from visx.network.outputs import ScoreKind
    from visx.network.rules import Composite, Rule
    from visx.network.scorer import Scorer, Scores
    from visx.targets.contract import Identity, Objectives, Targets

Need = Literal["grad", "layer", "gap_head", "relu", "rules", "droppable", "attention", "tokens"]
Picture = Literal["overlay", "gradient"]
Passes = Literal["few", "many"]

NEEDS: dict[str, str] = {
    "grad": "gradients (a torch module)",
    "layer": "a layer with a feature map",
    "gap_head": "global average pooling followed by one linear layer (or a 1x1 convolution before it)",
    "relu": "ReLU or ReLU6 activations",
    "rules": "operations that all have a relevance rule",
    "droppable": "a plain vision transformer, whose tokens can be left out",
    "attention": "self-attention over the picture's tokens",
    "tokens": "attention over one sequence of tokens from the first block to the last",
}


@dataclass(frozen=True)
class Request:
    """One batch of images to explain, all on one device, in float32 (float64 where the network's parameters are).

    `x` is (B, C, H, W), normalised; `targets` resolves to T objectives an image on the first clean pass, whoever makes it;
    `seeds` holds one integer an image; `score` scores perturbed copies (all that a black box offers); `kind` says which
    scalar of an objective is explained; `net` gives gradients, layers and ReLU rules to the methods whose `needs` say so;
    `layer` is a module path, `A+B` (of a method that fuses layers), or None.
    `mean` and `std` normalise pixels, one number a channel. `averaged`: the maps of many requests like this one are
    averaged, so that rounding in each may be larger.
    """

    x: Tensor
    targets: Targets
    seeds: tuple[int, ...]
    score: Scorer
    kind: ScoreKind
    net: Network | None = None
    layer: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    averaged: bool = False

    @property
    def network(self) -> Network:
        """The network, for methods that declare `needs={"grad"}`."""
        assert self.net is not None, "a method without needs={'grad'} asked for the network"
        return self.net

    @property
    def objectives(self) -> Objectives:
        """What is explained, T objectives an image; by one clean pass if nobody has made it yet."""
        return self.targets.objectives or self.targets.resolve(self.score.forward(self.x))

    def scalars_of(self, b: int) -> Scores:
        """The explained scalars (n, T) of image `b`, given the values (n, ...) of n copies of it."""
        return partial(self.objectives.of(b).scores, kind=self.kind)

    @property
    def scalars(self) -> Scores:
        """The explained scalars (B, T) of the images, given the values (B, ...) of a clean pass, or of another after it."""
        return partial(self.targets.scores, kind=self.kind)

    def input_gradients(self, rule: Rule | None = None) -> InputGradients:
        """Gradients of every objective's score with respect to the images."""
        return self.network.input_gradients(self.x, self.scalars, rule, one_of_many=self.averaged)

    def relevance(self, composite: Composite) -> InputGradients:
        """Gradients of every objective's score with respect to the images, each operation under its relevance rule."""
        return self.network.relevance(self.x, self.scalars, composite)

    def layer_gradients(self) -> list[LayerGradients]:
        """Gradients of every objective's score with respect to the output of the layer; of `A+B`, of each of its layers, by
        one forward pass and one backward pass an objective."""
        from visx.network.paths import layer_paths

        assert self.layer is not None, "a method without needs={'layer'} asked for a layer"
        return self.network.layers_gradients(self.x, layer_paths(self.network.module, self.layer), self.scalars)

    def normalised(self, pixels: float | Tensor) -> Tensor:
        """Pixels in 0..1, one grey value or (..., C, H, W), as the network sees them: (C, 1, 1) or (..., C, H, W)."""
        channels = self.x.shape[1]
        mean = self.x.new_tensor(self.mean or (0.0,) * channels)[:, None, None]
        std = self.x.new_tensor(self.std or (1.0,) * channels)[:, None, None]
        return (pixels - mean) / std

    def pixels(self) -> Tensor:
        """The images as pixels in 0..1 again: (B, C, H, W), the inverse of `normalised`."""
        zero, one = self.normalised(0.0), self.normalised(1.0)
        return (self.x - zero) / (one - zero)


@dataclass
class Subject:
    """What a map explains where it is none of the request's objectives: a unit of a layer. It has their place in names
    and manifest."""

    identity: Identity
    score: float
    score_kind: str


Attachment = Callable[["np.ndarray", "Placement"], bytes]


@dataclass
class Attribution:
    """A method's answer, raw.

    `map` is (B, T, h, w), float32 or float64 as the request: at input size, or coarse (it is upsampled then, and kept as
    the native map).
    `channels` is (B, T, C, H, W), the signed input gradient where there is one. `native` is (B, T, h, w), where the
    method's own grid is not simply a coarser map. `extras`, `warnings`, `subjects` and `attachments` hold one entry an
    image and target; an attachment is a further file, by suffix ("superpixels.png"), made from the picture (H, W, 3)
    uint8 as the user sees it and the placement of the network's view in it.
    """

    map: Tensor
    channels: Tensor | None = None
    native: Tensor | None = None
    extras: list[list[dict[str, Any]]] | None = None
    warnings: list[list[list[str]]] | None = None
    subjects: list[list[Subject]] | None = None
    attachments: list[list[dict[str, Attachment]]] | None = None

    def extra(self, b: int, t: int) -> dict[str, Any]:
        """The figures of image `b`, target `t`."""
        return self.extras[b][t] if self.extras else {}

    def warned(self, b: int, t: int) -> list[str]:
        """The warnings of image `b`, target `t`."""
        return list(self.warnings[b][t]) if self.warnings else []


@dataclass(frozen=True)
class Method:
    """A registered method: its declaration and the function that computes it."""

    name: str
    family: str
    title: str
    source: str
    needs: frozenset[str]
    score: ScoreKind
    signed: bool
    picture: Picture
    passes: Passes
    params: type[Params]
    run: Callable[[Request, Any], Attribution] = field(repr=False)
    single_pass: bool = False
    fuses: bool = False

    def needs_with(self, params: Params) -> frozenset[str]:
        """All needs, those that only these parameter values bring included."""
        return self.needs | params.extra_needs()

    def signed_with(self, params: Mapping[str, Any]) -> bool:
        """Whether negative values mean something, with these parameter values.

        Two names of parameters have a meaning here, whatever the method: `relu=false` makes a map signed, and `reduce`
        decides alone where there is such a parameter (`sum` and `mean` are signed). Without them it is as declared.
        """
        if params.get("relu") is False:
            return True
        if "reduce" in params:
            return params["reduce"] in ("sum", "mean")
        return self.signed


REGISTRY: dict[str, Method] = {}


def method(
    name: str,
    *,
    family: Literal["gradient", "cam", "attention", "perturbation"],
    title: str,
    source: str,
    needs: set[Need] | frozenset[Need] = frozenset(),
    score: ScoreKind = "logit",
    signed: bool = False,
    picture: Picture = "overlay",
    passes: Passes = "few",
    single_pass: bool = False,
    fuses: bool = False,
    params: type[Params] = Params,
) -> Callable[[Callable[[Request, Any], Attribution]], Callable[[Request, Any], Attribution]]:
    """Declare a method. `needs` is what it asks of a model, `score` the scalar it explains unless told otherwise,
    `signed` whether negative values mean evidence against, `picture` how it is drawn, `passes` whether a batch is
    through after a few passes or takes many, `single_pass` whether an image needs one forward pass alone, `fuses` whether
    it makes one map of several layers (`-l A+B`) itself, for instance by `methods/common/layers.py`. `source` is the paper,
    "arXiv:1610.02391" (README makes it a link), or a name such as "Jiang 2021". It has 16 characters at most, because
    `visx methods` fits 80 columns."""

    def register(run: Callable[[Request, Any], Attribution]) -> Callable[[Request, Any], Attribution]:
        declared = frozenset(needs)
        REGISTRY[name] = Method(
            name, family, title, source, declared, score, signed, picture, passes, params, run, single_pass, fuses
        )
        return run

    return register
