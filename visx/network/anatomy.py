"""Anatomy: what a network is made of, found by running it once, not from a table of names."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from visx.network.attention import attentions
from visx.network.choice import choose
from visx.network.grid import Layer
from visx.network.head import cam_head, reads_token
from visx.network.meaning import recognise
from visx.network.network import Network
from visx.network.outputs import Outputs
from visx.network.probe import look, noise
from visx.network.rules import LIBRA, lacking

ONLY_SCORES = "it only gives scores, and nothing inside of it can be seen"

OF_A_TOKEN = (
    "its classifier reads a class token, not an average of a feature map, and what the token gathered from the patches is "
    "not linear in them"
)


@dataclass(frozen=True)
class Anatomy:
    """What one run showed. `default_layer` is None where there is none, and `no_layer` says why; `gap_head` says whether
    the logits are one linear map of globally averaged features, and `no_gap_head` why not, where that is known; `relus` and
    `others` count activations; `outputs` says what comes out; `no_input_gradient` says why none can be had (empty where one
    can); `no_rules` why relevance rules do not hold (empty where they do); `no_attention` why there is no self-attention over
    tokens, `no_tokens` why its attentions are not over one sequence of tokens (empty where they are)."""

    layers: tuple[Layer, ...]
    default_layer: str | None
    no_layer: str
    gap_head: bool
    relus: int
    others: tuple[str, ...]
    outputs: Outputs
    no_input_gradient: str = ""
    no_rules: str = ""
    no_attention: str = ""
    no_tokens: str = ""
    no_gap_head: str = ""

    @classmethod
    def of_scores(cls, outputs: Outputs) -> Anatomy:
        """That of a black box, of which nothing but its output can be seen."""
        why = dict.fromkeys(("no_input_gradient", "no_rules", "no_attention", "no_tokens"), ONLY_SCORES)
        return cls((), None, ONLY_SCORES, False, 0, (), outputs, **why)

    @property
    def classes(self) -> int:
        """The number of class columns."""
        return self.outputs.classes


def examine(
    network: Network,
    shape: tuple[int, ...],
    means: str | None = None,
    head: str | int | None = None,
    labels: int = 0,
) -> Anatomy:
    """Run the network once on a picture (C, H, W) of this shape and describe it. `means` and `head` overrule what its
    output is found to be, `labels` is how many class names there are.

    Costs one pass, and a backward pass through what lies behind the default layer.
    """
    with network.session():
        record = look(network.module, network.prepare(noise(shape)))
        headless = getattr(network.module, "num_classes", None) == 0  # timm's way to say so
        outputs = recognise(record.graphed, means=means, head=head, headless=headless, labels=labels)
        no_rules = lacking(outputs.tensor(record.graphed), LIBRA)
        score = outputs.tensor(record.output)
        default, why = choose(record.runs, score, record.node(score))
        network.remember(torch.Size(shape), record, outputs)
    cam = cam_head(record, record.score)
    attends = attentions(record)
    token = cam is None and reads_token(record.score[0].node if record.score else None)
    return Anatomy(
        layers=tuple(network.recorded[torch.Size(shape)].values()),
        default_layer=default,
        no_layer=why,
        gap_head=cam is not None and (not cam.last_axis or cam.grid() is not None),
        relus=record.relus,
        others=tuple(record.others),
        outputs=outputs,
        no_input_gradient=record.no_input_gradient,
        no_rules=no_rules,
        no_attention=attends.lacking,
        no_tokens=attends.apart,
        no_gap_head=OF_A_TOKEN if token else "",
    )


def reaches(network: Network, shape: tuple[int, ...], layer: str) -> bool:
    """Whether a gradient leads from the logits to a layer, though none leads to the input."""
    with network.session():
        try:
            network.layer_gradients(torch.zeros(1, *shape), layer, lambda values: values.flatten(1)[:, :1])
        except Exception:  # a refusal of ours, or what forward raises where gradients are recorded
            return False
    return True
