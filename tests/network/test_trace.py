"""The one recorder of a pass: what it keeps, what it lets go of, and that its readers need no passes of their own."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from visx.network.fast.chains import chains
from visx.network.network import Network
from visx.network.trace import glance, recording


class Net(nn.Module):
    """Counts its passes, and remembers its first map weakly."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)
        self.passes = 0
        self.first: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        x = self.conv(x)
        self.first.append(weakref.ref(x))
        return self.fc(torch.relu(self.norm(x)).mean((2, 3)))


def test_a_record_has_calls_runs_and_nodes() -> None:
    net, x = Net().double().eval(), torch.randn(1, 3, 8, 8, dtype=torch.float64)
    with recording(net) as record:
        output = net(x)
    assert [call.name for call in record.calls] == ["conv2d", "batch_norm", "relu", "mean", "linear"]
    assert [(run.name, run.began, run.ended) for run in record.runs] == [
        ("conv", 0, 1), ("norm", 1, 2), ("fc", 4, 5), ("", 0, 5),
    ]  # fmt: skip
    assert record.relus == 1 and record.picture is record.value(x)
    node = record.node(output)
    assert node is not None and node.weighs and node.shape == (1, 5)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules()), "the hooks are gone"


def test_a_closed_record_holds_parameters_alone() -> None:
    net = Net().double().eval()
    record = glance(net, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    gc.collect()
    assert net.first[0]() is None, "a map of the pass is still alive"
    (chain,) = chains(record)
    assert chain.weight is net.conv.weight and chain.norm["running_mean"] is net.norm.running_mean


def test_a_record_is_current_until_a_value_changes() -> None:
    net = Net().double().eval()
    record = glance(net, torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert record.of((3, 8, 8)) and not record.of((3, 8, 9)) and record.current()
    with torch.no_grad():
        net.norm.running_mean.add_(1)
    assert not record.current()


@pytest.mark.accelerated
def test_one_pass_is_recorded_for_all_readers() -> None:
    net, shape = Net().double().eval(), torch.Size((3, 8, 8))
    network = Network(net, owned=True, accelerate=True)
    with network.session():
        assert network.feature_layer("conv", shape).grid is not None and net.passes == 1
        network.scores_of(torch.randn(1, *shape, dtype=torch.float64))
        assert net.passes == 3, "folding reads the same record, checks itself, and then scores"
        network.record(shape)
        assert net.passes == 3
