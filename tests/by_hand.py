"""The attention of a `TinyViT` by hand: its blocks, and every matrix that a method of attention is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nets import TinyViT, seeded

# Weights (H, N, N) -> (N, N)
FUSE = {"mean": lambda w: w.mean(0), "max": lambda w: w.amax(0), "min": lambda w: w.amin(0)}


@dataclass
class ByHand:
    """A pass over one picture: `weights` of each block (H, N, N), their `gradients` for one class, `outputs` of each block
    (1, N, C)."""

    weights: list[Tensor]
    gradients: list[Tensor]
    outputs: list[Tensor]


def block_by_hand(block: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """A block's output for tokens (1, N, C), and its attention weights (H, N, N), which autograd sees."""
    q, k, v = block.attn.qkv(block.norm1(x))[0].unflatten(1, (3, 2, -1)).permute(1, 2, 0, 3)  # type: ignore[union-attr, operator]
    weights = torch.exp(4 * q @ k.transpose(1, 2) / q.shape[-1] ** 0.5)
    weights = weights / weights.sum(2, keepdim=True)
    weights.retain_grad()
    heads = [weights[h] @ v[h] for h in range(len(v))]
    x = x + block.attn.proj(torch.cat(heads, 1))[None]  # type: ignore[union-attr, operator]
    return x + block.mlp(block.norm2(x)), weights  # type: ignore[operator]


def embedded(net: TinyViT, picture: Tensor) -> Tensor:
    """Tokens (1, N, C) of a picture (3, H, W), class tokens first."""
    patches = net.patches(picture[None].clone().requires_grad_())[0].flatten(1).t()
    return torch.cat([net.prefix[0], patches])[None]


def classified(net: TinyViT, tokens: Tensor) -> Tensor:
    """The logits (K,) of the last block's output."""
    count = net.prefix.shape[1]
    tokens = net.norm(tokens)[0]
    return net.fc(tokens[:count].mean(0) if count else tokens.mean(0))  # type: ignore[no-any-return]


def by_hand(net: TinyViT, picture: Tensor, target: int) -> ByHand:
    """A pass over a picture (3, H, W) and the gradient of a class's logit."""
    x = embedded(net, picture)
    weights, outputs = [], []
    for block in net.blocks:
        x, of_block = block_by_hand(block, x)
        weights.append(of_block)
        outputs.append(x)
    grads = torch.autograd.grad(classified(net, x)[target], weights)
    return ByHand([w.detach() for w in weights], list(grads), [o.detach() for o in outputs])


def vit_tiny(fused: bool) -> torch.nn.Module:
    """timm's ViT-tiny for pictures of 64 pixels in float64, with seeded weights whose attention is not all alike."""
    import timm

    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(fused)
    try:
        net = seeded(lambda: timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=64, num_classes=5))
    finally:
        timm.layers.set_fused_attn(before)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter *= 4 if "qkv.weight" in name else 1
    return net
