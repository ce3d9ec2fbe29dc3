"""Attention of a block: a row of its weights, against weights written by hand."""

from __future__ import annotations

import pytest
import torch

from by_hand import FUSE, by_hand
from nets import ATTENTIONS, GapHead, TinyViT, Windows, images, seeded
from oracles import answers, ask, maps_of, model_of, pearson, same
from visx import VisxError
from visx.errors import ExitCode


@pytest.mark.parametrize("fusion", FUSE)
@pytest.mark.parametrize("spelling", ATTENTIONS)
def test_it_is_the_class_tokens_row(spelling: str, fusion: str) -> None:
    net = seeded(lambda: TinyViT(spelling))
    x = images(2)
    result = ask("attention", net, x, (1, 3), head_fusion=fusion)
    for b in range(2):
        row = FUSE[fusion](by_hand(net, x[b], 0).weights[-1])[0, 1:]
        assert same(result.map[b, 0], row.view(3, 3)) and torch.equal(result.map[b, 0], result.map[b, 1])
    assert "same for every class" in result.warned(1, 1)[0]


@pytest.mark.parametrize("block", [0, 1, -3])
def test_of_another_block(block: int) -> None:
    net, x = seeded(TinyViT), images(1)
    row = by_hand(net, x[0], 0).weights[block].mean(0)[0, 1:]
    assert same(ask("attention", net, x, block=block).map[0, 0], row.view(3, 3))


def test_of_a_network_that_averages_its_patches_it_is_the_mean_row() -> None:
    net, x = seeded(lambda: TinyViT(prefix=0)), images(1)
    assert same(ask("attention", net, x).map[0, 0], by_hand(net, x[0], 0).weights[-1].mean((0, 1)).view(3, 3))


def test_of_two_class_tokens_it_is_the_mean_of_their_rows() -> None:
    net, x = seeded(lambda: TinyViT(prefix=2)), images(1)
    assert same(
        ask("attention", net, x).map[0, 0], by_hand(net, x[0], 0).weights[-1].mean(0)[:2, 2:].mean(0).view(3, 3)
    )


def test_in_windows_every_window_has_its_own_mean_row() -> None:
    net, x = seeded(Windows).requires_grad_(False), images(2, 8)
    result = ask("attention", net, x).map[:, 0]
    tokens = net.patches(x).roll((-1, -1), (2, 3))
    for b in range(2):
        for row, column in ((0, 0), (0, 2), (2, 0), (2, 2)):
            window = tokens[b, :, row : row + 2, column : column + 2].flatten(1).t()
            q, k, _ = net.qkv(window).chunk(3, 1)
            mean = (3 * q @ k.t() / 8**0.5).softmax(1).mean(0)
            for number in range(4):
                y, x_ = (row + number // 2 + 1) % 4, (column + number % 2 + 1) % 4
                assert float(result[b, y, x_]) == pytest.approx(float(mean[number]))


def test_a_network_without_attention_is_refused_with_the_reason() -> None:
    for name in ("attention", "rollout", "transformer_attribution", "legrad"):
        with pytest.raises(VisxError, match="no self-attention over the picture's tokens") as refused:
            answers(model_of(seeded(GapHead)), name, images(1))
        assert refused.value.code == ExitCode.UNSUPPORTED and "gradcam" in str(refused.value.hint)
    for name in ("rollout", "transformer_attribution"):
        with pytest.raises(VisxError, match="4 windows, not over one sequence"):
            answers(model_of(seeded(Windows), 8), name, images(1, 8))


@pytest.mark.parametrize("name", ["attention", "rollout", "transformer_attribution", "legrad"])
def test_half_precision_hardly_changes_the_map(name: str) -> None:
    model, x = model_of(seeded(TinyViT, dtype=torch.float32)), images(2, dtype=torch.float32)
    full, half = (maps_of(answers(model, name, x, "1", precision=precision)) for precision in ("fp32", "bf16"))
    assert pearson(full, half) > 0.99


def test_a_block_that_is_not_there_is_said() -> None:
    with pytest.raises(VisxError, match="3 attentions") as refused:
        answers(model_of(seeded(TinyViT)), "attention", images(1), block=3)
    assert refused.value.code == ExitCode.USAGE
