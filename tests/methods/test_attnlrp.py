"""AttnLRP: relevance propagated rule by rule through a ViT, the authors' own package, and LibraGrad on the same networks."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nets import CLASSES, images, seeded
from oracles import ask, assert_unchanged, fingerprint, pearson, same
from toy_transformers import EPSILON, Mlp, ToyViT, half, ratio
from visx.network.norms import align_norms
from visx.network.rules import LIBRA, Composite, Graph, attnlrp

timm = pytest.importorskip("timm", reason="needs timm")


def tiny(name: str = "vit_tiny_patch16_224", **options: Any) -> nn.Module:
    """A network of timm with weights of a seed, in float64."""
    return seeded(lambda: timm.create_model(name, num_classes=CLASSES, **options))


class Detached:
    """The operations of a ViT, written so that the plain gradient is that of a relevance rule."""

    def __init__(self, composite: Composite) -> None:
        self.libra = composite is LIBRA

    def linear(self, x: Tensor, layer: Any) -> Tensor:
        return F.linear(x, layer.weight.flatten(1), layer.bias)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def norm(self, x: Tensor, layer: Any) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt().detach() * layer.weight + layer.bias
        )

    def times(self, x: Tensor, factor: float) -> Tensor:
        return x * factor

    def softmax(self, x: Tensor) -> Tensor:
        return x.softmax(-1).detach() if self.libra else x.softmax(-1)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b if self.libra else half(a @ b)

    def gelu(self, x: Tensor) -> Tensor:
        return ratio(x, F.gelu(x))

    def relevance(self, y: Tensor, x: Tensor, target: int) -> Tensor:
        (grad,) = torch.autograd.grad(y[:, target].sum(), x)
        return (x * grad).sum(1)


class Lxt:
    """The same by the explicit rules of the authors' package, whose backward pass carries relevance itself."""

    def __init__(self) -> None:
        self.rules = pytest.importorskip("lxt.explicit.functional", reason="needs the package lxt of AttnLRP's authors")
        self.identity = pytest.importorskip("lxt.explicit.rules").identity
        self.eps = {"epsilon": 1e-18}

    def linear(self, x: Tensor, layer: Any) -> Tensor:
        return self.rules.linear_epsilon(x, layer.weight.flatten(1), layer.bias, **self.eps)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return self.rules.add2(a, b.expand_as(a), **self.eps)

    def norm(self, x: Tensor, layer: Any) -> Tensor:
        return self.rules.layer_norm(x, layer.weight, layer.bias, layer.eps)

    def times(self, x: Tensor, factor: float) -> Tensor:
        return self.rules.mul2(x, factor)

    def softmax(self, x: Tensor) -> Tensor:
        return self.rules.softmax(x, -1)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return self.rules.matmul(a, b, **self.eps)

    def gelu(self, x: Tensor) -> Tensor:
        return self.identity(F.gelu, x)

    def relevance(self, y: Tensor, x: Tensor, target: int) -> Tensor:
        (relevance,) = torch.autograd.grad(y[:, target], x, y[:, target].detach())
        return relevance.sum(1)


def relevance_by_hand(net: Any, x: Tensor, target: int, ops: Any) -> Tensor:
    """The relevance (B, H, W) of a logit of timm's plain ViT, operation by operation."""
    leaf = x.clone().requires_grad_()
    patch = net.patch_embed.proj.kernel_size[0]
    t = ops.linear(F.unfold(leaf, patch, stride=patch).transpose(1, 2), net.patch_embed.proj)
    t = ops.add(torch.cat([net.cls_token.expand(len(t), -1, -1), t], 1), net.pos_embed)
    for block in net.blocks:
        b, n, d = t.shape
        heads = block.attn.num_heads
        q, k, v = (
            ops.linear(ops.norm(t, block.norm1), block.attn.qkv).reshape(b, n, 3, heads, -1).permute(2, 0, 3, 1, 4)
        )
        attention = ops.softmax(ops.times(ops.matmul(q, k.transpose(-2, -1)), 1 / math.sqrt(d // heads)))
        out = ops.matmul(attention, v).transpose(1, 2).reshape(b, n, d)
        t = ops.add(t, ops.linear(out, block.attn.proj))
        h = ops.gelu(ops.linear(ops.norm(t, block.norm2), block.mlp.fc1))
        t = ops.add(t, ops.linear(h, block.mlp.fc2))
    return ops.relevance(ops.linear(ops.norm(t, net.norm)[:, 0], net.head), leaf, target).detach()


def perturbed(net: nn.Module) -> nn.Module:
    """The network with biases that are not zero."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p += torch.randn(p.shape, generator=g, dtype=p.dtype) * 0.02
    return net


@pytest.mark.parametrize(("name", "composite"), [("libragrad", LIBRA), ("attnlrp", attnlrp())])
@pytest.mark.parametrize("fused", [True, False])
def test_vit_tiny_by_hand(name: str, composite: Composite, fused: bool) -> None:
    net, x = perturbed(tiny(img_size=64)), images(2, 64)
    for block in net.blocks:  # type: ignore[union-attr]
        block.attn.fused_attn = fused  # type: ignore[union-attr]
    found = ask(name, net, x, (1, 3), **EPSILON[name]).map
    for t, target in enumerate((1, 3)):
        expected = relevance_by_hand(net, x, target, Detached(composite))
        assert same(found[:, t], expected, 1e-10) and pearson(found[:, t], expected) > 0.9999


def test_the_authors_package_agrees() -> None:
    net, x = perturbed(tiny(img_size=64, depth=4)), images(1, 64)
    found, expected = ask("attnlrp", net, x, (2,), **EPSILON["attnlrp"]).map[:, 0], relevance_by_hand(net, x, 2, Lxt())
    assert pearson(found, expected) > 0.999999 and same(found, expected, 1e-3)  # its norm adds an epsilon


class OneAttention(nn.Module):
    """Tokens (a linear map of each row of the picture), one attention, their mean, one linear layer; no bias anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(18, 5, bias=False), nn.Linear(5, CLASSES, bias=False)
        self.q, self.k, self.v = (nn.Linear(5, 5, bias=False) for _ in range(3))

    def tokens(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        t = self.embed(self.tokens(x))
        q, k, v = self.q(t), self.k(t), self.v(t)
        return self.head(F.scaled_dot_product_attention(q, k, v, scale=1.0).mean(1))


@torch.no_grad()
def test_every_rule_as_a_share_of_relevance() -> None:
    net, x = seeded(OneAttention), images(1, 6)
    rows = net.tokens(x)[0]  # type: ignore[operator]
    t = rows @ net.embed.weight.T
    q, k, v = (t @ layer.weight.T for layer in (net.q, net.k, net.v))
    scores = q @ k.T
    a = scores.softmax(1)
    o = a @ v
    r_o = o * net.head.weight[2] / len(o)  # linear layer and mean
    r_a = a * torch.einsum("md,nd->nm", v, r_o / o) / 2
    r_v = v * torch.einsum("nm,nd->md", a, r_o / o) / 2
    r_s = scores * (r_a - a * r_a.sum(1, keepdim=True))  # Proposition 3.1
    r_q = q * torch.einsum("md,nm->nd", k, r_s / scores) / 2
    r_k = k * torch.einsum("nd,nm->md", q, r_s / scores) / 2
    r_t = t * sum(r / y @ layer.weight for r, y, layer in ((r_q, q, net.q), (r_k, k, net.k), (r_v, v, net.v)))
    expected = rows * (r_t / t @ net.embed.weight)
    found = ask("attnlrp", net, x, (2,), **EPSILON["attnlrp"])
    assert same(found.map[0, 0], expected.reshape(6, 3, 6).sum(1), 1e-11)
    kept = r_a.sum() - r_s.sum()  # the share of the softmax's constant part
    assert abs(float(kept)) > 1e-3
    assert found.extra(0, 0)["relevance_sum"] + float(kept) == pytest.approx(float(net(x)[0, 2]), rel=1e-10)


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "Swin": ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)}),
    "SwinV2": ("swinv2_tiny_window8_256", {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)}),
    "EVA, SwiGLU": ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2}),
    "DINOv2, LayerScale, registers": (
        "vit_small_patch14_reg4_dinov2",
        {"img_size": 56, "depth": 2, "init_values": 0.5},
    ),
    "MLP-Mixer": ("mixer_s16_224", {"img_size": 64}),
    "ConvNeXt": ("convnext_atto", {"depths": (1, 1, 1, 1)}),
    "ConvNeXt V2": ("convnextv2_atto", {"depths": (1, 1, 1, 1)}),
    "MambaOut": ("mambaout_femto", {"depths": (1, 1, 1, 1)}),
    "squeeze and excitation": ("efficientnet_b0", {}),
    "Hardswish": ("mobilenetv3_small_050", {}),
}
CONSTANTS = ("bias", "token", "pos_embed")  # the ends of the names of parameters that a network adds


@pytest.mark.parametrize("family", NETWORKS)
def test_libragrad_leaves_to_biases_what_it_does_not_give_to_the_input(family: str) -> None:
    """Under the rules a network is linear in the input, its biases and its tokens together: their shares make up the score."""
    name, options = NETWORKS[family]
    net = perturbed(tiny(name, **options)).requires_grad_(False)
    constants = [p.requires_grad_() for key, p in net.named_parameters() if key.endswith(CONSTANTS)]
    x = images(1, options.get("img_size", 64)).requires_grad_()
    score = net(x * 1)[0, 1]
    plan = Graph(score, LIBRA).plan()
    assert not plan.lacking
    plan.hang()
    align_norms(score)
    parts = [x, *constants]
    grads = torch.autograd.grad(score, parts, allow_unused=True)
    shares = [float((p * g).sum().detach()) for p, g in zip(parts, grads, strict=True) if g is not None]
    assert sum(shares) == pytest.approx(score.item(), rel=1e-10)
    found = ask("libragrad", net, x.detach(), (1,)).extra(0, 0)["relevance_sum"]
    assert found == pytest.approx(shares[0], rel=1e-9)


@pytest.mark.parametrize("name", ["libragrad", "attnlrp"])
@pytest.mark.parametrize("family", ["Swin", "EVA, SwiGLU", "DINOv2, LayerScale, registers"])
def test_fused_attention_changes_nothing(name: str, family: str) -> None:
    model, options = NETWORKS[family]
    net, x = perturbed(tiny(model, **options)), images(2, options["img_size"])
    attentions = [m for m in net.modules() if hasattr(m, "fused_attn")]
    maps = []
    for fused in (True, False):
        for m in attentions:
            m.fused_attn = fused
        maps.append(ask(name, net, x, (0, 4), **EPSILON[name]).map)
    assert attentions and same(maps[0], maps[1], 1e-10)


@pytest.mark.parametrize("name", ["libragrad", "attnlrp"])
def test_torchvision_and_timm_give_one_answer(name: str) -> None:
    """One ViT of two libraries: in torchvision's, attention is torch's own module."""
    vision = pytest.importorskip("torchvision.models.vision_transformer", reason="needs torchvision")
    ours = perturbed(tiny(img_size=64, depth=2))
    theirs = seeded(lambda: vision.VisionTransformer(64, 16, 2, 3, 192, 768, num_classes=CLASSES))
    state = ours.state_dict()
    names = {
        "conv_proj": "patch_embed.proj", "class_token": "cls_token", "encoder.pos_embedding": "pos_embed", "encoder.ln": "norm",
        "heads.head": "head", "encoder.layers.encoder_layer_": "blocks.", "ln_1": "norm1", "ln_2": "norm2",
        "self_attention.in_proj_": "attn.qkv.", "self_attention.out_proj": "attn.proj", "mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2",
    }  # fmt: skip
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            for old, new in names.items():
                key = key.replace(old, new)
            value.copy_(state[key])
    x = images(2, 64)
    assert same(
        ask(name, theirs, x, (1, 2), **EPSILON[name]).map, ask(name, ours, x, (1, 2), **EPSILON[name]).map, 1e-10
    )


@pytest.mark.parametrize("name", ["libragrad", "attnlrp"])
def test_transformers_eager_and_sdpa(name: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        image_size=32,
        num_labels=CLASSES,
    )
    x, maps = images(2, 32), []
    for how in ("eager", "sdpa"):
        config._attn_implementation = how
        net = perturbed(seeded(lambda: Logits(transformers.ViTForImageClassification(config))))
        maps.append(ask(name, net, x, (1, 4), **EPSILON[name]).map)
    assert same(maps[0], maps[1], 1e-5)  # the eager one's softmax is in float32


class Logits(nn.Module):
    """A network of transformers that returns its logits alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["libragrad", "attnlrp"])
def test_one_forward_and_one_backward_pass_and_nothing_is_kept(name: str) -> None:
    net, x = seeded(ToyViT), images(1, 12)
    passes = []
    net.embed.register_forward_hook(lambda *_: passes.append("forward"))
    net.token.requires_grad_(False)
    ask(name, net, x)
    assert passes == ["forward"]
    gc.collect()
    before = sum(type(o) is Tensor for o in gc.get_objects())
    for _ in range(3):
        ask(name, net, x)
    assert sum(type(o) is Tensor for o in gc.get_objects()) == before


class Checkpointed(ToyViT):
    """Its blocks run again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["libragrad", "attnlrp"])
def test_what_runs_again_in_the_backward_pass_has_its_rules(name: str) -> None:
    x = images(1, 12)
    assert same(ask(name, seeded(Checkpointed), x).map, ask(name, seeded(ToyViT), x).map, 1e-10)


def gamma_by_contributions(x: Tensor, w: Tensor, g: Tensor, gamma: float) -> Tensor:
    """The gradient by the input (n, i) of a linear layer (j, i), given that by its output: every contribution by itself."""
    c = torch.einsum("ni,ji->nji", x, w)
    z = c.sum(2, keepdim=True)
    alike = torch.where(c * z > 0, c, 0)
    share = (c + gamma * alike) / (z + gamma * alike.sum(2, keepdim=True))
    return torch.einsum("nji,nj->ni", share, g * z[..., 0]) / x


class GammaLinear(torch.autograd.Function):
    """A linear layer with the gamma rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, gamma: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gamma = gamma
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad = gamma_by_contributions(x.flatten(0, -2), weight, g.flatten(0, -2), ctx.gamma)
        return grad.view(x.shape), None, None, None


class WithGamma(nn.Module):
    """A linear layer, or a convolution by patches, with the gamma rule."""

    def __init__(self, layer: Any, gamma: float) -> None:
        super().__init__()
        self.layer, self.gamma = layer, gamma

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.layer, nn.Linear):
            return GammaLinear.apply(x, self.layer.weight, self.layer.bias, self.gamma)  # type: ignore[no-any-return]
        size = self.layer.kernel_size[0]
        patches = F.unfold(x, size, stride=size).transpose(1, 2)
        y = GammaLinear.apply(patches, self.layer.weight.flatten(1), self.layer.bias, self.gamma)
        return y.transpose(1, 2).unflatten(2, (x.shape[2] // size, -1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("gamma", "gamma_conv"), [(0.05, 0.25), (0, 2.0), (100.0, 0)])
def test_gamma_is_for_layers_outside_of_attention(fused: bool, gated: bool, gamma: float, gamma_conv: float) -> None:
    net, x = seeded(lambda: ToyViT(fused=fused, gated=gated)), images(2, 12)
    slow = seeded(lambda: ToyViT("attnlrp", gated=gated))
    slow.embed = WithGamma(slow.embed, gamma_conv)
    slow.head = WithGamma(slow.head, gamma)
    for mlp in slow.mlps:  # type: ignore[union-attr]
        assert isinstance(mlp, Mlp)
        mlp.first, mlp.second = WithGamma(mlp.first, gamma), WithGamma(mlp.second, gamma)  # type: ignore[assignment]
        mlp.gate = None if mlp.gate is None else WithGamma(mlp.gate, gamma)  # type: ignore[assignment]
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(slow(leaf)[:, 3].sum(), leaf)
    found = ask("attnlrp", net, x, (3,), gamma=gamma, gamma_conv=gamma_conv).map[:, 0]
    assert same(found, (leaf * grad).sum(1), 1e-9)


class Convolutions(nn.Module):
    """Convolutions of several kinds without biases; each keeps the sum of relevance."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4, bias=False), nn.GELU(),
            nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(6 * 36, 7, bias=False), nn.SiLU(), nn.Linear(7, CLASSES, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("gamma", [0, 0.3, 10])
def test_the_sum_is_kept_whatever_gamma(gamma: float) -> None:
    net, x = seeded(Convolutions), images(2, 12)
    found = ask("attnlrp", net, x, (0, 3), gamma=gamma, gamma_conv=gamma).map
    with torch.no_grad():
        assert same(found.sum((2, 3)), net(x)[:, [0, 3]], 1e-10)


def test_parameters_are_left_as_they_were() -> None:
    net, x = seeded(ToyViT), images(1, 12)
    net.token.requires_grad_(False)
    before = fingerprint(net)
    ask("attnlrp", net, x)
    assert_unchanged(before, fingerprint(net))
