"""Toy networks in float64, small enough that their gradients can be written out by hand.

Each is seeded, so that a test always meets the same weights; none depends on the global random state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Callable[[Tensor], Tensor]
CLASSES = 5


def seeded(build: Callable[[], nn.Module], seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Build a module under a seed of its own, in `dtype` and eval mode; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(dtype).eval()


def images(batch: int = 2, size: int = 12, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(B, 3, size, size) standard normal."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Linear(nn.Module):
    """logits = W x + b on the flattened input: the gradient is W, whatever x is."""

    def __init__(self, size: int = 12) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * size * size, CLASSES)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))

    def weight(self, target: int) -> Tensor:
        """Row `target` of W as (3, size, size)."""
        return self.fc.weight[target].detach().view(3, self.size, self.size)


class TwoConvs(nn.Module):
    """conv1, activation, conv2, activation, global average, linear. Activations may be modules or functions."""

    def __init__(self, first: Activation, second: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        a1 = self.first(self.conv1(x))
        a2 = self.second(self.conv2(a1))
        return self.fc(a2.mean((2, 3)))


def _reused() -> tuple[Activation, Activation]:
    module = nn.ReLU()
    return module, module


# Every way to write a ReLU -> its two activations.
RELUS: dict[str, Callable[[], tuple[Activation, Activation]]] = {
    "nn.ReLU": lambda: (nn.ReLU(), nn.ReLU()),
    "nn.ReLU in place": lambda: (nn.ReLU(inplace=True), nn.ReLU(inplace=True)),
    "one nn.ReLU reused": _reused,
    "F.relu": lambda: (F.relu, F.relu),
    "F.relu in place": lambda: (partial(F.relu, inplace=True), partial(F.relu, inplace=True)),
    "torch.relu": lambda: (torch.relu, torch.relu),
    "torch.relu_": lambda: (torch.relu_, torch.relu_),
    "Tensor.relu": lambda: (lambda z: z.relu(), lambda z: z.relu()),
    "Tensor.relu_": lambda: (lambda z: z.relu_(), lambda z: z.relu_()),
    "torch.clamp(min=0)": lambda: (partial(torch.clamp, min=0), partial(torch.clamp, min=0)),
    "Tensor.clamp_(0)": lambda: (lambda z: z.clamp_(0), lambda z: z.clamp_(0)),
    "torch.clamp_min": lambda: (lambda z: torch.clamp_min(z, 0.0), lambda z: z.clamp_min_(0)),
    "F.threshold(0, 0)": lambda: (nn.Threshold(0, 0), lambda z: F.threshold_(z, 0.0, 0.0)),
    "module and function": lambda: (nn.ReLU(inplace=True), F.relu),
}
RELU6S: dict[str, Callable[[], tuple[Activation, Activation]]] = {
    "nn.ReLU6": lambda: (nn.ReLU6(), nn.ReLU6()),
    "nn.ReLU6 in place": lambda: (nn.ReLU6(inplace=True), nn.ReLU6(inplace=True)),
    "F.relu6": lambda: (F.relu6, partial(F.relu6, inplace=True)),
    "F.hardtanh(0, 6)": lambda: (lambda z: F.hardtanh(z, 0.0, 6.0), lambda z: F.hardtanh(z, 0.0, 6.0)),
    "torch.clamp(0, 6)": lambda: (lambda z: torch.clamp(z, 0, 6), lambda z: z.clamp(min=0.0, max=6.0)),
}


def two_convs(spelling: str = "nn.ReLU") -> TwoConvs:
    """`TwoConvs` with its ReLUs written as `spelling` says; the weights are the same for all."""
    return seeded(lambda: TwoConvs(*(RELUS | RELU6S)[spelling]()))  # type: ignore[return-value]


def smooth() -> TwoConvs:
    """Infinitely differentiable: tanh, then softplus."""
    return seeded(lambda: TwoConvs(nn.Tanh(), nn.Softplus()))  # type: ignore[return-value]


class Steep(nn.Module):
    """Two logits of which the first rises within a hundredth of the way from the zero baseline, then stays flat."""

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(3, size, size) / (3 * size * size))

    def forward(self, x: Tensor) -> Tensor:
        z = (x * self.w).sum((1, 2, 3))
        return torch.stack([torch.tanh(200 * z), -z], 1)


class GapHead(nn.Module):
    """features (ending in a ReLU), average pooling, one linear layer: a network that has a CAM, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout()
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.pool(self.features(x)).flatten(1)))


class DenseLike(nn.Module):
    """DenseNet's ending: what `features` returns is rectified in place by a function before it is pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        )
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.features(x), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, (1, 1)), 1))


class SqueezeLike(nn.Module):
    """SqueezeNet's ending: dropout, a 1x1 convolution to class maps, a ReLU, average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.conv = nn.Conv2d(6, CLASSES, 1)
        self.classifier = nn.Sequential(nn.Dropout(0.5), self.conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d((1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class VGGLike(nn.Module):
    """Convolutions, in-place ReLUs and max-pooling in a row, then a head that mixes space (so it has no CAM)."""

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.fc = nn.Linear(8 * (size // 4) ** 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))


class WithoutReLU(nn.Module):
    """GELU and SiLU alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GELU(), nn.Conv2d(6, CLASSES, 3), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean((2, 3))


class Wrapped(nn.Module):
    """`GapHead` (or another) whose answer goes through `answer`: for outputs that are no logits, and for forwards that
    raise."""

    def __init__(self, answer: Callable[[Tensor], object], build: Callable[[], nn.Module] | None = None) -> None:
        super().__init__()
        self.net = (build or GapHead)()
        self.answer = answer

    def forward(self, x: Tensor) -> object:
        return self.answer(self.net(x))


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seen):  # type: ignore[no-untyped-def]
        ctx.seen = seen
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        ctx.seen.append(len(grad))
        return grad, None


class Probe(nn.Module):
    """Passes its input on and counts: images a forward pass, images a backward pass, in order. It keeps the counts outside of
    itself: what a module holds is put back after a session."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = SimpleNamespace(forwards=[], backwards=[])

    @property
    def forwards(self) -> list[int]:
        return self.counts.forwards  # type: ignore[no-any-return]

    @property
    def backwards(self) -> list[int]:
        return self.counts.backwards  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        self.forwards.append(len(x))
        return _Tap.apply(x, self.backwards)  # type: ignore[no-any-return]


class Probed(nn.Module):
    """A network with probes at its input (`entrance`), before `layer` and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.entrance, self.before, self.behind = Probe(), Probe(), Probe()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.layer = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(self.stem(self.entrance(x)))
        return self.fc(F.adaptive_avg_pool2d(self.behind(self.layer(x)), 1).flatten(1))


def _by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


def _by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def _turned(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Values before weights: (B, H, d, Nk) @ (B, H, Nk, Nq)."""
    weights = (k @ q.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-2)
    return (v.transpose(-1, -2) @ weights).transpose(-1, -2)


# Ways to write an attention of queries, keys and values (B, H, N, d).
ATTENTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fused": F.scaled_dot_product_attention, "by hand": _by_hand, "einsum": _by_einsum, "turned": _turned
}  # fmt: skip


class Attention(nn.Module):
    """Self-attention of tokens (B, N, C) in two heads, written in one of the `ATTENTIONS`."""

    def __init__(self, width: int, spelling: str) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attend = ATTENTIONS[spelling]

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(self.attend(4 * q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a small perceptron, each added to the tokens, normalised before."""

    def __init__(self, width: int, spelling: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, spelling)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """A vision transformer for pictures of any size: patches of 4 x 4, `prefix` class tokens, `depth` blocks. The classifier
    reads the mean of the class tokens, of the patches where there is none."""

    def __init__(
        self, spelling: str = "fused", prefix: int = 1, depth: int = 3, width: int = 16, channels: int = 3
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, prefix, width))
        self.blocks = nn.Sequential(*(Block(width, spelling) for _ in range(depth)))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.prefix.expand(len(x), -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens))
        count = self.prefix.shape[1]
        return self.fc(tokens[:, :count].mean(1) if count else tokens.mean(1))


class Windows(nn.Module):
    """Attention in shifted windows of 2 x 2 patches (patches of 2 x 2 pixels), in one head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv, self.fc = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 24), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1).roll((-1, -1), (1, 2))
        windows = x.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)).permute(0, 1, 3, 2, 4, 5).flatten(0, 2).flatten(1, 2)
        q, k, v = self.qkv(windows)[:, None].chunk(3, -1)
        return self.fc(F.scaled_dot_product_attention(3 * q, k, v)[:, 0].unflatten(0, (len(x), -1)).mean((1, 2)))
