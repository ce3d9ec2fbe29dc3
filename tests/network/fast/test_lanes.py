"""Lanes: passes side by side, and nothing of it shows in what they return."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from oracles import column_scores
from visx.errors import VisxError
from visx.network.fast.accelerated import LEAST_ROWS
from visx.network.fast.lanes import Lanes, side_by_side, threads_of, twin
from visx.network.memory import BatchSize
from visx.network.network import Network
from visx.network.outputs import LOGITS
from visx.network.scorer import Scorer

pytestmark = pytest.mark.usefixtures("two_threads")

OWNED = {"owned": True, "accelerate": True, "channels_last": True}
ROWS = 2 * LEAST_ROWS


class Net(nn.Module):
    """Convolutions wide enough that crops and folding are worth their while; says which threads ran it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.second, self.head = nn.Conv2d(12, 12, 3, stride=2, padding=1), nn.Linear(12, 5)
        self.passes: list[tuple[str, int, int]] = []  # thread, number of threads, rows
        self.most = 1000

    def __deepcopy__(self, memo: dict[int, Any]) -> Net:
        other = Net()
        other.passes = self.passes  # of all copies
        for name, module in self.named_children():
            own = getattr(other, name)
            own._parameters = {k: memo.get(id(p), p) for k, p in module._parameters.items()}
            own._buffers = {k: memo.get(id(b), b) for k, b in module._buffers.items()}
        other.most = self.most
        return other.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.passes.append((threading.current_thread().name, torch.get_num_threads(), len(x)))
        return self.head(self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    net.norm.running_mean.uniform_(-0.2, 0.2)
    net.norm.running_var.uniform_(0.5, 1.5)
    return net


def network_of(net: Net, **changed: Any) -> Network:
    return Network(net, **{**OWNED, **changed})


def lanes_of(net: Net) -> set[str]:
    return {name.split("_")[0] for name, _, _ in net.passes}


@pytest.mark.accelerated
def test_scores_of_many_are_those_of_the_parts_on_one_thread_each(net: Net) -> None:
    network, x = network_of(net), torch.randn(ROWS + 1, 3, 32, 32)
    torch.set_num_threads(1)
    with network.session():
        wanted = torch.cat([network.scores_of(part) for part in x.chunk(2)])
    torch.set_num_threads(2)
    with network.session():
        network.scores_of_many(x)
        net.passes.clear()
        result = network.scores_of_many(x)
    assert torch.equal(result, wanted) and not result.requires_grad
    assert sorted(rows for _, _, rows in net.passes) == [LEAST_ROWS, LEAST_ROWS + 1]
    assert lanes_of(net) == {"MainThread", "visx-lane"} and {n for _, n, _ in net.passes} == {1}
    assert torch.get_num_threads() == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("visx-lane")]


def test_two_parts_are_at_work_at_once(net: Net) -> None:
    both = threading.Barrier(2, timeout=60)

    def work(lane: int, part: slice) -> Tensor:
        both.wait()
        return torch.arange(10)[part] + lane

    assert side_by_side([0, 100], 10, work).tolist() == [*range(5), *range(105, 110)]
    assert side_by_side([0, 100], 1, lambda lane, part: torch.arange(1)[part] + lane).tolist() == [0]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    "why", ["few rows", "one thread", "a single pass", "handed in", "plain", "hooks", "switched off"]
)
def test_where_there_are_no_lanes(net: Net, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = {"handed in": {"owned": False}, "plain": {"accelerate": False}}
    network = network_of(net, **changed.get(why, {}))
    if why == "one thread":
        torch.set_num_threads(1)
    if why == "hooks":
        net.second.register_forward_hook(lambda module, args, output: None)
    if why == "switched off":
        monkeypatch.setenv("VISX_PLAIN", "1")
    with network.session():
        x = torch.randn(ROWS - (why == "few rows"), 3, 32, 32)
        _ = network.scores_of(x) if why == "a single pass" else network.scores_of_many(x)
    assert lanes_of(net) == {"MainThread"}


@pytest.mark.accelerated
def test_copies_of_which_a_box_is_hidden(net: Net) -> None:
    """A lane's crops go through its own twin; the cut is the network's."""
    network = network_of(net)
    torch.manual_seed(1)
    image, fill = torch.randn(3, 96, 96), torch.zeros(3, 96, 96)
    boxes = [(n, n, n + 8, n + 8) for n in range(0, 72, 6)]
    scores = column_scores(torch.tensor([[3, 0]]))

    def scored() -> Tensor:
        patched = network.patched(image, boxes)
        assert patched is not None, "crops are worth their while"
        scorer = Scorer(network.scores_of, BatchSize(len(boxes)), network.layout, lambda *_: patched)
        return scorer.patched_scores(image, fill, boxes, scores)

    with network.session():
        torch.set_num_threads(1)
        wanted = scored()
        torch.set_num_threads(2)
        scored()
        net.passes.clear()
        result = scored()
    assert "visx-lane" in lanes_of(net)
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-5 * float(wanted.max() - wanted.min()))


@pytest.mark.accelerated
def test_memory_that_runs_out_in_a_lane_halves_the_batch(net: Net) -> None:
    network, messages = network_of(net), list[str]()
    x = torch.randn(4 * ROWS, 3, 32, 32)
    scorer = Scorer(network.scores_of_many, BatchSize(4 * ROWS, messages.append))
    scores = column_scores(torch.tensor([[1]]))
    with network.session():
        wanted = scorer.scores(len(x), lambda start, stop: x[start:stop], scores)
        for lane in network.fast._twins:
            lane.module.most = ROWS  # type: ignore[assignment]
        result = scorer.scores(len(x), lambda start, stop: x[start:stop], scores)
    assert messages == [f"out of memory: going on with batches of {2 * ROWS}"]
    torch.testing.assert_close(result, wanted)


def test_an_interrupt_waits_for_the_part_that_has_begun(net: Net) -> None:
    done = threading.Event()

    def work(lane: int, part: slice) -> Tensor:
        if lane == 0:
            raise KeyboardInterrupt
        time.sleep(0.2)
        done.set()
        return torch.zeros(1)

    with pytest.raises(KeyboardInterrupt):
        side_by_side([0, 1], 4, work)
    assert done.is_set() and torch.get_num_threads() == 2
    assert not [t for t in threading.enumerate() if t.name.startswith("visx-lane")]


def test_a_twin_shares_the_parameters_and_nothing_else() -> None:
    mine = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), **OWNED, outputs=lambda: LOGITS)
    other = twin(mine)
    assert [id(v) for v in other.module.state_dict(keep_vars=True).values()] == [
        id(v) for v in mine.module.state_dict(keep_vars=True).values()
    ]
    assert not set(map(id, mine.module.modules())) & set(map(id, other.module.modules()))
    assert (other.owned, other.channels_last, other.outputs) == (True, True, LOGITS)


def test_results_of_batches_that_finished_before_an_error_are_handed_back() -> None:
    """Batches that were through when another one raised are not lost, and those that were not begun are not waited for."""
    done = threading.Event()

    def work(lane: str, batch: int) -> Iterator[int]:
        if batch == 1:
            done.wait(timeout=60)
            raise VisxError("no")
        if batch == 2:
            done.set()
            time.sleep(0.1)
        yield batch

    lanes: Lanes[str, int, int] = Lanes(["a", "b"])
    taken: list[int] = []
    with pytest.raises(VisxError, match="no"), lanes:
        for results in lanes.each(range(9), work):
            taken += results
    assert taken == [0]
    assert lanes.unseen()[0] == 2, "it was waited for"
    assert len(lanes.unseen()) <= 2
    assert threads_of(2) == 1
