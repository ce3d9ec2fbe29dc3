"""Transformer attribution with rule=lrp against the paper's relevance propagation, operation by operation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from by_hand import vit_tiny
from nets import ATTENTIONS, CLASSES, TinyViT, images, seeded
from oracles import answers, ask, assert_unchanged, fingerprint, model_of, pearson, same
from toy_transformers import ToyViT
from visx import VisxError

pytest.importorskip("timm", reason="ViT-tiny is timm's")


def over(r: Tensor, z: Tensor) -> Tensor:
    return torch.where(z == 0, torch.zeros_like(r), r / z)


def linear(x: Tensor, layer: Any, r: Tensor) -> Tensor:
    """The z+ rule: the positive contributions x_i w_ji, each by itself."""
    c = torch.einsum("ni,ji->nji", x, layer.weight).clamp(min=0)
    return torch.einsum("nji,nj->ni", c, over(r, c.sum(2)))


def product(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """A product a @ b: half to each factor."""
    s = over(r, a @ b)
    return a * (s @ b.transpose(-2, -1)) / 2, b * (a.transpose(-2, -1) @ s) / 2


def skip(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """A skip connection a + b: the parts of the two sums."""
    r_a, r_b = a * over(r, a + b), b * over(r, a + b)
    both = r_a.sum().abs() + r_b.sum().abs()
    return r_a * r_a.sum().abs() / both * r.sum() / r_a.sum(), r_b * r_b.sum().abs() / both * r.sum() / r_b.sum()


def relevance(
    net: Any, picture: Tensor, target: int, pooled: bool = False
) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Of each block: the relevance of the attention weights (H, N, N), their gradients, and the sum of relevance that
    arrives at the block's output."""
    x = net.patch_embed(picture[None])
    t = net._pos_embed(x)
    kept: list[dict[str, Tensor]] = []
    for block in net.blocks:
        n, d = t.shape[1:]
        heads = block.attn.num_heads
        n1 = block.norm1(t)
        q, k, v = block.attn.qkv(n1)[0].reshape(n, 3, heads, -1).permute(1, 2, 0, 3)
        z = q @ k.transpose(1, 2)
        a = (z / math.sqrt(d // heads)).softmax(-1)
        o = (a @ v).transpose(0, 1).reshape(n, d)
        p = block.attn.proj(o)
        u = t[0] + p
        n2 = block.norm2(u)
        g = F.gelu(block.mlp.fc1(n2))
        m = block.mlp.fc2(g)
        kept.append(
            {
                "t": t[0],
                "n1": n1[0],
                "q": q,
                "k": k,
                "v": v,
                "z": z,
                "a": a,
                "o": o,
                "p": p,
                "u": u,
                "n2": n2,
                "g": g,
                "m": m,
            }
        )
        t = (u + m)[None]
    t = net.norm(t)[0]
    read = net.fc_norm(t[1:].mean(0) if pooled else t[0])
    grads = torch.autograd.grad(net.head(read)[target], [values["a"] for values in kept])
    kept = [{name: value.detach() for name, value in values.items()} for values in kept]
    with torch.no_grad():
        of_read = linear(read[None], net.head, F.one_hot(torch.tensor([target]), CLASSES).to(picture))[0]
        r = torch.zeros_like(t)
        if pooled:
            r[1:] = t[1:] * over(of_read, t[1:].sum(0))
        else:
            r[0] = of_read
        result, sums = [], []
        for block, of in zip(reversed(list(net.blocks)), reversed(kept), strict=True):
            sums.append(float(r.sum()))
            r_u, r_m = skip(of["u"], of["m"], r)
            r = r_u + linear(of["n2"], block.mlp.fc1, linear(of["g"], block.mlp.fc2, r_m))
            r_t, r_p = skip(of["t"], of["p"], r)
            heads = len(of["a"])
            r_o = linear(of["o"], block.attn.proj, r_p).unflatten(1, (heads, -1)).transpose(0, 1)
            r_a, r_v = product(of["a"], of["v"], r_o)
            r_q, r_k = product(of["q"], of["k"].transpose(1, 2), r_a)
            r_qkv = torch.stack([r_q, r_k.transpose(1, 2), r_v]).permute(2, 0, 1, 3).flatten(1)
            r = r_t + linear(of["n1"], block.attn.qkv, r_qkv)
            result.append(r_a)
    return result[::-1], list(grads), sums


def rolled_out(relevances: list[Tensor], gradients: list[Tensor]) -> Tensor:
    """The rollout of mean_h relu(gradient * relevance)."""
    result = torch.eye(relevances[0].shape[-1], dtype=torch.float64)
    for r, g in zip(relevances, gradients, strict=True):
        result = (torch.eye(len(result), dtype=torch.float64) + (g * r).clamp(min=0).mean(0)) @ result
    return result


@pytest.mark.parametrize(("fused", "pooled"), [(True, False), (False, False), (True, True)])
def test_vit_tiny_by_hand(fused: bool, pooled: bool) -> None:
    net, x = vit_tiny(fused), images(2, 64)
    if pooled:
        net.norm, net.fc_norm, net.global_pool = nn.Identity(), net.norm, "avg"  # type: ignore[assignment]
    found = ask("transformer_attribution", net, x, (2, 4), rule="lrp").map
    for b in range(2):
        for t, target in enumerate((2, 4)):
            r, g, sums = relevance(net, x[b], target, pooled)
            assert sums == pytest.approx([1.0] * len(sums), rel=1e-9), (
                "relevance is conserved from the score to the first block"
            )
            rows = rolled_out(r, g) - torch.eye(17, dtype=torch.float64)
            expected = (rows[1:].mean(0) if pooled else rows[0])[1:].view(4, 4)
            assert pearson(found[b, t], expected) > 0.9999 and same(found[b, t], expected, 1e-8)


def test_spellings_and_libraries_agree() -> None:
    maps = [
        ask("transformer_attribution", seeded(lambda s=s: TinyViT(s)), images(2), (1,), rule="lrp").map
        for s in ATTENTIONS
    ]
    assert all(same(one, maps[0], 1e-9) for one in maps[1:])
    vision = pytest.importorskip("torchvision.models.vision_transformer", reason="needs torchvision")
    net, x = seeded(lambda: vision.VisionTransformer(32, 8, 2, 3, 24, 48, num_classes=CLASSES)), images(3, 32)
    net.heads.head.weight.data.copy_(torch.linspace(-1, 1, 24 * CLASSES).view(CLASSES, 24))  # zeros at first
    together = ask("transformer_attribution", net, x, (1, 3), rule="lrp").map
    for b in range(3):
        alone = ask("transformer_attribution", net, x[b : b + 1], (3,), rule="lrp").map
        assert same(together[b : b + 1, 1:], alone, 1e-9)


def test_it_is_not_the_generic_rule() -> None:
    net, x = vit_tiny(True), images(1, 64)
    maps = [ask("transformer_attribution", net, x, (2,), rule=rule).map for rule in ("generic", "lrp")]
    assert pearson(*maps) < 0.9999


def test_the_network_is_left_as_it_was_and_the_next_gradient_is_plain() -> None:
    net, x = vit_tiny(True), images(1, 64)
    before, plain = fingerprint(net), ask("input_x_gradient", net, x).map
    ask("transformer_attribution", net, x, rule="lrp")
    assert_unchanged(before, fingerprint(net))
    assert torch.equal(ask("input_x_gradient", net, x).map, plain)


def test_an_operation_without_a_rule_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = vit_tiny(True)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).sin()  # type: ignore[no-any-return]

    with pytest.raises(VisxError, match="no relevance rule: sin") as refused:
        answers(model_of(seeded(Odd), 64), "transformer_attribution", images(1, 64), rule="lrp")
    assert refused.value.code == 4
    model = model_of(seeded(lambda: ToyViT(gated=True)))
    with pytest.raises(VisxError, match="no relevance rule"):
        answers(model, "transformer_attribution", images(1, 12), rule="lrp")


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_part_is_refused() -> None:
    net = seeded(TinyViT)
    net.norm = torch.jit.script(net.norm)
    with pytest.raises(VisxError, match="scripted module norm") as caught:
        ask("transformer_attribution", net, images(1, 16), (0,), rule="lrp")
    assert caught.value.code == 4
