"""Transformer attribution against the paper's generic rule, written slowly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from by_hand import by_hand, vit_tiny
from nets import ATTENTIONS, Probe, TinyViT, images, seeded
from oracles import answers, ask, model_of, pearson, same


def generic(weights: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """R (N, N) of the weights and their gradients (H, N, N), equations 5 and 6."""
    relevance = torch.eye(weights[0].shape[-1], dtype=weights[0].dtype)
    for a, g in zip(weights, gradients, strict=True):
        averaged = torch.zeros_like(relevance)
        for head in range(len(a)):
            averaged += (g[head] * a[head]).clamp(min=0) / len(a)
        relevance = relevance + averaged @ relevance
    return relevance


@pytest.mark.parametrize("spelling", ATTENTIONS)
def test_it_is_the_class_tokens_row_of_the_generic_rule(spelling: str) -> None:
    net, x = seeded(lambda: TinyViT(spelling)), images(2)
    result = ask("transformer_attribution", net, x, (1, 3))
    for b in range(2):
        for t, target in enumerate((1, 3)):
            hand = by_hand(net, x[b], target)
            assert same(result.map[b, t], generic(hand.weights, hand.gradients)[0, 1:].view(3, 3))


@pytest.mark.parametrize("prefix", [0, 2])
def test_it_is_the_mean_of_the_rows_that_are_read(prefix: int) -> None:
    net, x = seeded(lambda: TinyViT(prefix=prefix)), images(1)
    hand = by_hand(net, x[0], 2)
    rows = generic(hand.weights, hand.gradients) - torch.eye(9 + prefix, dtype=torch.float64)
    read = rows[:prefix] if prefix else rows
    assert same(ask("transformer_attribution", net, x, (2,)).map[0, 0], read.mean(0)[prefix:].view(3, 3))


@pytest.mark.parametrize("fused", [True, False])
def test_of_a_real_architecture(fused: bool) -> None:
    pytest.importorskip("timm", reason="ViT-tiny is timm's")
    net, x = vit_tiny(fused), images(1, 64)
    probe, weights = vit_tiny(False), []
    for block in probe.blocks:
        block.attn.attn_drop.register_forward_pre_hook(lambda m, args: weights.append(args[0]))
    scores = probe(x)
    gradients = torch.autograd.grad(scores[0, 2], weights)
    wanted = generic([w[0].detach() for w in weights], [g[0] for g in gradients])[0, 1:].view(4, 4)
    result = ask("transformer_attribution", net, x, (2,)).map[0, 0]
    assert pearson(result, wanted) >= 0.9999 and same(result, wanted)


def test_one_forward_and_one_backward_pass_a_target() -> None:
    net = seeded(TinyViT)
    net.patches, net.norm = nn.Sequential(net.patches, Probe()), nn.Sequential(net.norm, Probe())
    first, last = net.patches[1], net.norm[1]
    model = model_of(net)
    for _ in range(2):  # the first time it learns the network
        for probe in (first, last):
            probe.forwards.clear()
            probe.backwards.clear()
        answers(model, "transformer_attribution", images(2), "top2")
    assert first.forwards == last.forwards == [2] and last.backwards == [2, 2]
    assert first.backwards == [], "nothing before the first attention"
