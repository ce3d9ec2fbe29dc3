"""Where a network has self-attention over the picture's tokens, and its weights and gradients in a pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from by_hand import by_hand
from nets import ATTENTIONS, GapHead, TinyViT, Windows, images, seeded
from oracles import fingerprint, same
from visx import VisxError
from visx.network import attending
from visx.network.attention import Attentions, attentions
from visx.network.network import Network

SIZE = torch.Size((3, 12, 16))  # 3 x 4 patches


def of(net: nn.Module, shape: torch.Size = SIZE) -> tuple[Network, Attentions]:
    network = Network(net)
    with network.session():
        return network, attentions(network.record(shape))


def picture(batch: int = 1, shape: torch.Size = SIZE) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def watched(network: Network, known: Attentions, x: Tensor) -> list[Tensor]:
    weights: list[Tensor] = []
    with network.session():
        attending.watch(network, known, x, lambda site, compute: weights.append(compute()))
    return weights


@pytest.mark.parametrize("spelling", ATTENTIONS)
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_weights_and_gradients_are_those_by_hand(spelling: str, prefix: int) -> None:
    net = seeded(lambda: TinyViT(spelling, prefix))
    network, known = of(net)
    assert [(site.module, site.block) for site in known.sites] == [
        (f"blocks.{i}.attn", f"blocks.{i}") for i in range(3)
    ]
    x = picture(2)
    with network.session():
        scores, every = attending.attend(network, known, x, lambda values: values[:, [4, 1]])
        weights = [attended.weights() for attended in every]
        gradients = [[attended.gradient(t) for t in range(2)] for attended in every]
    seen = watched(network, known, x)
    assert same(scores, net(x)[:, [4, 1]])
    for b in range(2):
        for t, target in enumerate((4, 1)):
            wanted = by_hand(net, x[b], target)
            for i in range(3):
                assert same(weights[i][b, 0], wanted.weights[i]) and same(seen[i][b, 0], wanted.weights[i])
                assert same(gradients[i][t][b, 0], wanted.gradients[i])


def test_keys_lie_in_the_picture_and_the_score_reads_the_class_tokens() -> None:
    _, known = of(seeded(lambda: TinyViT(prefix=2)))
    site = known.sites[0]
    assert site.grid == (3, 4) and site.cells[0].tolist() == [-1, -1, *range(12)]
    assert site.maps(torch.arange(14.0)[None]).flatten().tolist() == list(range(2, 14))
    like = torch.zeros(0, dtype=torch.float64)
    assert attending.reading(known, like).tolist() == [0.5, 0.5, *[0.0] * 12]
    _, known = of(seeded(lambda: TinyViT(prefix=0)))
    assert attending.reading(known, like).tolist() == pytest.approx([1 / 12] * 12)


def test_of_a_head_of_zeros_the_class_tokens_are_read() -> None:
    net = seeded(lambda: TinyViT(prefix=2))
    nn.init.zeros_(net.fc.weight)
    assert of(net)[1].reads.tolist() == [[0.5, 0.5, *[0.0] * 12]]


def test_windows_are_put_back_where_they_came_from() -> None:
    """A key's value, its own patch's index, lies at that patch, whatever the shift."""
    _, known = of(seeded(Windows), torch.Size((3, 8, 8)))
    (site,) = known.sites
    assert tuple(site.order.shape) == (4, 1) and site.grid == (4, 4) and "4 windows" in known.apart
    index = torch.arange(16.0).view(4, 4).roll((-1, -1), (0, 1))
    values = index.view(2, 2, 2, 2).permute(0, 2, 1, 3).reshape(4, 4)
    assert site.maps(values).tolist() == torch.arange(16.0).view(4, 4).tolist()


class Channels(nn.Module):
    """A softmax over channels (XCiT)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.patches(x).flatten(2).transpose(1, 2)).transpose(1, 2).chunk(3, 1)
        return self.fc(((q @ k.transpose(1, 2)).softmax(-1) @ v).mean(2))


class LinearAttention(Channels):
    """Products of activations without a softmax."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.patches(x).flatten(2).transpose(1, 2)).relu().chunk(3, 2)
        return self.fc((q @ (k.transpose(1, 2) @ v)).mean(1))


class Gathered(Channels):
    """Global context: a softmax over places whose scores are no product of queries and keys."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)
        return self.fc((x[:, :1].softmax(-1) @ x.transpose(1, 2)).squeeze(1))


@pytest.mark.parametrize(
    ("build", "reason"),
    [(GapHead, "tokens"), (Channels, "over channels"), (LinearAttention, "no softmax"), (Gathered, "queries and keys")],
)
def test_what_is_no_self_attention_over_tokens_is_said(build: Callable[[], nn.Module], reason: str) -> None:
    network, known = of(seeded(build))
    assert not known.sites and known.lacking.startswith("it has no self-attention over the picture's tokens")
    assert reason in known.lacking
    with network.session(), pytest.raises(VisxError, match="no self-attention"):
        attending.found(network, picture())


class Encoder(nn.Module):
    """torch's own encoder, which without gradients takes one fast operation for a layer, and a class token."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.patches, self.cls, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 5)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first, norm_first=not batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.fc(x[:, 0])


@pytest.mark.parametrize("batch_first", [True, False])
def test_the_fast_path_of_torchs_encoder_hides_nothing(batch_first: bool) -> None:
    net = seeded(lambda: Encoder(batch_first))
    network, known = of(net)
    assert [site.block for site in known.sites] == ["encoder.layers.0", "encoder.layers.1"]
    x, wanted = picture(2), []
    hooks = [layer.self_attn.register_forward_pre_hook(lambda m, args: wanted.append((m, args[0]))) for layer in net.encoder.layers]  # type: ignore[union-attr]  # fmt: skip
    with torch.enable_grad():
        net(x)
    for hook in hooks:
        hook.remove()
    for seen, (module, given) in zip(watched(network, known, x), wanted, strict=True):
        _, weights = module(given, given, given, need_weights=True, average_attn_weights=False)
        assert same(seen[:, 0], weights)


class TalkingHeads(TinyViT):
    """CaiT's two ways: linear layers over heads before and behind the softmax, and a class token that asks alone."""

    def __init__(self) -> None:
        super().__init__("by hand", 1, 2)
        self.before, self.after, self.kv = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.blocks[0].attn.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # type: ignore[union-attr, operator]
        weights = self.before((q @ k.transpose(-1, -2)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2).softmax(-1)
        self.seen = self.after(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = x + (self.seen @ v).transpose(1, 2).flatten(2)
        token = self.prefix.expand(len(x), -1, -1)
        k, v = self.kv(torch.cat([token, x], 1)).chunk(2, 2)
        return self.fc((token + F.scaled_dot_product_attention(token, k, v))[:, 0])


def test_mixed_heads_and_a_class_token_that_asks_alone() -> None:
    net = seeded(TalkingHeads)
    network, known = of(net)
    first, second = known.sites
    assert first.shape == (2, 12, 12) and second.shape == (1, 1, 13) and not known.apart
    assert second.pools and not first.pools and second.asks.tolist() == [0]
    assert known.joins is not None and known.joins[0].tolist() == list(range(1, 13))
    x = picture(2)
    seen = watched(network, known, x)
    net(x)
    assert same(seen[0][:, 0], net.seen) and tuple(seen[1].shape) == (2, 1, 1, 1, 13)


class Mixed(TinyViT):
    """Rows of its attention that lie pictures inside heads."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.blocks[0].attn.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 3, 0, 1, 4).unbind(0)  # type: ignore[union-attr, operator]
        return self.fc(F.scaled_dot_product_attention(4 * q, k, v).permute(1, 2, 0, 3).flatten(2).mean(1))


def test_pictures_that_lie_inside_of_heads_are_refused_but_one_by_one() -> None:
    network, _ = of(seeded(Mixed))
    with network.session():
        assert attending.found(network, picture()).sites
        with pytest.raises(VisxError, match="pictures of a batch") as refused:
            attending.found(network, picture(2))
    assert "--batch-size 1" in refused.value.hint


class Still(TinyViT):
    """Its forward records no gradients."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(x)


def test_weights_are_seen_where_no_gradient_is() -> None:
    net = seeded(Still)
    network, known = of(net)
    assert known.reads.tolist() == [[1.0, *[0.0] * 12]], "the class token, since no gradient tells"
    x = picture(2)
    for seen, of_plain in zip(watched(network, known, x), watched(*of(seeded(TinyViT)), x), strict=True):
        assert same(seen, of_plain)
    with network.session(), pytest.raises(VisxError, match="does not depend on the input"):
        attending.attend(network, known, x, lambda values: values[:, :1])


# name -> attentions, shape of the first (rows, queries, keys), its windows, tokens without a place, tokens of one sequence
FAMILIES = {
    "deit_tiny_distilled_patch16_224": (12, (3, 18, 18), 1, 2, True),
    "vit_small_patch14_reg4_dinov2": (12, (6, 30, 30), 1, 5, True),
    "eva02_tiny_patch14_224": (12, (3, 17, 17), 1, 1, True),
    "cait_xxs24_224": (26, (4, 16, 16), 1, 0, True),
    "swin_tiny_patch4_window7_224": (12, (192, 49, 49), 64, 0, False),
    "pvt_v2_b0": (8, (1, 256, 4), 1, 0, False),
}


@pytest.mark.parametrize(("name", "fused"), [*((name, True) for name in FAMILIES), ("pvt_v2_b0", False)])
def test_families_of_timm(name: str, fused: bool) -> None:
    timm = pytest.importorskip("timm", reason="the architectures are timm's")
    size = 224 if "swin" in name else 56 if "eva02" in name else 70 if "dinov2" in name else 64
    sized = {} if name.startswith(("swin", "pvt")) else {"img_size": size}
    before = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(fused)
    try:
        net = timm.create_model(name, pretrained=False, num_classes=5, **sized).eval()
    finally:
        timm.layers.set_fused_attn(before)
    _, known = of(net, torch.Size((3, size, size)))
    first = known.sites[0]
    prefix = int(first.keys[0].isnan().sum())
    assert (len(known.sites), first.shape, len(first.order), prefix, not known.apart) == FAMILIES[name]


class Fickle(TinyViT):
    """Another number of attentions in its later passes."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().mean()) > 2:
            x = self.patches(x).flatten(2).transpose(1, 2)
            return self.fc(self.blocks[0](x).mean(1))
        return super().forward(x)


def test_a_pass_that_takes_another_way_is_refused() -> None:
    network, known = of(seeded(Fickle))
    with network.session():
        for run in (
            lambda x: attending.watch(network, known, x, lambda site, compute: None),
            lambda x: attending.attend(network, known, x, lambda values: values[:, :1]),
        ):
            run(picture())
            with pytest.raises(VisxError, match="not those of its first pass"):
                run(picture() + 5)


def test_no_matrix_of_queries_by_keys_outlives_its_attention() -> None:
    """A fused network: while it is watched, and between the gradients of its blocks, none is alive."""
    import gc

    network, known = of(seeded(TinyViT))

    def alive() -> int:
        return sum(type(o) is Tensor and tuple(o.shape[-2:]) == (13, 13) for o in gc.get_objects())

    before, counts = alive(), []
    with network.session():
        attending.watch(network, known, picture(), lambda site, compute: counts.append((compute().shape, alive())))
        _, every = attending.attend(network, known, picture(), lambda values: values[:, :2])
        counts += [(attended.gradient(0).shape, alive()) for attended in every]
    assert [count for _, count in counts] == [before] * 6


def test_the_module_is_left_as_it_was() -> None:
    net = seeded(TinyViT)
    network, known = of(net)
    before = fingerprint(net)
    watched(network, known, picture(2))
    with network.session():
        attending.attend(network, known, picture(2), lambda values: values[:, :2])
        with pytest.raises(RuntimeError):
            attending.watch(network, known, images(1, 3), lambda site, compute: None)
    assert fingerprint(net) == before


class Sorted(TinyViT):
    """Behind the first block the patches are those with the longest tokens, `kept` of them, the longest first."""

    kept = 12

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.blocks[0](self.patches(x).flatten(2).transpose(1, 2))
        longest = tokens.norm(dim=2).topk(self.kept, 1).indices
        tokens = tokens.gather(1, longest[..., None].expand(-1, -1, tokens.shape[2]))
        return self.fc(self.blocks[2](self.blocks[1](tokens)).mean(1))


@pytest.mark.parametrize("kept", [12, 7])
def test_tokens_that_the_picture_itself_picks_have_no_known_place(kept: int) -> None:
    net = seeded(Sorted)
    net.kept = kept
    _, known = of(net)
    assert [site.block for site in known.sites] == ["blocks.0"] and "cannot be told" in known.apart
    assert known.warning == [
        "the last attentions are not seen, 2 of 3: where its tokens lie in the picture cannot be told"
    ]
    assert not of(seeded(TinyViT))[1].warning


class Beside(nn.Module):
    """The scores of two transformers, added up."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = TinyViT(), TinyViT()

    def forward(self, x: Tensor) -> Tensor:
        return self.one(x) + self.other(x)


def test_attentions_beside_each_other_are_no_sequence() -> None:
    _, known = of(seeded(Beside))
    assert len(known.sites) == 6 and known.joins is None and "beside each other" in known.apart
