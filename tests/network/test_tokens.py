"""Tokens left out of a network: exact against masking in every attention, counted, and refused in words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masked_attention import masked
from nets import ATTENTIONS, CLASSES, GapHead, TinyViT, seeded
from oracles import assert_unchanged, column_scores, fingerprint, model_of, same
from visx.engine.jobs import plan
from visx.errors import VisxError
from visx.images.geometry import Preprocess
from visx.methods import get_method
from visx.models.model import Model, Weights
from visx.network.blackbox import BlackBox
from visx.network.memory import BatchSize
from visx.network.network import Network
from visx.network.outputs import Outputs
from visx.network.scorer import Scorer
from visx.network.stream import blocks, stream
from visx.network.tokens import Tokens


class Scored(BlackBox):
    """Two class columns: the mean of the picture and its opposite."""

    outputs = Outputs("logits", classes=2)

    def scores_of(self, x: Tensor, seeds: Sequence[int] = ()) -> Tensor:
        return x.mean((1, 2, 3))[:, None] * torch.tensor([1.0, -1.0])


def lively(net: nn.Module) -> nn.Module:
    """Every parameter moved at random: libraries begin with zeros in heads and near zero in the scales of layers."""
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return net


def of_timm(name: str, **config: object) -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    return lively(timm.create_model(name, num_classes=CLASSES, **config))


def torchvision_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return lively(VisionTransformer(64, 16, 2, 2, 24, 48, num_classes=CLASSES))


def cait() -> nn.Module:
    """Its weights are mixed behind the softmax, with a bias that would give hidden tokens weight again."""
    net = of_timm("cait_xxs24_224", img_size=64, depth=2)
    for block in net.blocks:
        nn.init.zeros_(block.attn.proj_w.bias)
    return net


class Encoder(nn.Module):
    """PyTorch's own encoder, with a class token."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 16, 4, 4), nn.Parameter(torch.randn(1, 1, 16))
        self.place, self.fc = nn.Parameter(torch.randn(1, 10, 16)), nn.Linear(16, CLASSES)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        if self.batch_first:
            return self.fc(self.encoder(x)[:, 0])
        return self.fc(self.encoder(x.transpose(0, 1))[0])


class Inline(nn.Module):
    """Blocks written out in forward, with tokens before and behind the patches, in a batch whose size is remembered."""

    def __init__(self, before: int = 1, behind: int = 2, mean: bool = False) -> None:
        super().__init__()
        self.patch, self.drop = nn.Conv2d(3, 8, 4, 4), nn.Dropout(0.1)
        self.first, self.last = nn.Parameter(torch.randn(1, before, 8)), nn.Parameter(torch.randn(1, behind, 8))
        self.place = nn.Parameter(torch.randn(1, before + 9 + behind, 8))
        self.norm, self.q, self.k, self.v = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.fc, self.before, self.behind, self.mean = nn.Linear(8, CLASSES), before, behind, mean

    def embedded(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        rows = len(x)
        return torch.cat([self.first.expand(rows, -1, -1), x, self.last.expand(rows, -1, -1)], 1) + self.place

    def blocks(self, x: Tensor) -> Tensor:
        for _ in range(2):
            y = self.norm(x)
            x = x + (self.q(y) @ self.k(y).transpose(1, 2))[:, None].softmax(-1)[:, 0] @ self.v(y)
        return x

    def forward(self, x: Tensor) -> Tensor:
        rows = x.shape[0]
        x = self.blocks(self.drop(self.embedded(x)))
        x = x[:, self.before : x.shape[1] - self.behind]
        return self.fc(x.mean(1).view(rows, 8))


# What leaves tokens out -> (how to build it, the side of its picture, other tokens before and behind the patches)
FITTING: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, int]]] = {
    "timm": (lambda: of_timm("vit_tiny_patch16_224", img_size=64, depth=2), 64, (1, 0)),
    "timm, mean of patches": (
        lambda: of_timm("vit_tiny_patch16_224", img_size=64, depth=2, class_token=False, global_pool="avg"), 64, (0, 0)
    ),
    "DeiT, distilled": (lambda: of_timm("deit_tiny_distilled_patch16_224", img_size=64, depth=2), 64, (2, 0)),
    "DINOv2 with registers": (
        lambda: of_timm("vit_small_patch14_reg4_dinov2", img_size=(56, 70), depth=2), (56, 70), (5, 0)
    ),
    "torchvision": (torchvision_vit, 64, (1, 0)),
    **{f"toy, {name}": (partial(TinyViT, name, 2), 12, (2, 0)) for name in ATTENTIONS if name != "turned"},
    "toy, mean of patches": (partial(TinyViT, "fused", 0), 12, (0, 0)),
    "nn.TransformerEncoder": (Encoder, 12, (1, 0)),
    "nn.TransformerEncoder, batch second": (partial(Encoder, False), 12, (1, 0)),
    "blocks in forward": (Inline, 12, (1, 2)),
    "CaiT": (cait, 64, (0, 0)),
}  # fmt: skip


def subsets(cells: int, rows: int = 6) -> Tensor:
    """Random subsets of the patches (rows, cells), among them all of them and a single one."""
    visible = torch.rand(rows, cells, generator=torch.Generator().manual_seed(3)) < 0.5
    visible[0], visible[1] = True, False
    visible[1, 2] = True
    return visible


def picture(size: int | tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(5), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FITTING)
def test_leaving_out_equals_masking_in_every_attention(name: str, dtype: torch.dtype) -> None:
    build, size, others = FITTING[name]
    net, x = seeded(build, dtype=dtype), picture(size, dtype)
    before = fingerprint(net)
    network = Network(net)
    with network.session():
        tokens = network.tokens(x.shape)
        assert isinstance(tokens, Tokens), tokens
        visible = subsets(tokens.grid[0] * tokens.grid[1])
        found = tokens.values(x, visible)
        wanted = masked(net, x, visible, *others)
    assert found.dtype == dtype and float(wanted.std(0).min()) > 1e-3, "hiding changes nothing"
    assert same(found, wanted, 1e-9 if dtype == torch.float64 else 1e-4)
    assert_unchanged(before, fingerprint(net))


class Placed(Inline):
    """Its places are added in every block, to the first so many tokens."""

    def embedded(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return torch.cat([self.first.expand(len(x), -1, -1), x, self.last.expand(len(x), -1, -1)], 1)

    def blocks(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = super().blocks(x + self.place[:, : x.shape[1]])
        return x


class Counting(Inline):
    """Averages the first so many tokens behind the class token, as if none could be missing."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.embedded(x))
        return self.fc(self.blocks(x)[:, self.before : self.before + 9].mean(1))


class Around(Inline):
    """Its head sees the picture once more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.fc(self.patch(x).mean((2, 3)))


class Hybrid(Inline):
    """Its tokens come from convolutions that see across patches."""

    def embedded(self, x: Tensor) -> Tensor:
        return super().embedded(F.avg_pool2d(x, 5, 1, 2))


class Summary(Inline):
    """One of its tokens is made from the whole picture."""

    def embedded(self, x: Tensor) -> Tensor:
        x = super().embedded(x)
        return torch.cat([x[:, :1] + x[:, 1:].mean(1, keepdim=True), x[:, 1:]], 1)


class Reading(Inline):
    """Reads a number out of the picture, which no graph shows."""

    def forward(self, x: Tensor) -> Tensor:
        numbers = x.mean((1, 2, 3)).tolist()
        return super().forward(x) + 10 * torch.tensor(numbers, dtype=x.dtype)[:, None] * self.fc.bias


class Drawing(Inline):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(len(x), CLASSES, dtype=x.dtype)


class Flat(Inline):
    """Reads every token by a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.Linear(12 * 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.blocks(self.drop(self.embedded(x))).flatten(1))


class Nameless(Inline):
    """No module takes or returns its tokens."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        return self.fc((x + (x @ x.transpose(1, 2)).softmax(-1) @ x)[:, 0])


class Convolving(Inline):
    """Brings its tokens back to a map between the blocks."""

    def __init__(self) -> None:
        super().__init__(0, 0)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def blocks(self, x: Tensor) -> Tensor:
        return super().blocks(x) + self.conv(x.transpose(1, 2).unflatten(2, (3, 3))).flatten(2).transpose(1, 2)


class Windowed(nn.Module):
    """Attention within rows of patches, which stay in rows and columns."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.norm, self.fc = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patch(x).permute(0, 2, 3, 1))
        x = x + (x @ x.transpose(2, 3)).softmax(-1) @ x
        return self.fc(x.mean((1, 2)))


def mixer() -> nn.Module:
    module = pytest.importorskip("timm.models.mlp_mixer", reason="timm is an extra")
    return lively(module.MlpMixer(CLASSES, 64, patch_size=16, num_blocks=2, embed_dim=24))


RUNS = "does not run on a part of its tokens"
# What does not leave tokens out -> (how to build it, the side of its picture, the reason)
REFUSED: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "convolutions": (GapHead, 12, "it has no attention"),
    "places in every block": (Placed, 12, "depend on the order or the number of its tokens"),
    "a number remembered": (Counting, 12, "it counts on the full number of its tokens"),
    "a second way": (Around, 12, "no single sequence"),
    "a hybrid": (Hybrid, 12, "see more of the picture than their own patch"),
    "a token of the whole picture": (Summary, 12, "see more of the picture than their own patch"),
    "a number read out": (Reading, 12, "its scores depend on more than its tokens"),
    "random draws": (Drawing, 12, "depends on more than its picture"),
    "a weight for each token": (Flat, 12, RUNS),
    "no module": (Nameless, 12, "none of its modules takes or returns the sequence"),
    "a convolution between": (Convolving, 12, RUNS),
    "windows": (Windowed, 12, "no single sequence of tokens"),
    "Swin": (
        lambda: of_timm(
            "swin_tiny_patch4_window7_224", img_size=64, window_size=4, embed_dim=12, depths=(1, 1), num_heads=(1, 2)
        ), 64, "no single sequence of tokens",
    ),
    "BEiT": (
        lambda: of_timm("beit_base_patch16_224", img_size=64, embed_dim=24, depth=2, num_heads=2), 64, RUNS
    ),
    "EVA": (lambda: of_timm("eva02_tiny_patch14_224", img_size=56, embed_dim=48, depth=2, num_heads=2), 56, RUNS),
    "MLP-Mixer": (mixer, 64, "it has no attention"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_leave_tokens_out_is_refused_in_words(name: str) -> None:
    """Before anything is computed, by exit code 4, and the module is as it was."""
    build, size, reason = REFUSED[name]
    net = seeded(build)
    before = fingerprint(net)
    model = model_of(net, size)
    for method, params in (("tis", {}), ("rise", {"hide": "drop"}), ("occlusion", {"hide": "drop"})):
        with pytest.raises(VisxError) as refused:
            plan(model, [get_method(method)], params={method: params})
        assert refused.value.code == 4 and reason in refused.value.message, refused.value.message
        assert "vision transformer" in refused.value.message
        assert ("these fit: " if method == "tis" else f"{method} fits with other parameters") in refused.value.hint
    assert_unchanged(before, fingerprint(net))


def test_black_boxes_are_refused() -> None:
    preprocess = Preprocess(12, (12, 12), mean=(0.5,) * 3, std=(0.5,) * 3)
    model = Model("own", Scored(), preprocess, Weights("own", "0"))
    with pytest.raises(VisxError, match=r"only gives scores.*vision transformer") as refused:
        plan(model, [get_method("rise")], params={"rise": {"hide": "drop"}})
    assert refused.value.code == 4
    image = picture(12)
    with pytest.raises(VisxError, match="only gives scores"):
        Scorer(lambda x: x).tokens_of(image)


class Watched(TinyViT):
    """Counts the tokens that go through a block: (copies, tokens) of each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[1].register_forward_hook(lambda m, args, output: seen.append(tuple(output.shape[:2])))


seen: list[tuple[int, int]] = []


def test_a_copy_costs_its_visible_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of equal size go together, equal copies once, in batches of the size that is asked for."""
    network, x = Network(seeded(Watched)), picture(20)  # 25 patches
    visible = torch.rand(200, 25, generator=torch.Generator().manual_seed(0)) < 0.5
    visible[100] = visible[7]
    scores = column_scores(torch.tensor([[1, 3]]), "prob")
    with network.session():
        scorer = Scorer(network.scores_of, BatchSize(16), tokens=network.tokens)
        tokens = scorer.tokens_of(x)
        seen.clear()
        found = scorer.token_scores(x, visible, scores)
        counted = seen.copy()
        alone = torch.cat([scores(tokens.values(x, row[None])) for row in visible])
    distinct = visible.unique(dim=0)
    assert sum(rows for rows, _ in counted) == len(distinct) < 200
    assert sum(rows * (count - 1) for rows, count in counted) == int(distinct.sum())
    assert max(rows for rows, _ in counted) <= 16
    sizes = distinct.sum(1).unique()
    assert len(counted) <= -(-len(distinct) // 16) + len(sizes)
    assert same(found, alone, 1e-12) and torch.equal(found[100], found[7])


def test_batches_halve_when_memory_runs_out() -> None:
    said: list[str] = []
    network, x = Network(seeded(TinyViT)), picture(12)
    visible = torch.rand(40, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    scores = column_scores(torch.tensor([[1]]))
    with network.session():
        whole = Scorer(network.scores_of, BatchSize(64), tokens=network.tokens).token_scores(x, visible, scores)

        def short(values: Tensor) -> Tensor:
            if len(values) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return scores(values)

        size = BatchSize(16, said.append)
        found = Scorer(network.scores_of, size, tokens=network.tokens).token_scores(x, visible, short)
    assert size.rows == 4 and len(said) == 2 and same(found, whole, 1e-12)


@pytest.mark.parametrize("prefix", [0, 1])
def test_a_copy_without_any_patch(prefix: int) -> None:
    """The class token alone is scored; without one there is nothing to score, and the value says so."""
    net, x = seeded(lambda: TinyViT(prefix=prefix)), picture(12)
    network, visible = Network(net), torch.zeros(2, 9, dtype=torch.bool)
    visible[1, 4] = True
    with network.session():
        tokens = network.tokens(x.shape)
        assert isinstance(tokens, Tokens) and tokens.bare == bool(prefix)
        found, nothing = tokens.values(x, visible), tokens.values(x, visible[:1])
    assert found[1].isfinite().all()
    if not prefix:
        assert found[0].isnan().all() and nothing.isnan().all()
        return
    with torch.no_grad():
        wanted = net.fc(net.norm(net.blocks(net.prefix)).mean(1))
    assert same(found[:1], wanted) and same(nothing, wanted)


def test_the_stream_is_what_everything_passes_through() -> None:
    network, x = Network(seeded(TinyViT)), picture(12)
    with network.session():
        record = network.record(x.shape)
        assert [site.name for site in blocks(record)] == ["blocks.0", "blocks.1", "blocks.2"]
        assert record.score is not None and record.score[0].node is not None
        shapes = [node.shape for node in stream(record.score[0].node)]
    assert shapes.count((1, 10, 16)) >= 4 and shapes[0] == (1, 3, 12, 12) and shapes[-1] == (1, CLASSES)


def test_features_are_those_of_every_block() -> None:
    net, x = seeded(TinyViT), picture((12, 20))
    network = Network(net)
    with network.session():
        tokens = network.tokens(x.shape)
        assert isinstance(tokens, Tokens) and tokens.grid == (3, 5)
        found = tokens.features(x)
    with torch.no_grad():
        y = torch.cat([net.prefix, net.patches(x[None]).flatten(2).transpose(1, 2)], 1)
        wanted = []
        for block in net.blocks:
            y = block(y)
            wanted.append(y[0, 1:].T)
    assert same(found, torch.cat(wanted))


def test_tokens_are_learnt_anew_when_the_module_has_changed() -> None:
    """Nothing of the old values is kept: tokens are taken from the pass itself, and the trial is made again."""
    net, x = seeded(TinyViT), picture(12)
    network, visible = Network(net), subsets(9)
    with network.session():
        first = network.tokens(x.shape)
        assert network.tokens(x.shape) is first
        net.patches.weight.data.mul_(2)
        with torch.no_grad():
            net.prefix.add_(1)
        again = network.tokens(x.shape)
        assert again is not first and isinstance(again, Tokens)
        assert same(again.values(x, visible), masked(net, x, visible, 1))


def test_half_precision_is_tried_in_full_and_run_in_half() -> None:
    net, x = seeded(TinyViT, dtype=torch.float32), picture(12, torch.float32)
    network = Network(net.to(torch.bfloat16))
    with network.session():
        tokens = network.tokens(x.shape)
        assert isinstance(tokens, Tokens) and tokens.network is network
        visible = subsets(9)
        found = tokens.values(x, visible)
        assert found.dtype == torch.float32 and found[0].sub(network.scores_of(x[None])[0]).abs().max() < 0.1


@pytest.mark.parametrize("fails", ["forward", "hook"])
def test_the_module_is_unchanged_by_a_failure(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = seeded(TinyViT), picture(12)
    network = Network(net)
    with network.session():
        tokens = network.tokens(x.shape)
    assert isinstance(tokens, Tokens)
    before = fingerprint(net)

    def failing(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if fails == "forward":
            patch.setattr(torch.nn.functional, "layer_norm", failing)
        else:
            patch.setattr(nn.Module, "register_forward_hook", failing)
            patch.setattr(nn.Module, "register_forward_pre_hook", failing)
        with pytest.raises(KeyboardInterrupt), network.session():
            tokens.values(x, subsets(9))
    assert_unchanged(before, fingerprint(net))
