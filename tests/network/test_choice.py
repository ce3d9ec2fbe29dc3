"""The default layer lies on the way to the score that is explained, and its places receive a gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import CLASSES, images, seeded
from oracles import ask, model_of
from visx import VisxError, wrap
from visx.methods import get_method


class Trunk(nn.Module):
    """Two convolutions; what a subclass computes beside them is not what is explained."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.high(self.low(x)).mean((2, 3)))


class AuxiliaryHead(Trunk):
    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.Conv2d(6, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        logits = self.fc(self.high(low).mean((2, 3)))
        self.kept = self.aux(low)
        return logits


class Context(Trunk):
    """An image-level branch, brought back to the map's size, as in ASPP; the trunk comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.fc = nn.Conv2d(8, 3, 1), nn.Linear(11, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.high(self.low(x))
        whole = F.interpolate(self.context(x.mean((2, 3), keepdim=True)), x.shape[2:])
        return self.fc(torch.cat([x, whole], 1).mean((2, 3)))


class PositionBias(Trunk):
    """A network of its own makes a bias of parameters, after the trunk has run."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 2, 4, 4))
        self.bias = nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.high(self.low(x))
        return self.fc((x + self.bias(self.table)).mean((2, 3)))


class Gate(Trunk):
    """A spatial gate weighs the map: what is explained is the map."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Conv2d(8, 1, 3, padding=1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        x = self.high(self.low(x))
        return self.fc((x * self.gate(x)).mean((2, 3)))


class Weighted(Trunk):
    """Pooling by attention, as of multiple instances: the weights are no feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.high(self.low(x)).flatten(2).transpose(1, 2)
        weights = self.attention(tokens).softmax(1)
        return self.fc((weights.transpose(1, 2) @ tokens).squeeze(1))


class Drawn(Trunk):
    """A head that draws a mask behind the logits, at full size."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.ConvTranspose2d(8, 1, 4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.high(self.low(x))
        return self.fc(x.mean((2, 3))), self.mask(x)


class Scrambled(Trunk):
    """An attention whose values come from where places cannot be followed (a Fourier transform), added to the trunk."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.low(x)
        tokens = x.flatten(2).transpose(1, 2)
        values = torch.fft.fft(tokens, dim=1).real
        mixed = (tokens @ tokens.transpose(1, 2)).softmax(-1) @ values
        x = x + mixed.transpose(1, 2).reshape(x.shape)
        return self.fc(self.high(x).mean((2, 3)))


@pytest.mark.parametrize("net", [Scrambled, Trunk, AuxiliaryHead, Context, PositionBias, Gate, Weighted, Drawn])
def test_it_lies_on_the_way_to_the_score(net: type[nn.Module]) -> None:
    assert model_of(seeded(net), 16).anatomy.default_layer == "high"


class ClassToken(nn.Module):
    """Two blocks written out, the class token alone is read."""

    def __init__(self, zero_head: bool = False, pooled: bool = False) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        for i in "ab":
            self.add_module(f"norm_{i}", nn.LayerNorm(8))
            self.add_module(f"qkv_{i}", nn.Linear(8, 24))
            self.add_module(f"qnorm_{i}", nn.LayerNorm(8))
            self.add_module(f"mlp_{i}", nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()))
        self.end, self.fc, self.pooled = nn.LayerNorm(8), nn.Linear(8, CLASSES), pooled
        if zero_head:
            nn.init.zeros_(self.fc.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for i in "ab":
            q, k, v = getattr(self, f"qkv_{i}")(getattr(self, f"norm_{i}")(x)).chunk(3, 2)
            x = x + F.scaled_dot_product_attention(getattr(self, f"qnorm_{i}")(q), k, v)
            x = x + getattr(self, f"mlp_{i}")(x)
        x = self.end(x)
        return self.fc(x[:, 1:].mean(1) if self.pooled else x[:, 0])


def test_a_single_cell_with_a_gradient_is_no_map() -> None:
    """VOLO adds the largest of each class's scores over the patches: of one class, one patch receives a gradient."""

    class Largest(ClassToken):
        def forward(self, x: Tensor) -> Tensor:
            x = self.patch(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            q, k, v = self.qkv_a(self.norm_a(x)).chunk(3, 2)
            x = self.end(x + F.scaled_dot_product_attention(q, k, v))
            return self.fc(x[:, 0]) + 0.5 * self.fc(x[:, 1:]).max(1)[0]

    assert model_of(seeded(Largest), 16).anatomy.default_layer == "norm_a"


@pytest.mark.parametrize("zero_head", [False, True])
def test_of_a_class_token_it_is_the_input_of_the_last_attention(zero_head: bool) -> None:
    """Not the last block, whose patches nobody reads, nor queries, keys, values and their norms."""
    assert model_of(seeded(lambda: ClassToken(zero_head)), 16).anatomy.default_layer == "norm_b"


def test_where_patches_are_averaged_it_is_the_last_norm() -> None:
    assert model_of(seeded(lambda: ClassToken(pooled=True)), 16).anatomy.default_layer == "end"


def test_its_places_receive_a_gradient() -> None:
    net, x = seeded(ClassToken), images(1, 16)
    assert ask("gradcam", net, x, (1,), layer="norm_b", relu=False).map.abs().max() > 0
    assert ask("gradcam", net, x, (1,), layer="end", relu=False).map.abs().max() == 0


def test_where_there_is_none_the_reason_and_candidates_are_said() -> None:
    class Detached(Trunk):
        """The score reads one number of the map, so no map as a whole receives a gradient."""

        def forward(self, x: Tensor) -> Tensor:
            first = self.high(self.low(x))[:, :, 0, 0]
            return self.fc(first.detach() + x.mean((1, 2, 3))[:, None] * 0 + x[:, 0, 0, :8])

    found = model_of(seeded(Detached), 16).anatomy
    assert found.default_layer is None and "--layer" in found.no_layer and "high" in found.no_layer


def test_a_network_without_maps_says_what_was_seen() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    found = wrap(net, size=12)
    assert found.anatomy.default_layer is None and "one vector" in found.anatomy.no_layer
    from visx.engine.jobs import plan

    with pytest.raises(VisxError, match="one vector") as caught:
        plan(found, [get_method("gradcam")])
    assert caught.value.code == 4
