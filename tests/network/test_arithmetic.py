"""ReLUs written as arithmetic: the maps are those of the same network with `F.relu`; and what is no ReLU is left alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visx
from nets import Activation, TwoConvs, images, seeded, two_convs
from oracles import ask, column_scores, model_of, same
from visx import VisxError
from visx.network.network import Network
from visx.network.rules import Rules


def by_index(z: Tensor) -> Tensor:
    z = z.clone()
    z[z < 0] = 0
    return z


def on_a_slice(z: Tensor) -> Tensor:
    z = z.clone()
    for half in (z[:, :3], z[:, 3:]):
        half[half <= 0] = 0.0
    return z


def changed_afterwards(z: Tensor) -> Tensor:
    """What plain autograd allows behind a `where`: work in place on the input and the output."""
    out = torch.where(z > 0, z, 0.0)
    z.add_(1)
    return out.mul_(2).div_(2)


ARITHMETIC: dict[str, Activation] = {
    "maximum": lambda z: torch.maximum(z, torch.zeros_like(z)),
    "maximum, the other way round": lambda z: torch.zeros(()).to(z).maximum(z),
    "max": lambda z: torch.max(z, torch.tensor([0.0]).to(z)),
    "fmax": lambda z: torch.fmax(z, z.new_zeros(1)),
    "clamp by a tensor": lambda z: z.clamp(min=z.new_zeros(())),
    "clamp_min_ by a tensor": lambda z: z.clone().clamp_min_(torch.zeros_like(z)),
    "where": lambda z: torch.where(z > 0, z, torch.zeros_like(z)),
    "where >= and a number": lambda z: torch.where(z >= 0, z, 0.0),
    "where the other way round": lambda z: torch.where(z < 0, torch.zeros_like(z), z),
    "Tensor.where": lambda z: z.where(z > 0, 0.0),
    "where of relu": lambda z: torch.where(z > 0, torch.relu(z), torch.zeros_like(z)),
    "times a bool": lambda z: z * (z > 0),
    "times a float": lambda z: (z > 0).to(z.dtype) * z,
    "times a mask of detached values": lambda z: z * (z.detach() > 0).type_as(z),
    "times a mask in place": lambda z: z.clone().mul_(z > 0),
    "times heaviside": lambda z: z * torch.heaviside(z.detach(), z.new_zeros(())),
    "masked_fill": lambda z: z.masked_fill(z < 0, 0),
    "masked_fill of not": lambda z: z.masked_fill(~(z > 0), 0.0),
    "masked_fill_": lambda z: z.clone().masked_fill_(z <= 0, 0),
    "by index": by_index,
    "on slices": on_a_slice,
    "half of x + |x|": lambda z: (z + z.abs()) / 2,
    "half of |x| + x": lambda z: 0.5 * torch.add(torch.abs(z), z),
    "x less its negative part": lambda z: z - z.clamp(max=0),
    "x less a minimum": lambda z: z - torch.minimum(z, z.new_zeros(())),
    "leaky_relu of slope 0": lambda z: F.leaky_relu(z, 0.0),
    "leaky_relu of slope 0 in place": lambda z: F.leaky_relu(z.clone(), 0.0, inplace=True),
    "elu of alpha 0": lambda z: F.elu(z, 0.0),
    "prelu of weight 0": lambda z: F.prelu(z, z.new_zeros(1)),
    "an operator": torch.ops.aten.relu.default,
    "a private function": lambda z: torch._C._nn.leaky_relu(z, 0.0),
    "changed afterwards": changed_afterwards,
}
METHODS = ["guided_backprop", "deconvnet"]


def outside(act: Activation) -> Activation:
    """On a clone, so that a network may change it."""
    return lambda z: act(z * 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spelling", ARITHMETIC)
def test_the_map_is_that_of_relu(method: str, spelling: str) -> None:
    """Alone, and beside recognised ones; nothing is warned of."""
    act, x = outside(ARITHMETIC[spelling]), images(3)
    want = ask(method, two_convs(), x, (0, 3)).channels
    assert not same(want, ask("backprop", two_convs(), x, (0, 3)).channels, 0.05)
    for first, second in ((act, act), (nn.ReLU(), act), (act, F.relu)):
        found = ask(method, seeded(lambda f=first, s=second: TwoConvs(f, s)), x, (0, 3))  # type: ignore[misc]
        assert same(found.channels, want, 1e-12)
        assert not found.warnings


@pytest.mark.parametrize("spelling", ["where", "half of x + |x|", "by index", "prelu of weight 0", "an operator"])
def test_a_units_projection_is_that_of_relu(spelling: str) -> None:
    act, x = outside(ARITHMETIC[spelling]), images(2)
    net = seeded(lambda: TwoConvs(act, act))
    want = ask("deconvnet", two_convs(), x, layer="conv2", unit="3").channels
    assert same(ask("deconvnet", net, x, layer="conv2", unit="3").channels, want, 1e-12)


@pytest.mark.parametrize("spelling", [name for name in ARITHMETIC if name != "a private function"])
def test_a_network_of_them_alone_fits_the_methods(spelling: str) -> None:
    act = outside(ARITHMETIC[spelling])
    model, plain = model_of(seeded(lambda: TwoConvs(act, act), dtype=torch.float32)), model_of(two_convs().float())
    picture = (images(1)[0].permute(1, 2, 0) * 60 + 128).clamp(0, 255).byte().numpy()
    for method in METHODS:
        found, want = (visx.explain(m, picture, method, target=1) for m in (model, plain))
        assert same(found.map, want.map, 1e-5) and not found.warnings


class Gated(nn.Module):
    """A ReLU, and what looks like one: a mask of positions, weights under an attention mask, a gate, a table."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.fc, self.change = nn.Conv2d(3, 6, 3), nn.Linear(6, 5), change

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.change(F.relu(self.conv(x)) - 0.3).mean((2, 3)))


def attention(z: Tensor, mask: Tensor, fill: float) -> Tensor:
    weights = (z.flatten(2) @ z.flatten(2).transpose(1, 2)).softmax(-1).masked_fill(mask, fill)
    return (weights @ z.flatten(2)).view_as(z)


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "attention mask": lambda z: attention(z, torch.ones(6, 6).triu(1).bool(), 0.0),
    "attention mask that hides nothing": lambda z: attention(z, torch.zeros(6, 6).bool(), 0.0),
    "scores of -inf": lambda z: z.masked_fill(torch.arange(10) > 4, -torch.inf).softmax(-1) * z,
    "a random mask": lambda z: z * (torch.rand(z.shape, generator=torch.Generator().manual_seed(0)) > 0.5),
    "positive weights, a mask of ones": lambda z: z.softmax(1) * torch.ones(z.shape, dtype=torch.bool),
    "a sigmoid gate": lambda z: z.exp() * z,
    "positions": lambda z: z * torch.where(torch.arange(10) < 5, 1.0, 0.5),
    "a floor that is not zero": lambda z: torch.maximum(z, torch.full_like(z, 0.1)),
    "an absolute value": lambda z: z.abs() + 1,
    "weights above zero, wholly kept": lambda z: z.exp().masked_fill(torch.zeros(z.shape).bool(), 0.0),
}


@pytest.mark.parametrize("rule", ["guided", "deconv"])
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_relu_keeps_its_gradient_without_a_word(rule: str, name: str) -> None:
    net, x = seeded(lambda: Gated(OTHERS[name])), images(2)
    found = Network(net).input_gradients(x, column_scores(torch.zeros(2, 1).long()), rule)  # type: ignore[arg-type]
    z = net.conv(x).detach().requires_grad_()
    after = F.relu(z)
    (g,) = torch.autograd.grad(net.fc(net.change(after - 0.3).mean((2, 3)))[:, 0].sum(), after)
    g = g.relu() * (z > 0) if rule == "guided" else g.relu()
    assert same(found.grads[:, 0], F.conv_transpose2d(g, net.conv.weight))
    assert not found.other_activations


SWITCHES: dict[str, tuple[Activation, str]] = {
    "leaky where": (lambda z: torch.where(z > 0, z, 0.1 * z), "where"),
    "leaky maximum": (lambda z: torch.maximum(z, 0.1 * z), "maximum"),
    "a threshold": (lambda z: z * (z > 0.1), "mul"),
    "a filled threshold": (lambda z: z.masked_fill(z < 0.2, 0), "masked_fill"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SWITCHES)
def test_other_switches_are_warned_of_beside_a_relu_and_refused_alone(method: str, name: str) -> None:
    act, word = SWITCHES[name]
    found = ask(method, seeded(lambda: TwoConvs(act, nn.ReLU())), images(2))
    assert found.warned(0, 0) == [f"activations without a ReLU rule keep their plain gradient: {word}"]
    with pytest.raises(VisxError, match=f"no ReLU.*uses {word}"):
        ask(method, seeded(lambda: TwoConvs(act, act)), images(2))


def test_a_relu_of_one_sign_is_known_by_its_comparison() -> None:
    """Where every value is positive, a mask by values could be any; one that was made of x > 0 is the ReLU's."""
    x = images(1).abs().requires_grad_()
    for act in (lambda z: z * (z > 0), lambda z: torch.where(z <= 0, 0.0, z), lambda z: z.masked_fill(~(z > 0), 0)):
        with Rules("guided") as rules:
            output = act(x * 1)
        assert rules.activations.relus == 1
        (grad,) = torch.autograd.grad(output, x, -torch.ones_like(output))
        assert not grad.any()


def test_the_exact_zero_passes_nothing() -> None:
    """A maximum's own derivative at a tie is one half."""
    x = torch.tensor([[-1.0, 0.0, 2.0]], requires_grad=True)
    with Rules("guided"):
        output = torch.maximum(x, torch.zeros(3))
    (grad,) = torch.autograd.grad(output.sum(), x)
    assert grad.tolist() == [[0, 0, 1]]
