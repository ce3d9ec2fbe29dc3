"""Folding: the same logits with every foldable normalisation gone, and the module as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

import visx.folding
from visx.folding import fold
from visx.rules import relu_call
from visx.state import Network
from visx.targets import Targets


def settled(module: nn.Module) -> nn.Module:
    """Float64, eval mode, statistics and affine values that are not the initial ones."""
    g = torch.Generator().manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            for name in ("running_mean", "running_var", "weight", "bias"):
                tensor = getattr(m, name)
                if tensor is not None:
                    tensor.data = torch.rand(tensor.shape, generator=g) + 0.5
    return module.double().eval().requires_grad_(False)


class Plain(nn.Module):
    """Grouped, biased, dilated and plain convolutions; modules and functional forms; a normalisation without a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8, eps=0.1)
        self.b, self.nb = nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8, affine=False)
        self.c, self.nc = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.first, self.head = nn.BatchNorm2d(3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu_(self.na(self.a(self.first(x))))
        x = F.relu(self.nb(self.b(x)), inplace=True)
        y = F.conv2d(x, self.c.weight, None, stride=1)
        x = F.batch_norm(y, self.nc.running_mean, self.nc.running_var, self.nc.weight, self.nc.bias, False, 0.1, 0.01)
        return self.head(x.mean((2, 3)))


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


def pictures(size: int = 12) -> Tensor:
    return torch.randn(4, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


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


class Shared(nn.Module):
    """One convolution twice, a normalisation twice, a convolution that is read beside its normalisation, batch statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.n1, self.n2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.c3, self.c4, self.n3 = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.c5, self.n5 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.c6, self.n6 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n2(self.conv(self.n1(self.conv(x))))
        x = self.n3(self.c4(self.n3(self.c3(x))))
        y = self.c5(x)
        x = torch.cat([y, self.n5(y)], 1)[:, :3]
        return self.n6(self.c6(x)).mean((2, 3))


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


def test_where_memory_does_not_hold_the_watched_pass_nothing_is_folded(monkeypatch: pytest.MonkeyPatch):
    def full(*args: object) -> bool:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(visx.folding, "relu_call", full)
    assert not fold(settled(Passes(nn.BatchNorm2d(4))), pictures())


class Mixed(Shared):
    """As well: a weight that is made anew in every pass, as a parametrised one is, and one pair that can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.c7, self.n7 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.c8, self.n8 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.n7(F.conv2d(x, self.c7.weight * 1.5, self.c7.bias))
        return super().forward(self.n8(self.c8(x)))


def test_beside_what_cannot_be_folded_the_rest_is():
    net, x = settled(Mixed()), pictures()
    want = net(x)
    folded = fold(net, x)
    assert norms_run(net, x, folded) == 7, "of eight"
    with folded:
        torch.testing.assert_close(net(x), want, rtol=0, atol=1e-12)


def test_a_network_folds_only_where_visx_loaded_the_module_and_again_when_values_change():
    net, x = settled(Plain()), pictures()
    free, ours = Network(net), Network(net, foldable=True)
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


class Blocks(nn.Module):
    """Convolution, normalisation and an in-place ReLU twice, a pooled linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.relu(self.bn2(self.conv2(x))).mean((2, 3)))


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
    plain, folding = Network(module), Network(module, foldable=True)
    with plain.session():
        wanted = plain.layer_gradients(x, layer, Targets.fixed(ids), "logit")
        found = folding.layer_gradients(x, layer, Targets.fixed(ids), "logit")
    torch.testing.assert_close(found.activation, wanted.activation)
    torch.testing.assert_close(found.grads, wanted.grads)
    torch.testing.assert_close(found.scores, wanted.scores)
    with Count() as count, folding.session():
        folding.layer_gradients(x, layer, Targets.fixed(ids), "logit")
    # before bn2 lies bn1; a convolution's own output exists only unfolded
    assert count.norms == {"conv1": 2, "bn1": 1, "conv2": 2, "bn2": 0}[layer]


class Rectified(nn.Module):
    """ReLUs behind normalisations: in place, by themselves, with a ceiling, with their input read elsewhere, shared."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d, e, f = (lambda x, n=n: self.norms[n](self.convs[n](x)) for n in range(6))
        x = F.relu(a(x))
        x = b(x).relu_() * 2
        x = F.relu6(4 * c(x), inplace=True)  # not the normalisation's own output
        x = F.relu6(d(x), inplace=True)
        y = e(x)
        x = F.relu(y) + y
        z = f(x)
        return (torch.relu(z) + torch.clamp(z, 0, 1)).mean((2, 3))


class Oddities(nn.Module):
    """Calls that the operators beneath don't know, or that are seldom written: padding by name, an image without a batch,
    one dimension, strides and padding of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(3, 4, 3, padding="same", dilation=2),
                nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), groups=2, bias=False),
                nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
                nn.Conv1d(4, 4, 3, stride=2, padding=1),
                nn.Conv2d(4, 4, 1),
            ]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(6), nn.BatchNorm2d(4), nn.BatchNorm1d(4)])
        self.last = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs[:3], self.norms[:3], strict=True):
            x = F.relu(norm(conv(x)))
        x = self.norms[3](self.convs[3](x.flatten(2)))
        images = [self.last(self.convs[4](image[:, None])[None]) for image in x[:1]]  # (C, H, W) into the convolution
        return x.mean(2) + images[0].mean((2, 3))


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
    assert relus_run(net, x, folded) == 7, "where gradients may be recorded, each runs"
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    with folded:
        (grad,) = torch.autograd.grad(net(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(grad, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["packed", "pointwise"])
def test_without_the_fused_convolution_only_normalisations_are_folded(monkeypatch: pytest.MonkeyPatch, name: str):
    def missing(*args: object) -> Tensor:
        raise RuntimeError("not on this processor")

    monkeypatch.setattr(visx.folding, name, missing)
    net, x = settled(Rectified()).float(), pictures().float()
    folded = fold(net, x[:1])
    with torch.no_grad():
        assert norms_run(net, x, folded) == 0 and relus_run(net, x, folded) == 7


def test_layer_before_a_folded_relu_is_what_it_is():
    """Grad-CAM at a normalisation whose ReLU is folded: its own output, negative values and all."""
    net, x = settled(Rectified()).float(), pictures().float()
    plain, folding = Network(net), Network(net, foldable=True)
    fixed = Targets.fixed(torch.zeros(4, 1, dtype=torch.int64))
    with plain.session(), folding.session():
        a, b = (n.layer_gradients(x, "norms.0", fixed, "logit") for n in (plain, folding))
    assert (a.activation < 0).any()
    torch.testing.assert_close(b.activation, a.activation)
    torch.testing.assert_close(b.grads, a.grads)


@pytest.mark.parametrize("one_of_many", [False, True])
@pytest.mark.parametrize("rule", [None, "guided", "deconv"])
@pytest.mark.parametrize("build", [Plain, Blocks, Rectified, Mixed, Oddities])
def test_gradients_of_the_folded_network_are_the_networks_own(
    build: type[nn.Module], rule: str | None, one_of_many: bool
):
    if rule and build is Mixed:
        pytest.skip("it has no ReLU")
    torch.manual_seed(1)
    net, x = settled(build()), pictures()
    plain, folding = Network(net), Network(net, foldable=True)
    fixed = Targets.fixed(torch.tensor([[0, 2], [1, 2], [0, 1], [2, 0]]))
    with plain.session(), folding.session():
        wanted, found = (n.input_gradients(x, fixed, "logit", rule, one_of_many=one_of_many) for n in (plain, folding))
    assert wanted.grads.abs().max() > 0 and found.other_activations == wanted.other_activations
    torch.testing.assert_close(found.grads, wanted.grads, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.scores, wanted.scores) or one_of_many, "the forward pass is the network's own"


@pytest.mark.parametrize(("build", "left"), [(Plain, 1), (Blocks, 0), (Rectified, 0), (Mixed, 7), (Oddities, 1)])
def test_where_the_forward_pass_is_as_written_the_backward_pass_is_folded(build: type[nn.Module], left: int):
    net, x = settled(build()), pictures()
    network = Network(net, foldable=True)
    with network.session(), torch.enable_grad():
        for as_written in (True, False, True):
            with (network.as_written if as_written else network.folded)(x.shape[1:]):
                output = net(x.clone().requires_grad_())
            waiting, norms = [output.grad_fn], set()
            while waiting:
                node = waiting.pop()
                waiting += [before for before, _ in node.next_functions if before is not None]
                norms |= {node} if "BatchNorm" in node.name() else set()
            assert len(norms) == left + (as_written and build is Oddities), "padding by name keeps its own"


def test_single_gradients_in_float32_are_those_of_the_network_to_the_last_relu():
    """A folded forward pass moves inputs of ReLUs across zero by its rounding; one that does not gives r = 1."""
    torch.manual_seed(2)
    net = models.resnet18(weights=None).eval().requires_grad_(False)
    x, fixed = torch.randn(2, 3, 64, 64), Targets.fixed(torch.tensor([[3], [500]]))
    plain, folding = Network(net), Network(net, foldable=True)
    with plain.session(), folding.session():
        for rule in (None, "guided"):
            wanted, found = (n.input_gradients(x, fixed, "logit", rule) for n in (plain, folding))
            assert torch.equal(found.scores, wanted.scores)
            torch.testing.assert_close(found.grads, wanted.grads, rtol=0, atol=1e-5 * float(wanted.grads.abs().max()))


@pytest.mark.parametrize("layer", ["conv1", "bn1", "conv2", "bn2"])
def test_projections_of_a_layer_see_the_layer_itself(layer: str):
    """Inside a folded pair the convolution's output would be the normalisation's."""
    net, x = settled(Blocks()), pictures()
    plain, folding = Network(net), Network(net, foldable=True)
    with plain.session(), folding.session():
        folding.scores_of(x)  # has learnt what can be folded
        wanted, found = (n.project(x, layer, lambda a: a, "deconv") for n in (plain, folding))
    torch.testing.assert_close(found, wanted)


def test_weights_are_packed_once_whatever_comes_later(monkeypatch: pytest.MonkeyPatch):
    packs: list[tuple[int, ...]] = []
    pack = visx.folding.packed
    monkeypatch.setattr(
        visx.folding, "packed", lambda w, call: packs.append(tuple(call.given["input"].shape)) or pack(w, call)
    )
    net, x = settled(Rectified()).float(), pictures(13).float()
    network = Network(net, foldable=True)
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
    network, x = Network(module, foldable=True), pictures()
    begun: list[int] = []
    module.conv1.register_forward_hook(lambda *_: begun.append(1))
    fixed = Targets.fixed(torch.zeros(4, 1, dtype=torch.int64))
    with network.session():
        network.scores_of(x)
        for passes in (2, 1, 1):
            begun.clear()
            network.layer_gradients(x, "conv2", fixed, "logit")
            assert len(begun) == passes
