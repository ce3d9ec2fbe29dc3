"""Attention rollout against the paper's product of matrices, and the program vit-explain's discarding, written slowly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from by_hand import FUSE, by_hand, vit_tiny
from nets import ATTENTIONS, TinyViT, images, seeded
from oracles import ask, pearson, same


def rolled(weights: list[Tensor], fusion: str = "mean", discard: float = 0.0) -> Tensor:
    """R (N, N) of attention weights (H, N, N), block by block and row by row."""
    count = weights[0].shape[-1]
    result = torch.eye(count, dtype=weights[0].dtype)
    for of_block in weights:
        fused = FUSE[fusion](of_block)
        flat = fused.flatten().tolist()
        for index in sorted(range(len(flat)), key=lambda i: flat[i])[: int(len(flat) * discard)]:
            if index != 0:
                flat[index] = 0.0
        matrix = torch.tensor(flat, dtype=fused.dtype).view(count, count)
        mixed = torch.zeros_like(matrix)
        for row in range(count):
            values = (matrix[row] + (torch.arange(count) == row)) / 2
            mixed[row] = values / values.sum()
        result = mixed @ result
    return result


@pytest.mark.parametrize("discard", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("fusion", FUSE)
def test_it_is_the_product_of_all_blocks(fusion: str, discard: float) -> None:
    net, x = seeded(TinyViT), images(2)
    result = ask("rollout", net, x, (1, 3), head_fusion=fusion, discard=discard)
    for b in range(2):
        wanted = rolled(by_hand(net, x[b], 0).weights, fusion, discard)[0, 1:].view(3, 3)
        assert same(result.map[b, 0], wanted) and torch.equal(result.map[b, 0], result.map[b, 1])
    assert "same for every class" in result.warned(1, 1)[0]


@pytest.mark.parametrize("spelling", ATTENTIONS)
@pytest.mark.parametrize("prefix", [0, 2])
def test_it_is_the_mean_of_the_rows_that_are_read(spelling: str, prefix: int) -> None:
    net, x = seeded(lambda: TinyViT(spelling, prefix)), images(1)
    rows = rolled(by_hand(net, x[0], 0).weights)
    read = rows[:prefix] if prefix else rows
    assert same(ask("rollout", net, x).map[0, 0], read.mean(0)[prefix:].view(3, 3))


def test_rows_sum_to_one_and_nothing_is_lost() -> None:
    net, x = seeded(lambda: TinyViT(prefix=0)), images(1)
    assert float(ask("rollout", net, x, head_fusion="max").map.sum()) == pytest.approx(1)


def test_of_uniform_attention_it_is_known() -> None:
    """Weights 1/N everywhere: R = (J/N + I)/2 to the power of the depth, whose class row is (1 - 2^-depth)/N off the diagonal."""
    net = seeded(TinyViT)
    for block in net.blocks:
        torch.nn.init.zeros_(block.attn.qkv.weight)
        torch.nn.init.zeros_(block.attn.qkv.bias)
    assert same(ask("rollout", net, images(1)).map, torch.full((1, 1, 3, 3), (1 - 2**-3) / 10, dtype=torch.float64))


@pytest.mark.parametrize("fused", [True, False])
def test_of_a_real_architecture(fused: bool) -> None:
    pytest.importorskip("timm", reason="ViT-tiny is timm's")
    net, x = vit_tiny(fused), images(1, 64)
    weights: list[Tensor] = []
    probe = vit_tiny(False)
    hooks = [block.attn.attn_drop.register_forward_pre_hook(lambda m, args: weights.append(args[0][0])) for block in probe.blocks]  # fmt: skip
    with torch.no_grad():
        probe(x)
    assert len(hooks) == len(weights) == 12
    result = ask("rollout", net, x).map[0, 0]
    wanted = rolled(weights)[0, 1:].view(4, 4)
    assert pearson(result, wanted) >= 0.9999 and same(result, wanted)
