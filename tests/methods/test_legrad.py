"""LeGrad against the paper's formula written slowly, and against torch-cam's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from by_hand import block_by_hand, classified, embedded, vit_tiny
from nets import ATTENTIONS, Block, Probe, TinyViT, images, seeded
from oracles import answers, ask, model_of, pearson, same
from visx import VisxError
from visx.errors import ExitCode


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


class InTuple(Block):
    """A block that returns its tokens in a tuple, as some of transformers' do."""

    def forward(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (super().forward(x),)


class OfTuples(TinyViT):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(InTuple(16, "fused") for _ in range(3))
        self.blocks.load_state_dict(seeded(TinyViT).blocks.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)[0]
        return self.fc(self.norm(tokens)[:, 0])


def test_blocks_may_return_their_tokens_in_a_tuple() -> None:
    net, x = seeded(OfTuples), images(2)
    plain = TinyViT().double()
    plain.load_state_dict(net.state_dict())
    assert same(ask("legrad", net, x, (1, 3)).map, ask("legrad", plain, x, (1, 3)).map)


class Remembering(TinyViT):
    """What follows its blocks is written for the batch that came in."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.fc(self.blocks(tokens).reshape(len(x), 9, -1)[:, :, :16].mean(1))


def test_a_tail_of_a_fixed_batch_is_refused_with_the_reason() -> None:
    with pytest.raises(VisxError, match="what follows its last block takes no other batch") as refused:
        ask("legrad", seeded(Remembering), images(1))
    assert refused.value.code == ExitCode.UNSUPPORTED


class Stages(nn.Module):
    """Two blocks of 16 tokens, two of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.merge, self.fc = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 16, 2, 2), nn.Linear(16, 5)
        self.first = nn.Sequential(Block(16, "fused"), Block(16, "fused"))
        self.second = nn.Sequential(Block(16, "fused"), Block(16, "fused"))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(self.patches(x).flatten(2).transpose(1, 2))
        tokens = self.merge(tokens.transpose(1, 2).unflatten(2, (4, 4))).flatten(2).transpose(1, 2)
        return self.fc(self.second(tokens).mean(1))


def test_of_several_resolutions_the_last_has_scores_of_its_own() -> None:
    net, x = seeded(Stages), images(1, 16)
    result = ask("legrad", net, x, (1,)).map
    tokens = net.first(net.patches(x.requires_grad_()).flatten(2).transpose(1, 2))
    tokens = net.merge(tokens.transpose(1, 2).unflatten(2, (4, 4))).flatten(2).transpose(1, 2)
    maps = []
    for block in net.second:
        tokens, weights = block_by_hand(block, tokens)
        (gradient,) = torch.autograd.grad(net.fc(tokens.mean(1))[0, 1], weights, retain_graph=True)
        maps.append(gradient.clamp(min=0).mean((0, 1)).view(2, 2))
    assert same(result[0, 0], (maps[0] + maps[1]) / 2)


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


class SkipsOutside(TinyViT):
    """The skip connections are not part of a module."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = tokens + block.attn(tokens)
        return self.fc(tokens.mean(1))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_last_block_that_is_not_all_that_the_score_reads_is_refused(batch: int) -> None:
    with pytest.raises(VisxError, match="depends on more than the output of its last attention's block") as refused:
        ask("legrad", seeded(SkipsOutside), images(batch))
    assert refused.value.code == ExitCode.UNSUPPORTED
