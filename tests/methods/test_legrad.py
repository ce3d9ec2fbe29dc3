"""LeGrad against the paper's formula written slowly, and against torch-cam's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from by_hand import block_by_hand, classified, embedded, vit_tiny
from nets import ATTENTIONS, Probe, TinyViT, images, seeded
from oracles import answers, ask, model_of, pearson, same


def slowly(net: TinyViT, picture: Tensor, target: int, pool: str = "mean", last: int = 3) -> Tensor:
    """The mean over blocks of relu(ds/dA), each block's score from a pass of its own."""
    count, maps = net.prefix.shape[1], []
    for depth in range(len(net.blocks) + 1 - last, len(net.blocks) + 1):
        x = embedded(net, picture)
        for block in net.blocks[:depth]:
            x, weights = block_by_hand(block, x)
        if pool == "mean":
            x = x.mean(1, keepdim=True).expand_as(x)
        (gradient,) = torch.autograd.grad(classified(net, x)[target], weights)
        maps.append(gradient.clamp(min=0).mean((0, 1))[count:])
    return torch.stack(maps).mean(0).view(3, 3)


@pytest.mark.parametrize("pool", ["mean", "own"])
@pytest.mark.parametrize(
    ("spelling", "prefix"), [*((spelling, 1) for spelling in ATTENTIONS), ("fused", 0), ("fused", 2)]
)
def test_it_is_the_papers_formula(spelling: str, prefix: int, pool: str) -> None:
    net, x = seeded(lambda: TinyViT(spelling, prefix)), images(2)
    result = ask("legrad", net, x, (1, 3), pool=pool)
    for b in range(2):
        for t, target in enumerate((1, 3)):
            assert same(result.map[b, t], slowly(net, x[b], target, pool))


@pytest.mark.parametrize("blocks", [1, 2])
def test_of_the_last_blocks(blocks: int) -> None:
    net, x = seeded(TinyViT), images(1)
    assert same(ask("legrad", net, x, (1,), blocks=blocks).map[0, 0], slowly(net, x[0], 1, last=blocks))


@pytest.mark.parametrize("fused", [True, False])
def test_of_a_real_architecture(fused: bool) -> None:
    pytest.importorskip("timm", reason="ViT-tiny is timm's")
    net, x = vit_tiny(fused), images(1, 64)
    probe, weights, outputs = vit_tiny(False), [], []
    for block in probe.blocks:
        block.attn.attn_drop.register_forward_pre_hook(lambda m, args: weights.append(args[0]))
        block.register_forward_hook(lambda m, args, output: outputs.append(output))
    probe(x)
    total = torch.zeros(16, dtype=torch.float64)
    for of_block, output in zip(weights, outputs, strict=True):
        score = probe.head(probe.norm(output.mean(1)))[0, 2]
        (gradient,) = torch.autograd.grad(score, of_block, retain_graph=True)
        total += gradient[0].clamp(min=0).mean((0, 1))[1:] / 12
    result = ask("legrad", net, x, (2,)).map[0, 0]
    assert pearson(result, total.view(4, 4)) >= 0.9999 and same(result, total.view(4, 4))


def test_it_agrees_with_torch_cams() -> None:
    methods = pytest.importorskip("torchcam.methods", reason="torch-cam is not installed")
    models = pytest.importorskip("torchvision.models", reason="the peer's default is torchvision's ViT")

    def build() -> nn.Module:
        net = models.VisionTransformer(32, 8, 3, 2, 24, 48, num_classes=5)
        nn.init.normal_(net.heads.head.weight)
        return net

    net, x = seeded(build), images(1, 32)
    with methods.LeGrad(net, list(net.encoder.layers)) as extractor:
        maps = extractor(2, net(x.clone().requires_grad_()), normalized=False)
    wanted = torch.stack([m[0] for m in maps]).mean(0)
    result = ask("legrad", net, x, (2,)).map[0, 0]
    assert wanted.shape == (4, 4) and pearson(result, wanted) >= 0.9999 and same(result, wanted, 1e-6)


def test_one_pass_serves_all_blocks() -> None:
    net = seeded(TinyViT)
    net.norm = nn.Sequential(net.norm, Probe())
    probe, model = net.norm[1], model_of(net)
    for _ in range(2):  # the first time it learns the network
        probe.forwards.clear()
        probe.backwards.clear()
        answers(model, "legrad", images(2), "top2")
    assert probe.forwards == [8], "the pass itself and three blocks, of two pictures"
    assert probe.backwards == [8, 8], "one a target"
