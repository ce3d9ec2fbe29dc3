"""Single gradients: every ReLU passes what it passes in the plain forward pass, to the last bit, however the network runs."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from nets import images
from normed import Blocks, Mixed, Oddities, Plain, Rectified, pictures, settled
from oracles import column_scores, pearson
from visx.network.network import Network

pytestmark = pytest.mark.accelerated


@pytest.mark.parametrize("rule", [None, "guided", "deconv"])
@pytest.mark.parametrize("build", [Plain, Blocks, Rectified, Mixed, Oddities])
def test_forward_pass_is_the_networks_own_and_so_are_the_gradients(build: type[nn.Module], rule: str | None):
    if rule and build is Mixed:
        pytest.skip("it has no ReLU")
    torch.manual_seed(1)
    net, x = settled(build()), pictures()
    plain, ours = Network(net), Network(net, owned=True, accelerate=True)
    fixed = column_scores(torch.tensor([[0, 2], [1, 2], [0, 1], [2, 0]]))
    with plain.session(), ours.session():
        wanted, found = (n.input_gradients(x, fixed, rule) for n in (plain, ours))
    assert wanted.grads.abs().max() > 0 and found.other_activations == wanted.other_activations
    torch.testing.assert_close(found.grads, wanted.grads, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.scores, wanted.scores) or rule == "guided", "which may run folded"


def norms_behind(output: Tensor) -> int:
    """How many normalisations the backward pass from here would go through."""
    waiting, found = [output.grad_fn], set()
    while waiting:
        node = waiting.pop()
        waiting += [before for before, _ in node.next_functions if before is not None]
        found |= {node} if "BatchNorm" in node.name() else set()
    return len(found)


@pytest.mark.parametrize(("build", "left"), [(Plain, 1), (Blocks, 0), (Rectified, 0), (Mixed, 7), (Oddities, 2)])
def test_backward_pass_is_folded(build: type[nn.Module], left: int):
    net, x = settled(build()), pictures()
    network = Network(net, owned=True, accelerate=True)
    with network.session(), torch.enable_grad():
        for _ in range(2):
            output = network.fast.gradients(x.shape[1:], lambda: net(x.clone().requires_grad_()))
            assert norms_behind(output) == left
            assert norms_behind(net(x.clone().requires_grad_())) > left, "outside nothing is"


EDITS = {
    "statistics": lambda net: setattr(net.bn2, "running_mean", net.bn2.running_mean + 1),
    "scale": lambda net: setattr(net.bn1, "weight", nn.Parameter(-net.bn1.weight.detach(), requires_grad=False)),
    "eps": lambda net: setattr(net.bn1, "eps", 1.0),
    "no norm": lambda net: setattr(net, "bn1", nn.Identity()),
    "padding": lambda net: setattr(net.conv2, "padding", (2, 0)),
    "values": lambda net: net.conv1.weight.mul_(2),
    "data": lambda net: setattr(net.conv2.weight, "data", -net.conv2.weight.data),
    "hook": lambda net: net.conv1.register_forward_hook(lambda module, args, output: output * 2),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_loaded_network_that_is_edited_between_calls_is_explained_as_it_is(edit: str):
    net, x = settled(Blocks()), pictures()
    network, fixed = Network(net, owned=True, accelerate=True), column_scores(torch.zeros(4, 1, dtype=torch.int64))
    with network.session():
        network.input_gradients(x, fixed)
    with torch.no_grad():
        EDITS[edit](net)
    with network.session():
        found = network.input_gradients(x, fixed)
    wanted = Network(net).input_gradients(x, fixed)
    assert wanted.grads.any()
    torch.testing.assert_close(found.grads, wanted.grads, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("build", [Blocks, Oddities])
def test_no_activation_outlives_its_call(build: type[nn.Module]):
    net, x, seen = settled(build()), pictures(), []
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    network, fixed = Network(net, owned=True, accelerate=True), column_scores(torch.zeros(4, 1, dtype=torch.int64))
    with network.session():
        for _ in range(2):
            network.input_gradients(x, fixed)
    gc.collect()
    assert seen and not [output for output in seen if output() is not None]


def test_nothing_is_kept_of_weights_that_are_made_anew_in_every_pass():
    net, x = settled(Mixed()), pictures()
    network, fixed = Network(net, owned=True, accelerate=True), column_scores(torch.zeros(4, 1, dtype=torch.int64))
    with network.session():
        kept = []
        for _ in range(3):
            network.input_gradients(x, fixed)
            kept.append(len(network.fast._exact._ways))
    assert kept[0] == kept[2] > 0


class Balanced(nn.Module):
    """A convolution whose terms cancel, but for rounding: which ReLU passes hangs on the order in which they are summed."""

    def __init__(self, kernel: int, channels: int, norm: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels // 2, 1, bias=False)
        self.second = nn.Conv2d(channels, 8, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(8, affine=False) if norm else nn.Identity()
        self.fc = nn.Linear(8, 3)
        self.second.weight.data[:, channels // 2 :] = -self.second.weight.data[:, : channels // 2]

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.cat([x, x.detach()], 1)  # the values cancel, the gradient does not
        return self.fc(F.relu(self.norm(self.second(x))).sum((2, 3)))


def gradients(network: Network, x: Tensor) -> Tensor:
    with network.session():
        return network.input_gradients(x, column_scores(torch.zeros(len(x), 1, dtype=torch.int64))).grads


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    ("kernel", "channels", "size"), [(3, 64, 14), (3, 16, 28), (1, 1024, 7), (1, 64, 40), (1, 512, 48)]
)
def test_a_channels_last_network_sums_as_one_image_does_in_the_plain_layout(
    kernel: int, channels: int, size: int, norm: bool
):
    torch.manual_seed(4)
    net = Balanced(kernel, channels, norm).eval().requires_grad_(False)
    ours = Network(
        copy.deepcopy(net).to(memory_format=torch.channels_last), channels_last=True, owned=True, accelerate=True
    )
    x = images(3, size, dtype=torch.float32)
    for _ in range(2):
        wanted = torch.cat([gradients(Network(net), image) for image in x.split(1)])
        for batch in (1, 3):
            found = torch.cat([gradients(ours, some) for some in x.split(batch)])
            assert wanted.any() and pearson(found, wanted) > 1 - 1e-9
        with torch.no_grad():  # what was kept of a weight ends with its values
            for module in (net, ours.module):
                module.second.weight.mul_(torch.linspace(0.5, 1.5, 8)[:, None, None, None])


@pytest.mark.parametrize("rule", [None, "guided", "deconv"])
def test_resnet_in_channels_last_gives_the_plain_networks_gradient(rule: str | None):
    torch.manual_seed(2)
    net = models.resnet18(weights=None).eval().requires_grad_(False)
    x, fixed = torch.randn(2, 3, 64, 64), column_scores(torch.tensor([[3], [500]]))
    plain = Network(net)
    ours = Network(
        copy.deepcopy(net).to(memory_format=torch.channels_last), channels_last=True, owned=True, accelerate=True
    )
    with plain.session(), ours.session():
        wanted, found = (n.input_gradients(x, fixed, rule) for n in (plain, ours))
    assert pearson(found.grads, wanted.grads) > (0.99999 if rule == "guided" else 1 - 1e-9)
