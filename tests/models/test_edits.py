"""A model whose owner edits it between two calls: every map is that of the module as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import visx
from normed import settled
from visx.errors import VisxError
from visx.images.geometry import Preprocess
from visx.models.model import Model, Weights
from visx.network.snapshot import Snapshot

SIZE = 48
METHODS: dict[str, dict[str, Any]] = {
    "occlusion": {"patch": 8, "stride": 8, "score": "logit"},
    "rise": {"masks": 16, "score": "logit"},
    "gradcam": {"layer": "conv2", "relu": False},
    "backprop": {},
}


class Net(nn.Module):
    """Convolution, norm, ReLU twice, dropout, a linear head; large enough in its first part for crops to be worth it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.act = nn.Conv2d(3, 16, 3, 2, padding=1), nn.BatchNorm2d(16), nn.ReLU()
        self.mid = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True))
        self.conv2, self.bn2 = nn.Conv2d(32, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, 4)
        self.slope = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.act(self.bn1(self.conv1(x))))
        x = F.leaky_relu(self.bn2(self.conv2(x)), self.slope) if self.slope else F.relu(self.bn2(self.conv2(x)))
        return self.fc(self.drop(x.mean((2, 3))))


def net() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module: Any = settled(Net()).float()
    for part, factor in ((module.conv1, 3), (module.mid[0], 3), (module.conv2, 3), (module.fc, 10)):
        part.weight.mul_(factor)
    return module


def model_of(module: nn.Module, owned: bool = True, accelerate: bool = True) -> Model:
    preprocess = Preprocess(SIZE, (SIZE, SIZE), "bilinear", (0.5,) * 3, (0.25,) * 3)
    return Model("net", module, preprocess, Weights("random", ""), owned=owned, accelerate=accelerate)


IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def map_of(model: Model, method: str, **more: Any) -> np.ndarray:
    return visx.explain(model, IMAGE, method, target=1, **METHODS[method], **more).map.astype(float)


def no_grad(edit: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return torch.no_grad()(edit)


def trained(m: Any) -> None:
    m.train()
    m(torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5)) * 3 + 2)
    m.eval()


def doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v * 2 if v.is_floating_point() else v for k, v in state.items()}


def permuted(m: Any) -> None:
    m.mid[0].weight.data.copy_(m.mid[0].weight.data.flip(1))


def replaced_forward(m: Any) -> None:
    m.bn1.forward = lambda x: x.tanh()


def strided(m: Any, **attributes: Any) -> None:
    for name, value in attributes.items():
        setattr(m.conv1, name, value)


def grouped(m: Any) -> None:
    m.conv1.groups, m.conv1.weight = 1, nn.Parameter(m.conv1.weight.detach()[:, :3] * 2)
    m.mid[0].groups, m.mid[0].weight = 2, nn.Parameter(m.mid[0].weight.detach()[:, :8])


class Times(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


EDITS: dict[str, Callable[[Any], Any]] = {
    "scale .data": lambda m: m.bn1.weight.data.mul_(3),
    "shift .data": lambda m: m.bn1.bias.data.add_(1),
    "convolution .data": lambda m: m.mid[0].weight.data.mul_(-1),
    "one filter's .data": lambda m: m.mid[0].weight.data[5].zero_(),
    "channels in another order": permuted,
    "kernels transposed": lambda m: setattr(m.mid[0].weight, "data", m.mid[0].weight.data.transpose(2, 3)),
    "bias .data": lambda m: m.conv1.bias.data.add_(2),
    "running mean .data": lambda m: m.bn2.running_mean.data.add_(1),
    "running variance .data": lambda m: m.mid[1].running_var.data.mul_(9),
    "copy_": no_grad(lambda m: m.conv2.weight.copy_(m.conv2.weight.flip(0))),
    "numpy": lambda m: m.conv1.weight.detach().numpy().__imul__(1.5),
    "parameter": lambda m: setattr(m.conv1, "weight", nn.Parameter(-m.conv1.weight.detach())),
    "buffer": lambda m: setattr(m.bn1, "running_mean", m.bn1.running_mean + 1),
    "submodule": lambda m: setattr(m, "bn1", nn.BatchNorm2d(16).eval()),
    "no norm": lambda m: setattr(m, "bn1", nn.Identity()),
    "a module more": lambda m: m.mid.append(nn.AvgPool2d(3, 1, 1)),
    "load_state_dict": lambda m: m.load_state_dict(doubled(m.state_dict())),
    "load_state_dict, assigned": lambda m: m.load_state_dict(doubled(m.state_dict()), assign=True),
    "statistics moved by training": trained,
    "eps": lambda m: setattr(m.bn1, "eps", 1.0),
    "stride": lambda m: strided(m, stride=(1, 1)),
    "padding": lambda m: strided(m, padding=(3, 3)),
    "dilation": lambda m: strided(m, dilation=(2, 2), padding=(2, 2)),
    "groups": grouped,
    "padding mode": lambda m: strided(m, padding_mode="circular", _reversed_padding_repeated_twice=[1, 1, 1, 1]),
    "activation": lambda m: setattr(m, "act", nn.ELU()),
    "activation's attribute": lambda m: setattr(m, "slope", 0.4),
    "forward of an instance": replaced_forward,
    "class": lambda m: setattr(m.act, "__class__", nn.Tanh),
    "hook on the convolution": lambda m: m.conv1.register_forward_hook(lambda module, args, out: out * 2),
    "hook on the convolution, in place": lambda m: m.conv1.register_forward_hook(lambda module, args, out: out.mul_(2)),
    "hook on the norm": lambda m: m.bn1.register_forward_hook(lambda module, args, out: out - 1),
    "hook on the ReLU": lambda m: m.act.register_forward_hook(lambda module, args, out: out.cos()),
    "hook before the norm": lambda m: m.bn1.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    "parametrisation": lambda m: nn.utils.parametrize.register_parametrization(m.conv1, "weight", Times()),
    "weight_norm": lambda m: parametrizations.weight_norm(m.conv1).parametrizations.weight.original0.data.mul_(2),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m.mid[0]),
    "pruning": lambda m: prune.random_unstructured(m.mid[0], "weight", 0.6),
    "mask of pruning": lambda m: prune.l1_unstructured(m.conv1, "weight", 0.9),
    "head": lambda m: m.fc.weight.data.mul_(-1),
    "float64": lambda m: m.double(),
}
SAME: dict[str, Callable[[Any], Any]] = {
    "dropout": lambda m: setattr(m.drop, "p", 0.1),
    "training mode": lambda m: m.train(),
    "requires_grad": lambda m: m.requires_grad_(True),
    "hook that records": lambda m: m.conv1.register_forward_hook(lambda module, args, out: None),
    "backward hook": lambda m: m.bn1.register_full_backward_hook(lambda module, grads, outgoing: None),
    "nothing": lambda m: None,
}


UNMOVED = {("float64", method) for method in METHODS} | {("head", "backprop")}  # which takes the absolute value


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("edit", EDITS | SAME)
def test_the_map_is_that_of_the_module_as_it_is(edit: str, method: str, owned: bool):
    module = net()
    model = model_of(module, owned)
    before = map_of(model, method)
    (EDITS | SAME)[edit](module)
    wanted = map_of(model_of(module, accelerate=False), method)
    scale = np.abs(wanted).max()
    assert scale > 0
    changed = np.abs(wanted - before).max() > 1e-3 * scale
    assert changed == (edit in EDITS and (edit, method) not in UNMOVED)
    for _ in range(2):
        found = map_of(model, method)
        assert np.abs(found - wanted).max() < 1e-4 * scale


@pytest.mark.parametrize("edit", ["scale .data", "convolution .data", "submodule", "eps"])
def test_copies_in_another_precision_follow(edit: str):
    module = net()
    model = model_of(module)
    map_of(model, "backprop")
    before = map_of(model, "backprop", precision="bf16")
    EDITS[edit](module)
    wanted = map_of(model_of(module), "backprop", precision="bf16")
    assert np.corrcoef(before.ravel(), wanted.ravel())[0, 1] < 0.99
    assert np.array_equal(map_of(model, "backprop", precision="bf16"), wanted)


def test_a_large_matrix_counts_for_copies_alone():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4))
    model = model_of(module)
    map_of(model, "backprop")
    copied, network = map_of(model, "backprop", precision="bf16"), model.network()
    assert model.network() is network
    module[1].weight.data.mul_(-2)
    assert np.array_equal(map_of(model, "backprop", precision="bf16"), 2 * copied)


def test_anatomy_follows():
    module = net()
    model = model_of(module)
    visx.explain(model, IMAGE)
    assert model.classes == 4
    module.fc = nn.Linear(8, 6)
    assert visx.explain(model, IMAGE, target=5).target == 5 and model.classes == 6
    model.labels = ("a", "b")
    with pytest.raises(VisxError, match="2 labels for a model of 6 classes"):
        visx.explain(model, IMAGE)
    model.labels = tuple("abcdef")
    assert visx.explain(model, IMAGE, target="f").label == "f"
    model.preprocess = dataclasses.replace(model.preprocess, crop=(32, 32), resize=32)
    assert visx.explain(model, IMAGE).map.shape == (32, 32)
    model.module, model.labels = net(), None
    visx.explain(model, IMAGE)
    assert model.classes == 4


def test_an_edit_is_noticed_once_and_nothing_is_learnt_anew_without():
    module = net()
    model = model_of(module)
    map_of(model, "occlusion")
    network, weights = model.network(), model.weights
    map_of(model, "occlusion")
    assert model.network() is network and model.weights is weights
    module.train()
    map_of(model, "rise")
    assert model.network() is network and module.training
    module.bn1.weight.data.mul_(2)
    map_of(model, "rise")
    assert model.network() is not network and model.weights.sha256 != weights.sha256
    network = model.network()
    map_of(model, "rise")
    assert model.network() is network


def kinds() -> dict[str, nn.Module]:
    """Modules with one large or strange tensor `t`."""
    module: dict[str, nn.Module] = {}
    for name, t in {
        "large": torch.randn(40, 16, 3, 3),
        "large, channels last": torch.randn(40, 16, 3, 3).contiguous(memory_format=torch.channels_last),
        "half": torch.randn(40, 16, 3, 3).half(),
        "not a number": torch.full((5, 1), torch.nan),
        "a part of another": torch.randn(40, 16, 3, 6)[..., ::2],
        "integers": torch.arange(5000).view(5, 10, 100),
        "one": torch.tensor(1.0),
        "complex": torch.randn(3, 3, dtype=torch.complex64),
        "sparse": torch.eye(4).to_sparse(),
        "flags": torch.zeros(3, dtype=torch.bool),
        "none": torch.empty(0),
    }.items():
        module[name] = nn.Module()
        module[name].register_buffer("t", t)
    return module


@pytest.mark.parametrize("kind", kinds())
def test_a_snapshot_holds_until_a_value_changes(kind: str):
    module = kinds()[kind]
    snapshot = Snapshot(module)
    assert snapshot.holds() and snapshot.holds(matrices=True)
    if kind == "sparse":
        module.t = module.t * 2
    elif kind == "none":
        module.t.data = torch.ones(1)
    elif kind == "flags":
        module.t.data.logical_not_()
    elif kind == "not a number":
        module.t.data[2] = 0
    else:
        module.t.data.view(-1)[-1:].add_(1) if module.t.is_contiguous() else module.t.data[-1].add_(1)
    assert not snapshot.holds()


def test_a_snapshot_looks_into_attributes():
    module = net()
    module.config = {"scales": [1, 2], "names": {"a"}}
    module.parts = [nn.Conv2d(3, 3, 1)]
    module.settings = type("Settings", (), {})()
    module.settings.depth = 1
    for edit in (
        lambda: module.config["scales"].append(3),
        lambda: module.config["names"].add("b"),
        lambda: setattr(module.parts[0], "stride", (2, 2)),
        lambda: module.parts[0].weight.data.mul_(2),
        lambda: setattr(module.settings, "depth", 2),
        lambda: setattr(module, "new", 1),
        lambda: setattr(module, "_forward_hooks", type(module._forward_hooks)()) or module.register_forward_hook(print),
    ):
        snapshot = Snapshot(module)
        assert snapshot.holds()
        edit()
        assert not snapshot.holds()
