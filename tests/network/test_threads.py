"""A model shared by threads: results are those of one after the other, bit for bit, and modules and settings are left as they were."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import visx
from oracles import assert_unchanged, fingerprint
from visx.network.isolation import undisturbed

SIZE = 24
METHODS: dict[str, dict[str, Any]] = {
    "backprop": {},
    "guided_backprop": {},
    "gradcam": {},
    "rise": {"masks": 8},
    "occlusion": {"patch": 8, "stride": 8},
}


@pytest.fixture(autouse=True)
def one_thread_a_pass() -> Iterator[None]:
    """Bits depend on the number of threads, which threads of one's own need not inherit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).double()  # fmt: skip


def wrapped(module: nn.Module) -> visx.Model:
    return visx.wrap(module, size=SIZE, resize=SIZE)


def pictures(count: int = 2) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(count)]


def explained(model: Any, method: str, picture: Image.Image) -> np.ndarray:
    torch.set_num_threads(1)
    return visx.explain(model, picture, method=method, target=1, **METHODS[method]).map


def in_threads(tasks: list[Callable[[], Any]]) -> list[Any]:
    """The results of tasks that four threads begin at the same moment."""
    together = threading.Barrier(4)

    def run(task: Callable[[], Any]) -> Any:
        return task()

    with ThreadPoolExecutor(4, initializer=together.wait) as pool:
        return list(pool.map(run, tasks))


class Sharing(nn.Module):
    """A head of its own on somebody else's features."""

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, nn.Linear(4, 3).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


class Tied(nn.Module):
    """Nothing but a parameter and a buffer are somebody else's."""

    def __init__(self, other: nn.Sequential) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 2).double(), nn.BatchNorm2d(8).double()
        self.conv.weight, self.norm.running_mean = other[0].weight, other[1].running_mean
        self.relu, self.head = nn.ReLU(), nn.Linear(8, 4).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.relu(self.norm(self.conv(x))).mean((2, 3)))


def one_model() -> list[Any]:
    return [wrapped(net())]


def one_module() -> list[Any]:
    return [net()]


def two_models_of_one_module() -> list[Any]:
    module = net()
    return [wrapped(module), wrapped(module)]


def a_shared_submodule() -> list[Any]:
    module = net()
    return [wrapped(module), wrapped(Sharing(module))]


def a_shared_parameter_and_buffer() -> list[Any]:
    module = net()
    return [wrapped(module), wrapped(Tied(module))]


def strangers() -> list[Any]:
    return [wrapped(net(0)), wrapped(net(1))]


KINDS = [
    one_model,
    one_module,
    two_models_of_one_module,
    a_shared_submodule,
    a_shared_parameter_and_buffer,
    strangers,
]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_four_threads_give_what_one_gives(make: Callable[[], list[Any]], training: bool) -> None:
    torch.manual_seed(3)
    models = make()
    modules = [m.module if isinstance(m, visx.Model) else m for m in models]
    for module in modules:
        module.train(training)
    if isinstance(models[0], nn.Module):  # a bare module has ImageNet's size, which costs
        cases = [(0, method, p) for method in ("backprop", "gradcam", "guided_backprop") for p in pictures()]
    else:
        cases = [(i, method, p) for method in METHODS for p in pictures() for i in range(len(models))]
    serial = [explained(copy.deepcopy(models[i]), method, picture) for i, method, picture in cases]
    before = [fingerprint(module) for module in modules]
    tasks = [lambda c=c: explained(models[c[0]], c[1], c[2]) for c in cases] * 2
    for got, wanted in zip(in_threads(tasks), serial * 2, strict=True):
        np.testing.assert_array_equal(got, wanted)
    for module, was in zip(modules, before, strict=True):
        assert_unchanged(was, fingerprint(module))


def test_half_precision_is_copied_once_and_between_sessions() -> None:
    """A copy that is made while another thread's hook is on the module would keep it."""
    model = wrapped(net().float().train())
    wanted = explained(copy.deepcopy(model), "gradcam", pictures()[0])

    def task(precision: str) -> np.ndarray:
        return visx.explain(model, pictures()[0], layer="4", target=1, precision=precision).map

    half = visx.explain(copy.deepcopy(model), pictures()[0], layer="4", target=1, precision="bf16").map
    got = in_threads([lambda p=p: task(p) for p in ("fp32", "bf16") * 4])
    assert wanted.shape == half.shape
    for i in range(1, 8, 2):
        np.testing.assert_array_equal(got[i], half)
    assert len(model._networks) == 2


def test_settings_and_random_states_come_back_from_overlapping_sessions() -> None:
    """Two modules, two threads: the second session begins inside the first and ends after it."""
    modules = [net(0), net(1)]
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    seen = []

    def one() -> None:
        with undisturbed(modules[0]):
            first_in.set()
            second_in.wait(10)
            torch.rand(3)
        first_out.set()

    def two() -> None:
        first_in.wait(10)
        with undisturbed(modules[1]):
            second_in.set()
            first_out.wait(10)
            seen.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32))
            random.random(), np.random.rand(), torch.rand(1)

    torch.backends.cudnn.benchmark = True
    try:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(5)
        wanted = random.random(), np.random.rand(), float(torch.rand(1))
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(5)
        threads = [threading.Thread(target=task) for task in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [(False, False)]  # the first one's end did not restore the second one's settings
        assert torch.backends.cudnn.benchmark and torch.backends.cudnn.allow_tf32
        assert (random.random(), np.random.rand(), float(torch.rand(1))) == wanted
    finally:
        torch.backends.cudnn.benchmark = False


def test_an_abandoned_session_ends_with_its_last_reference() -> None:
    module = net().train()

    def left_open() -> Iterator[int]:
        with undisturbed(module):
            yield 1
            yield 2

    generator = left_open()
    next(generator)
    assert not module.training
    del generator
    gc.collect()
    assert module.training
    with ThreadPoolExecutor(1) as pool:  # another thread need not wait
        assert pool.submit(explained, wrapped(module), "backprop", pictures()[0]).result(30).shape == (SIZE, SIZE)


def test_sessions_of_one_thread_nest_and_may_end_in_any_order() -> None:
    module = net().train()
    outer, inner = undisturbed(module), undisturbed(module[:3])
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert not module[1].training and not module[0].weight.requires_grad  # the inner one still needs them
    assert module[3].training and module[4].weight.requires_grad
    inner.__exit__(None, None, None)
    assert all(m.training for m in module.modules()) and all(p.requires_grad for p in module.parameters())


def test_a_failed_session_lets_the_others_in() -> None:
    module = net()

    def fail() -> None:
        with undisturbed(module):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fail()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(explained, wrapped(module), "backprop", pictures()[0]).result(30).any()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_child_does_not_wait_for_its_parent_s_threads() -> None:
    module = net().train()
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with undisturbed(module):
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    child = os.fork()
    if not child:
        signal.alarm(60)  # ends a child that waits for good
        fine = module.training and module[0].weight.requires_grad
        with undisturbed(module):
            fine = fine and not module.training
        os._exit(0 if fine and module.training else 1)
    _, status = os.waitpid(child, 0)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0


def test_coroutines_may_share_a_model() -> None:
    model = wrapped(net().train())
    wanted = {m: explained(copy.deepcopy(model), m, pictures()[0]) for m in METHODS}

    async def main() -> list[np.ndarray]:
        return await asyncio.gather(*(asyncio.to_thread(explained, model, m, pictures()[0]) for m in METHODS))

    for method, got in zip(METHODS, asyncio.run(main()), strict=True):
        np.testing.assert_array_equal(got, wanted[method])


def test_a_used_module_can_be_copied_and_pickled() -> None:
    module = net()
    explained(wrapped(module), "gradcam", pictures()[0])
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert not [name for name in vars(other) if "visx" in name]
        np.testing.assert_array_equal(
            explained(wrapped(other), "backprop", pictures()[0]), explained(wrapped(module), "backprop", pictures()[0])
        )
