"""Gradients through batch and instance normalisation against finite differences, where layouts differ for one image."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nets import CLASSES, images, seeded
from oracles import answers, ask, column_scores, maps_of, model_of, same
from visx.network.network import Network
from visx.network.norms import align_norms


class Hybrid(nn.Module):
    """A convolution, tokens, a map of the tokens, a normalisation, a linear layer; or tokens behind the normalisation."""

    def __init__(self, norm: nn.Module, rows: int = 4, tokens_behind: bool = False) -> None:
        super().__init__()
        self.conv, self.linear, self.norm, self.last = nn.Conv2d(3, 8, 3, 3), nn.Linear(8, 8), norm, nn.Identity()
        self.tokens, self.head = nn.LayerNorm(8), nn.Linear(8 * 16, CLASSES)
        self.rows, self.tokens_behind = rows, tokens_behind

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if not self.tokens_behind:
            x = F.relu(self.linear(self.tokens(x.flatten(2).transpose(1, 2)))).transpose(1, 2)
        x = self.last(self.norm(x.reshape(len(x), 8, self.rows, -1)).contiguous())
        if self.tokens_behind:
            x = F.relu(self.linear(self.tokens(x.flatten(2).transpose(1, 2))))
        return self.head(F.softplus(x.flatten(1)))


class Deep(Hybrid):
    """The same with three dimensions of space."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(self.conv(x).flatten(2).transpose(1, 2)).transpose(1, 2)
        return self.head(F.softplus(self.norm(x.reshape(len(x), 8, 2, 2, -1)).flatten(1)))


def statistics(norm: nn.Module) -> nn.Module:
    """A normalisation whose values are no longer those of the beginning."""
    for tensor in (*norm.parameters(), *norm.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 2.0)
    return norm


def batch_norm() -> nn.Module:
    return statistics(nn.BatchNorm2d(8))


NETS: dict[str, Callable[[], nn.Module]] = {
    "tokens before": lambda: Hybrid(batch_norm()),
    "tokens behind": lambda: Hybrid(batch_norm(), tokens_behind=True),
    "a map of one row": lambda: Hybrid(batch_norm(), rows=1),
    "a map of one column": lambda: Hybrid(batch_norm(), rows=16),
    "batch statistics": lambda: Hybrid(nn.BatchNorm2d(8, track_running_stats=False)),
    "instance statistics": lambda: Hybrid(statistics(nn.InstanceNorm2d(8, affine=True)), tokens_behind=True),
    "instance norm": lambda: Hybrid(statistics(nn.InstanceNorm2d(8, affine=True, track_running_stats=True))),
    "three dimensions": lambda: Deep(statistics(nn.BatchNorm3d(8))),
}


@pytest.mark.parametrize("name", NETS)
def test_gradient_of_one_image_is_that_of_finite_differences(name: str) -> None:
    net, x = seeded(NETS[name]), images(1)
    found = ask("backprop", net, x).channels[0, 0]  # type: ignore[index]
    steps = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape[1:])[::7] * 1e-5
    with torch.no_grad():
        slopes = torch.cat([(net(x + h) - net(x - h))[:, 0] for h in steps[:, None]]) / 2e-5
    assert same(found.flatten()[::7], slopes, 1e-5)


@pytest.mark.parametrize("rows", [4, 1])
@pytest.mark.parametrize("tokens_behind", [False, True])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("backprop", {}),
        ("integrated_gradients", {"steps": 4}),
        ("smoothgrad", {"samples": 3}),
        ("meaningful_perturbation", {"iterations": 3, "mask_size": 4}),
        ("gradcam", {"layer": "conv"}),
    ],
)  # fmt: skip
def test_every_method_finds_for_one_image_what_it_finds_in_a_batch(
    method: str, options: dict[str, object], tokens_behind: bool, rows: int
) -> None:
    model, x = model_of(seeded(lambda: Hybrid(batch_norm(), rows, tokens_behind))), images(2)
    options = dict(options)
    layer = options.pop("layer", None)
    both = maps_of(answers(model, method, x, layer=layer, seeds=[0, 1], **options))  # type: ignore[arg-type]
    for b in range(2):
        alone = maps_of(answers(model, method, x[b : b + 1], layer=layer, seeds=[b], copies=1, **options))  # type: ignore[arg-type]
        assert same(alone[0], both[b], 1e-5)


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_rules_find_for_one_image_what_they_find_in_a_batch(method: str) -> None:
    net, x = seeded(lambda: Hybrid(batch_norm())), images(2)
    both = ask(method, net, x).channels
    assert both is not None
    for b in range(2):
        assert same(ask(method, net, x[b : b + 1]).channels[0], both[b])  # type: ignore[index]


def test_a_unit_is_projected_for_one_image_as_in_a_batch() -> None:
    net, x = seeded(lambda: Hybrid(batch_norm())), images(2)
    both = ask("deconvnet", net, x, layer="last", unit="3,1,1").channels
    assert both is not None
    assert same(ask("deconvnet", net, x[:1], layer="last", unit="3,1,1").channels, both[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_less_precision_too(dtype: torch.dtype) -> None:
    net, x = seeded(lambda: Hybrid(batch_norm())), images(1)
    fixed = column_scores(torch.tensor([[0]]))
    exact = Network(net).input_gradients(x, fixed).grads
    found = Network(net.to(dtype)).input_gradients(x, fixed).grads
    assert same(found.double(), exact, 1e-4 if dtype == torch.float32 else 0.3)


def test_where_layouts_agree_nothing_is_copied() -> None:
    norm = batch_norm()
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 8, 3, 4).contiguous(memory_format=layout).requires_grad_()
        seen: list[Tensor] = []
        y = norm(x)
        align_norms(y)
        assert y.grad_fn is not None
        y.grad_fn.register_prehook(lambda grads, seen=seen: seen.append(grads[0]))
        g = torch.randn(2, 8, 3, 4).contiguous(memory_format=layout)
        torch.autograd.grad(y, x, g)
        assert seen[0].data_ptr() == g.data_ptr()


def test_the_graph_ends_with_the_pass() -> None:
    x = torch.randn(1, 8, 3, 4, requires_grad=True)
    gc.disable()
    try:
        y = batch_norm()(x)
        align_norms(y)
        alive = weakref.ref(y)
        del y
        assert alive() is None
        inner = x * 2
        alive, z = weakref.ref(inner), batch_norm()(inner)  # the graph holds `inner` for the backward pass
        align_norms(z)
        del inner, z
        assert alive() is None
    finally:
        gc.enable()
