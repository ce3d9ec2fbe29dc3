"""Networks that go another way for other data than the pass from which folding was learnt: each answer is the network's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normed import settled
from oracles import column_scores
from visx.network.fast.fold import fold
from visx.network.network import Network


class Branching(nn.Module):
    """Convolution, normalisation, ReLU twice; `middle` does the second three, and is told whether the image is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.other = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def middle(self, x: Tensor, bright: bool) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        bright = bool(x.mean() > 5)
        return self.fc(self.middle(F.relu(self.bn1(self.conv1(x)), inplace=True), bright).mean((2, 3)))


class WithoutNorm(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        x = self.conv2(x)
        return F.relu(x if bright else self.bn2(x))


class OtherNorm(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        return F.relu((self.other if bright else self.bn2)(self.conv2(x)))


class OtherEps(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        norm, x = self.bn2, self.conv2(x)
        return F.relu(
            F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=2.0 if bright else 1.0)
        )


class ReadBefore(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        x = self.conv2(x)
        gate = x.mean((2, 3), keepdim=True).tanh() if bright else 1.0
        return F.relu(self.bn2(x) * gate)


class ReadBehind(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        x = self.conv2(x)
        z = F.relu(self.bn2(x))
        return z + x if bright else z


class InAList(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        x = self.conv2(x)
        z = F.relu(self.bn2(x))
        return torch.cat([z, x], 2) if bright else z


class NormReadBehind(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        x = self.bn2(self.conv2(x))
        z = F.relu(x)
        return z + x if bright else z


class OtherCeiling(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        x = self.bn2(self.conv2(x))
        return F.hardtanh(x, 0.0, 0.1) if bright else F.relu(x)


class NoRelu(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        x = self.bn2(self.conv2(x))
        return x.sin() if bright else F.relu(x)


class InPlaceBetween(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        x = self.conv2(x)
        if bright:
            x.mul_(2).abs_()
        return F.relu(self.bn2(x), inplace=True)


class NormTwice(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        x = self.conv2(x)
        return F.relu(self.bn2(x) - (self.bn2(x * 2) if bright else 0))


class OtherBias(Branching):
    def middle(self, x: Tensor, bright: bool) -> Tensor:
        bias = None if bright else self.conv2.bias
        return F.relu(self.bn2(F.conv2d(x, self.conv2.weight, bias, padding=1)))


class Catching(Branching):
    """Whoever folds may not count on an exception that gets through."""

    def middle(self, x: Tensor, bright: bool) -> Tensor:
        x = self.conv2(x)
        try:
            return F.relu(x.abs() if bright else self.bn2(x))
        except Exception:
            return x


class Shared(Branching):
    """Two calls of a convolution, one of them without the normalisation."""

    def middle(self, x: Tensor, bright: bool) -> Tensor:
        y = F.relu(self.bn2(self.conv2(x)))
        return y + self.conv2(y) if bright else y


class Keeping(Branching):
    """What another function than torch's reads."""

    def middle(self, x: Tensor, bright: bool) -> Tensor:
        x = self.conv2(x)
        scale = float(x.detach().numpy().max()) if bright else 1.0
        return F.relu(self.bn2(x)) * scale


BRANCHING = [
    WithoutNorm, OtherNorm, OtherEps, ReadBefore, ReadBehind, InAList, NormReadBehind, OtherCeiling, NoRelu,
    InPlaceBetween, NormTwice, OtherBias, Catching, Shared, Keeping,
]  # fmt: skip


def images(bright: bool) -> Tensor:
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x + 10 if bright else x


@pytest.fixture(params=BRANCHING, ids=lambda build: build.__name__)
def net(request: pytest.FixtureRequest) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return settled(request.param())


FIXED = column_scores(torch.tensor([[0, 2], [1, 3]]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scores(net: nn.Module, dtype: torch.dtype):
    net = net.to(dtype)
    plain, ours = Network(net), Network(net, owned=True, accelerate=True)
    assert fold(net, images(False).to(dtype)), "the way that is learnt is folded"
    for bright in (True, False, True):
        x = images(bright).to(dtype)
        wanted, found = plain.scores_of(x), ours.scores_of(x)
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
        torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.parametrize("way", ["single", "many", "guided", "deconv"])
def test_input_gradients(net: nn.Module, way: str):
    rule = way if way in ("guided", "deconv") else None
    plain, ours = Network(net), Network(net, owned=True, accelerate=True)
    for bright in (True, False, True):
        wanted = plain.input_gradients(images(bright), FIXED, rule)
        found = ours.input_gradients(images(bright), FIXED, rule, one_of_many=way == "many")
        assert wanted.grads.any()
        torch.testing.assert_close(found.grads, wanted.grads, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layer", ["conv1", "bn1", "conv2"])
def test_layer_gradients(net: nn.Module, layer: str, dtype: torch.dtype):
    net = net.to(dtype)
    plain, ours = Network(net), Network(net, owned=True, accelerate=True)
    for bright in (False, True, False):
        if isinstance(net, OtherBias) and layer == "conv2":
            continue  # it calls the function
        wanted, found = (n.layer_gradients(images(bright), layer, FIXED) for n in (plain, ours))
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
        torch.testing.assert_close(found.activation, wanted.activation, **tolerance)
        torch.testing.assert_close(found.grads, wanted.grads, **tolerance)


class Beside(Branching):
    """A layer that runs between a convolution and its normalisation, on the way to the logits beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Conv2d(6, 6, 1)

    def middle(self, x: Tensor, bright: bool) -> Tensor:
        y = self.conv2(x)
        side = self.side(x)
        return F.relu(self.bn2(y)) * side


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_layer_that_runs_between_a_convolution_and_its_normalisation(dtype: torch.dtype):
    net, x = settled(Beside()).to(dtype), images(False).to(dtype)
    wanted, found = (
        n.layer_gradients(x, "side", FIXED) for n in (Network(net), Network(net, owned=True, accelerate=True))
    )
    torch.testing.assert_close(found.scores, wanted.scores)
    torch.testing.assert_close(found.grads, wanted.grads)


class Recording(nn.Module):
    """Keeps what it was given, and what lies between a convolution and its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        self.kept.append(x)
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


def test_a_network_that_keeps_a_tensor_keeps_its_own():
    net = settled(Recording())
    x = images(False)
    net(x)
    wanted = net.kept[-1].clone()
    network = Network(net, owned=True, accelerate=True)
    for _ in range(2):
        network.scores_of(x)
        assert torch.equal(net.kept[-1], wanted)


HOOKS = {
    "convolution": lambda net, seen: net.conv1.register_forward_hook(lambda m, args, out: seen.append(out)),
    "norm, before": lambda net, seen: net.bn2.register_forward_pre_hook(lambda m, args: seen.append(args[0])),
    "norm": lambda net, seen: net.bn2.register_forward_hook(lambda m, args, out: seen.append(out)),
    "with keywords": lambda net, seen: net.bn2.register_forward_hook(
        lambda m, args, kwargs, out: seen.append(out), with_kwargs=True
    ),
    "everywhere": lambda net, seen: nn.modules.module.register_module_forward_hook(
        lambda m, args, out: seen.append(out)
    ),
}


@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_hook_that_only_records_is_given_what_the_network_computes(kind: str, dtype: torch.dtype):
    net, seen = settled(NoRelu()).to(dtype), []
    x = images(False).to(dtype)
    handle = HOOKS[kind](net, seen)
    try:
        net(x)
        wanted = [tensor.clone() for tensor in seen]
        network = Network(net, owned=True, accelerate=True)
        for _ in range(2):
            network.scores_of(x)
            seen.clear()
            network.scores_of(x)
            assert len(seen) == len(wanted) > 0
            for found, want in zip(seen, wanted, strict=True):
                torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
    finally:
        handle.remove()
