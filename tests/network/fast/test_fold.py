"""Folding: the same logits with every foldable normalisation gone, and the module as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visx.network.fast.fold as folding
from normed import Blocks, Mixed, Oddities, Plain, Rectified, Shared, pictures, settled
from oracles import column_scores
from visx.network.fast.fold import fold
from visx.network.network import Network
from visx.network.rules import relu_call

pytestmark = pytest.mark.accelerated


class Count(torch.overrides.TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.norms = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.norms += func is F.batch_norm
        return func(*args, **(kwargs or {}))


def norms_run(module: nn.Module, x: Tensor, folded) -> int:
    """How many normalisations are left when folded. The outer mode sees what the inner one lets through."""
    with Count() as count, folded:
        module(x)
    return count.norms


def test_folded_logits_are_the_logits():
    net, x = settled(Plain()), pictures()
    want = net(x)
    folded = fold(net, x[:1])
    with folded:
        torch.testing.assert_close(net(x), want, rtol=0, atol=1e-12)
    assert norms_run(net, x, folded) == 1, "only the one without a convolution is left"
    assert torch.equal(net(x), want), "outside nothing is folded"


def test_nothing_of_the_module_is_changed():
    net = settled(Plain())
    state = {k: (v, v.clone(), v._version) for k, v in net.state_dict(keep_vars=True).items()}
    children = list(net.modules())
    folded = fold(net, pictures())
    assert folded and norms_run(net, pictures(), folded) == 1
    assert all(v is state[k][0] and torch.equal(v, state[k][1]) for k, v in net.state_dict(keep_vars=True).items())
    assert [m is c for m, c in zip(net.modules(), children, strict=True)] and not net.a._forward_hooks


def test_what_is_shared_or_read_elsewhere_is_not_folded():
    net, x = settled(Shared()), pictures()
    want = net(x)
    folded = fold(net, x)
    assert not folded and norms_run(net, x, folded) == 6
    with folded:
        torch.testing.assert_close(net(x), want, rtol=0, atol=0)


def test_batch_statistics_are_not_folded():
    layers = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]
    net, x = settled(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())), pictures()
    net[1].train()
    folded = fold(net, x)
    assert norms_run(net, x, folded) == 1, "of two"


def test_a_module_without_convolutions_or_with_a_scripted_part_is_left_alone():
    assert not fold(nn.Sequential(nn.Flatten(), nn.Linear(432, 3)).double(), pictures())
    inner = settled(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert not fold(nn.Sequential(torch.jit.script(inner), nn.AdaptiveAvgPool2d(1), nn.Flatten()), pictures())


class Passes(nn.Module):
    """Counts its passes; `layer` decides whether there is something to fold."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.body(x)


@pytest.mark.parametrize(
    ("layer", "passes"),
    [(nn.GroupNorm(2, 4), 0), (nn.BatchNorm2d(4, affine=False), 2), (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), 1)],
)
def test_learning_costs_no_more_passes_than_it_must(layer: nn.Module, passes: int):
    net = settled(Passes(layer))
    assert bool(fold(net, pictures())) == (passes == 2) and net.passes == passes


def test_where_memory_does_not_hold_the_recorded_pass_nothing_is_folded(monkeypatch: pytest.MonkeyPatch):
    def full(*args: object) -> bool:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(folding, "glance", full)
    assert not fold(settled(Passes(nn.BatchNorm2d(4))), pictures())


def test_beside_what_cannot_be_folded_the_rest_is():
    net, x = settled(Mixed()), pictures()
    want = net(x)
    folded = fold(net, x)
    assert norms_run(net, x, folded) == 7, "of eight"
    with folded:
        torch.testing.assert_close(net(x), want, rtol=0, atol=1e-12)


def test_a_network_folds_only_where_visx_loaded_the_module_and_again_when_values_change():
    net, x = settled(Plain()), pictures()
    free, ours = Network(net), Network(net, owned=True, accelerate=True)
    with Count() as count:
        free.scores_of(x)
    assert count.norms == 4
    torch.testing.assert_close(ours.scores_of(x), net(x), rtol=0, atol=1e-12)
    with Count() as count:
        ours.scores_of(x)
    assert count.norms == 1
    with torch.no_grad():
        net.nc.running_mean.add_(3.0)
        net.a.weight.mul_(2.0)
    torch.testing.assert_close(ours.scores_of(x), net(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", ["efficientnet_lite0", "resnet18"])
@torch.no_grad()
def test_real_networks_fold_whole(spec):
    from visx.models import load_model

    model = load_model(spec, "default" if spec == "efficientnet_lite0" else "random")
    network, x = model.network(), pictures(96).float()
    with network.session():
        plain, folded = network.logits(x), network.scores_of(x)
        assert (plain.softmax(1) - folded.softmax(1)).abs().max() < 1e-5
        assert (plain - folded).abs().max() < 1e-5 * (plain.max() - plain.min())
        with Count() as count:
            network.scores_of(x)
    assert count.norms == 0


@pytest.mark.parametrize("layer", ["conv1", "bn1", "conv2", "bn2"])
def test_what_lies_before_a_layer_runs_folded_and_the_layer_is_what_it_was(layer: str) -> None:
    torch.manual_seed(3)
    module = Blocks().double().eval()
    for norm in (module.bn1, module.bn2):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    x, ids = torch.randn(2, 3, 9, 9, dtype=torch.float64), torch.tensor([[1, 2], [3, 0]])
    plain, folding = Network(module), Network(module, owned=True, accelerate=True)
    with plain.session():
        wanted = plain.layer_gradients(x, layer, column_scores(ids))
        found = folding.layer_gradients(x, layer, column_scores(ids))
    torch.testing.assert_close(found.activation, wanted.activation)
    torch.testing.assert_close(found.grads, wanted.grads)
    torch.testing.assert_close(found.scores, wanted.scores)
    with Count() as count, folding.session():
        folding.layer_gradients(x, layer, column_scores(ids))
    # a normalisation runs by itself behind a convolution whose own output was asked for
    assert count.norms == {"conv1": 1, "bn1": 0, "conv2": 1, "bn2": 0}[layer]


class Relus(torch.overrides.TorchFunctionMode):
    """Counts the ReLUs that still run: an outer mode sees what the inner one lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen += relu_call(func, args, kwargs or {}) is not None
        return func(*args, **(kwargs or {}))


def relus_run(net: nn.Module, x: Tensor, folded) -> int:
    with Relus() as count, folded:
        net(x)
    return count.seen


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_relus_behind_normalisations_are_folded_too(layout: torch.memory_format):
    net, x = settled(Rectified()).float().to(memory_format=layout), pictures().float().contiguous(memory_format=layout)
    want = net(x)
    folded = fold(net, x[:1])
    with folded, torch.no_grad():
        torch.testing.assert_close(net(x), want, rtol=1e-5, atol=1e-5)
        assert relus_run(net, x, folded) == 4, "of seven: those that are not alone with their normalisation"
    assert relus_run(net, x.clone().requires_grad_(), folded) == 7, "where gradients are recorded, each runs"
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    with folded:
        (grad,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(grad, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["packed", "pointwise"])
def test_without_the_fused_convolution_only_normalisations_are_folded(monkeypatch: pytest.MonkeyPatch, name: str):
    def missing(*args: object) -> Tensor:
        raise RuntimeError("not on this processor")

    monkeypatch.setattr(folding, name, missing)
    net, x = settled(Rectified()).float(), pictures().float()
    folded = fold(net, x[:1])
    with torch.no_grad():
        assert norms_run(net, x, folded) == 0 and relus_run(net, x, folded) == 7


def test_layer_before_a_folded_relu_is_what_it_is():
    """Grad-CAM at a normalisation whose ReLU is folded: its own output, negative values and all."""
    net, x = settled(Rectified()).float(), pictures().float()
    plain, folding = Network(net), Network(net, owned=True, accelerate=True)
    fixed = column_scores(torch.zeros(4, 1, dtype=torch.int64))
    with plain.session(), folding.session():
        a, b = (n.layer_gradients(x, "norms.0", fixed) for n in (plain, folding))
    assert (a.activation < 0).any()
    torch.testing.assert_close(b.activation, a.activation)
    torch.testing.assert_close(b.grads, a.grads)


@pytest.mark.parametrize("rule", [None, "guided", "deconv"])
@pytest.mark.parametrize("build", [Plain, Blocks, Rectified, Mixed, Oddities])
def test_gradients_of_the_folded_network_are_the_networks_own(build: type[nn.Module], rule: str | None):
    if rule and build is Mixed:
        pytest.skip("it has no ReLU")
    torch.manual_seed(1)
    net, x = settled(build()), pictures()
    plain, folding = Network(net), Network(net, owned=True, accelerate=True)
    fixed = column_scores(torch.tensor([[0, 2], [1, 2], [0, 1], [2, 0]]))
    with plain.session(), folding.session():
        wanted, found = (n.input_gradients(x, fixed, rule, one_of_many=True) for n in (plain, folding))
        with Count() as count:
            folding.input_gradients(x, fixed, rule, one_of_many=True)
    assert wanted.grads.abs().max() > 0 and count.norms == {Plain: 1, Mixed: 7, Oddities: 1}.get(build, 0)
    torch.testing.assert_close(found.grads, wanted.grads, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer", ["conv1", "bn1", "conv2", "bn2"])
def test_projections_of_a_layer_see_the_layer_itself(layer: str):
    """Inside a folded pair the convolution's output would be the normalisation's."""
    net, x = settled(Blocks()), pictures()
    plain, folding = Network(net), Network(net, owned=True, accelerate=True)
    with plain.session(), folding.session():
        folding.scores_of(x)  # has learnt what can be folded
        wanted, found = (n.project(x, layer, lambda a: a, "deconv") for n in (plain, folding))
    torch.testing.assert_close(found, wanted)


def test_weights_are_packed_once_whatever_comes_later(monkeypatch: pytest.MonkeyPatch):
    packs: list[tuple[int, ...]] = []
    pack = folding.packed
    monkeypatch.setattr(
        folding, "packed", lambda w, call: packs.append(tuple(call.given["input"].shape)) or pack(w, call)
    )
    net, x = settled(Rectified()).float(), pictures(13).float()
    network = Network(net, owned=True, accelerate=True)
    with network.session():
        for batch in (x[:1], x, x[:3]):
            torch.testing.assert_close(network.scores_of(batch), net(batch), rtol=1e-5, atol=1e-5)
    assert len(packs) == 6 and {shape[0] for shape in packs} == {1}, "each in the pass that it is learnt in"


def test_ceiling_of_a_folded_relu_holds():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = settled(net).float()
    net[1].weight.data.mul_(20)
    x = pictures().float()
    folded = fold(net, x[:1])
    assert net[:3](x).max() == 6 and folded.fusing
    with folded, torch.no_grad():
        found = net(x)
    torch.testing.assert_close(found, net(x), rtol=1e-5, atol=1e-5)


def test_that_a_layer_exists_only_unfolded_is_learnt_once():
    module = settled(Blocks())
    network, x = Network(module, owned=True, accelerate=True), pictures()
    begun: list[int] = []
    module.conv1.register_forward_hook(lambda *_: begun.append(1))
    fixed = column_scores(torch.zeros(4, 1, dtype=torch.int64))
    with network.session():
        network.scores_of(x)
        network.feature_layer("conv2", x.shape[1:])  # looks at the network, once
        for passes in (2, 1, 1):
            begun.clear()
            network.layer_gradients(x, "conv2", fixed)
            assert len(begun) == passes
