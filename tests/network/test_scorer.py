"""The scorer: batches, several targets at once, and memory that runs out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oracles import column_scores
from visx.errors import VisxError
from visx.network.memory import BatchSize, out_of_memory
from visx.network.network import Network
from visx.network.scorer import Scorer, Scores


class Linear:
    """(N, 3, 4, 4) -> 5 logits; counts its passes and runs out of memory above `limit` copies."""

    def __init__(self, limit: int | None = None) -> None:
        self.weight = torch.randn(5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        self.limit, self.sizes = limit, []

    def __call__(self, x: Tensor) -> Tensor:
        if self.limit is not None and len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.sizes.append(len(x))
        return x.flatten(1) @ self.weight.T


def scores_of(*ids: int, kind: str = "logit") -> Scores:
    return column_scores(torch.tensor([ids]), kind)


def copy_number(start: int, stop: int) -> Tensor:
    make = [
        torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        for i in range(start, stop)
    ]
    return torch.stack(make)


def test_scores_are_those_of_one_big_pass_whatever_the_batch():
    net, ids = Linear(), [3, 0]
    whole = net(copy_number(0, 37))
    for size in (1, 5, 16, 37, 100):
        got = Scorer(net, BatchSize(size)).scores(37, copy_number, scores_of(*ids))
        torch.testing.assert_close(got, whole[:, [3, 0]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["logit", "prob", "logprob"])
def test_each_kind_of_score(kind):
    net, ids = Linear(), [4, 1]
    logits = net(copy_number(0, 6))
    exponents = logits.exp()
    want = {"logit": logits, "prob": exponents / exponents.sum(1, keepdim=True)}
    want["logprob"] = want["prob"].log()
    torch.testing.assert_close(
        Scorer(net, BatchSize(4)).scores(6, copy_number, scores_of(*ids, kind=kind)), want[kind][:, [4, 1]]
    )


def test_several_targets_cost_the_passes_of_one_and_no_batch_is_larger_than_asked():
    one, three = Linear(), Linear()
    Scorer(one, BatchSize(8)).scores(20, copy_number, scores_of(2, kind="prob"))
    Scorer(three, BatchSize(8)).scores(20, copy_number, scores_of(2, 0, 1, kind="prob"))
    assert one.sizes == three.sizes == [8, 8, 4]


def test_out_of_memory_halves_the_batch_says_so_once_a_halving_and_changes_no_score():
    ids, said, made = [1], [], []

    def copies(start: int, stop: int) -> Tensor:
        made.append((start, stop))
        return copy_number(start, stop)

    net = Linear(limit=5)
    scorer = Scorer(net, BatchSize(16, said.append))
    got = scorer.scores(23, copies, scores_of(*ids))
    torch.testing.assert_close(got, Linear()(copy_number(0, 23))[:, [1]])
    assert said == [f"out of memory: going on with batches of {n}" for n in (8, 4)]
    assert made[:3] == [(0, 16), (0, 8), (0, 4)] and net.sizes == [4] * 5 + [3]
    scorer.scores(5, copies, scores_of(*ids))
    assert len(said) == 2 and net.sizes[6:] == [4, 1], "the smaller batch is kept"


def test_a_small_last_piece_halves_from_its_own_size():
    said: list[str] = []
    Scorer(Linear(limit=2), BatchSize(100, said.append)).scores(7, copy_number, scores_of(0))
    assert said == ["out of memory: going on with batches of 3", "out of memory: going on with batches of 1"]


def test_out_of_memory_with_one_copy_is_explained():
    with pytest.raises(VisxError, match="single copy"):
        Scorer(Linear(limit=0), BatchSize(4)).scores(3, copy_number, scores_of(0))


def test_other_errors_pass():
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="multiplied"):
        Scorer(broken, BatchSize(4)).scores(3, copy_number, scores_of(0))


def test_what_counts_as_out_of_memory():
    assert out_of_memory(MemoryError()) and out_of_memory(torch.OutOfMemoryError("x"))
    assert out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not out_of_memory(RuntimeError("shape mismatch")) and not out_of_memory(ValueError("out of memory"))


def test_progress_counts_every_copy_once_retries_aside():
    told: list[tuple[int, int]] = []
    scorer = Scorer(Linear(limit=4), BatchSize(8, on_progress=lambda done, count: told.append((done, count))))
    scorer.scores(11, copy_number, scores_of(0))
    assert told == [(4, 11), (8, 11), (11, 11)]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("count", [1, 3])
def test_copies_are_ones_own_and_in_the_layout_asked_for(layout, count):
    image = copy_number(0, 1)[0]
    for source in (
        image,
        image.contiguous().permute(1, 2, 0).contiguous().permute(2, 0, 1),
        image[:, :1].expand_as(image),
    ):
        before = source.clone()
        copies = Scorer(Linear(), layout=layout).copies(source, count)
        assert copies.shape == (count, 3, 4, 4) and copies.is_contiguous(memory_format=layout)
        assert (copies == before).all()
        copies.zero_()
        assert torch.equal(source, before)


@pytest.mark.parametrize("last", [False, True])
def test_a_network_brings_every_image_into_its_own_layout(last):
    network = Network(torch.nn.Linear(3, 2).double(), channels_last=last)
    for layout in (torch.contiguous_format, torch.channels_last):
        prepared = network.prepare(copy_number(0, 2).contiguous(memory_format=layout))
        assert prepared.is_contiguous(memory_format=network.layout)
    assert network.layout == (torch.channels_last if last else torch.contiguous_format)
