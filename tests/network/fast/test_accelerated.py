"""The face of all that exists for speed: modules that are handed in, `VISX_PLAIN=1`, and what is remembered."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visx
from normed import settled
from oracles import CHEAP, column_scores
from visx.methods import get_method
from visx.methods.contract import Method
from visx.network import tail
from visx.network.behaviour import Behaviour
from visx.network.fast import accelerated, crops, fold
from visx.network.network import Network

SIZE = 48
IMAGE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


class Net(nn.Module):
    """Convolution, norm and ReLU twice, each map flattened by what `flat` does; large enough in front for crops to pay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.relu, self.pool, self.fc = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.flat(self.pool(self.behind(F.relu(self.bn2(self.conv2(x)))))))

    def behind(self, x: Tensor) -> Tensor:
        return x

    def flat(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def bright(x: Tensor) -> bool:
    return bool(x.mean() > 0.4)


class Viewing(Net):
    """Bears the plain layout only."""

    def behind(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1).view(x.shape)


class ViewingBright(Net):
    def behind(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1).view(x.shape) if bright(x) else x


class Chaotic(Net):
    """Makes much of rounding in bright pictures."""

    def behind(self, x: Tensor) -> Tensor:
        return (x * 1e6) % 1 if bright(x) else x


def build(kind: type[Net] = Net, dtype: torch.dtype = torch.float32) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = settled(kind()).to(dtype)
    net.fc.weight.mul_(10)
    return net  # type: ignore[return-value]


def pictures(count: int = 3, more: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, dtype=dtype, generator=torch.Generator().manual_seed(1)) + more


class Norms(torch.overrides.TorchFunctionMode):
    """Counts normalisations that run, and convolutions in the channels-last layout; inner modes swallow the others."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.norms += func is F.batch_norm
        return func(*args, **(kwargs or {}))


def norms(network: Network, x: Tensor) -> int:
    with Norms() as count, network.session():
        network.scores_of(x)
    return count.norms


def close(found: Tensor, wanted: Tensor) -> None:
    scale = 1e-5 if wanted.dtype == torch.float32 else 1e-10
    torch.testing.assert_close(found, wanted, rtol=0, atol=scale * float(wanted.max() - wanted.min()))


@pytest.mark.accelerated
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [Net, Viewing])
def test_a_module_that_is_handed_in_runs_folded_in_the_layout_that_it_bears(kind: type[Net], dtype: torch.dtype):
    net, x = build(kind, dtype), pictures(dtype=dtype)
    network = Network(net, accelerate=True)
    with network.session():
        close(network.scores_of(x), net(x))
    assert norms(network, x) == 0 and norms(Network(net), x) == 2
    assert network.fast._layout == (torch.contiguous_format if kind is Viewing else torch.channels_last)
    with network.session():
        close(network.scores_of(x), net(x))


@pytest.mark.accelerated
def test_single_gradients_of_a_module_that_is_handed_in_are_its_own():
    net, x, maps = build(), pictures(), []
    scores = column_scores(torch.zeros(len(x), 1, dtype=torch.int64))
    for accelerate in (True, False):
        network = Network(net, accelerate=accelerate)
        with network.session():
            network.scores_of(x)
            maps.append(network.input_gradients(x, scores).grads)
            maps.append(network.layer_gradients(x, "bn2", scores).grads)
    assert maps[0].any() and torch.equal(maps[0], maps[2]) and torch.equal(maps[1], maps[3])


REFUSED: dict[str, Callable[[Net], Network]] = {
    "a hook": lambda net: (net.conv1.register_forward_hook(lambda *_: None), Network(net, accelerate=True))[1],
    "random": lambda net: Network(net, accelerate=True, behaviour=lambda: Behaviour(random=True, one_row=True)),
    "changing": lambda net: Network(net, accelerate=True, behaviour=lambda: Behaviour(changing=True)),
    "half": lambda net: Network(net.to(torch.bfloat16), accelerate=True),
    "not wanted": lambda net: Network(net),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_module_of_which_too_little_is_known_runs_as_it_is(why: str):
    network, x = REFUSED[why](build()), pictures()
    assert norms(network, x) == 2 * (len(x) if why == "random" else 1)
    with network.session():
        assert network.patched(x[0], [(0, 0, 5, 5), (9, 9, 14, 14)]) is None
        assert torch.equal(network.scores_of(x), network.logits(x).float().detach())


def test_scores_that_disagree_on_the_picture_itself_are_never_folded():
    net, dark, light = build(Chaotic), pictures(), pictures(more=10.0)
    network = Network(net, accelerate=True)
    with network.session():
        for x in (light, dark, light):
            assert torch.equal(network.scores_of(x), net(x))
    assert norms(network, dark) == 2


def test_a_pass_that_fails_only_when_it_is_accelerated_is_made_again_without():
    net = build(ViewingBright)
    network, dark, light = Network(net, accelerate=True), pictures(), pictures(more=10.0)
    with network.session():
        close(network.scores_of(dark), net(dark))
        assert torch.equal(network.scores_of(light), net(light))
        close(network.scores_of(dark), net(dark))


def test_out_of_memory_is_told_and_not_taken_for_a_layout_that_it_does_not_bear(monkeypatch: pytest.MonkeyPatch):
    network, x = Network(build(), accelerate=True), pictures()
    with network.session():
        network.scores_of(x)
        passes: list[int] = []

        def full(*args: Any) -> None:
            passes.append(1)
            raise torch.OutOfMemoryError("out of memory")

        monkeypatch.setattr(Network, "run", full)
        with pytest.raises(torch.OutOfMemoryError):
            network.scores_of(x)
    assert len(passes) == 1


@pytest.mark.accelerated
def test_each_version_of_the_values_is_confirmed_once(monkeypatch: pytest.MonkeyPatch):
    net, x, asked = build(), pictures(), []
    agree = accelerated.agree
    monkeypatch.setattr(accelerated, "agree", lambda *args: asked.append(1) or agree(*args))
    network = Network(net, accelerate=True)
    with network.session():
        for edits in (1, 2):
            for _ in range(2):
                close(network.scores_of(x), net(x))
            assert len(asked) == edits
            net.bn1.running_var.mul_(2.0)


@pytest.mark.accelerated
def test_a_crop_of_a_module_that_is_handed_in_is_tried_on_the_picture_itself(monkeypatch: pytest.MonkeyPatch):
    net, x, tried = build(), pictures(), []
    boxes = [(0, 0, 6, 6), (20, 20, 26, 26), (42, 42, 48, 48)]
    same = accelerated.same_scores
    monkeypatch.setattr(accelerated, "same_scores", lambda *args: tried.append(args[2]) or same(*args))
    network, fill = Network(net, accelerate=True), pictures(1)[0]
    with network.session():
        way = network.patched(x[0], boxes)
        assert way is not None and torch.equal(tried[0], x[0])
        wholes = x[0].expand(3, -1, -1, -1).clone()
        for whole, (top, left, bottom, right) in zip(wholes, boxes, strict=True):
            whole[:, top:bottom, left:right] = fill[:, top:bottom, left:right]
        close(way.logits(fill, boxes), net(wholes))
        network.patched(x[1], boxes)
        assert len(tried) == 1
    monkeypatch.setattr(accelerated, "same_scores", lambda *args: False)
    other = Network(net, accelerate=True)
    with other.session():
        assert other.patched(x[0], boxes) is None


@pytest.mark.accelerated
def test_nothing_of_a_picture_and_no_module_outlives_its_network():
    net, x = build(), pictures()
    network = Network(net, accelerate=True)
    with network.session():
        network.scores_of(x)
        assert network.patched(x[0], [(0, 0, 6, 6), (20, 20, 26, 26)]) is not None
    refs = [weakref.ref(x), weakref.ref(net), weakref.ref(network.fast)]
    del net, x, network
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def test_nobody_outside_imports_what_lies_behind_the_face():
    house = Path(visx.__file__).parent
    outside = [f for f in house.rglob("*.py") if (house / "network" / "fast") not in f.parents]
    assert not [
        file for file in outside if re.search(r"^ *(from|import) visx\.network\.fast\.", file.read_text("utf-8"), re.M)
    ]


def asked_for(model: visx.Model, method: str) -> np.ndarray:
    params = CHEAP.get(method, {})
    layer = "bn2" if "layer" in get_method(method).needs else None
    return visx.explain(model, IMAGE, method, target=3, layer=layer, score="logit", **params).map.astype(float)


PLAIN_ALONE = ("cam", "libragrad", "attnlrp")  # methods that have no faster way


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what only the faster ways call, as it is called."""
    seen: list[str] = []
    for module, name in (
        (accelerated, "fold"), (accelerated, "learn"), (accelerated, "AsWritten"), (crops.Plan, "crops"),
        (fold, "packed"), (fold, "pointwise"), (tail, "Replay"),
    ):  # fmt: skip
        real = getattr(module, name)

        def called(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
            seen.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, called)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_visx_plain_turns_every_faster_way_off_and_maps_stay(
    cnn_method: Method, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    if cnn_method.name == "lime" and dtype == torch.float32:
        pytest.skip("a surrogate's coefficients move by more than the scores that it is fitted to")
    maps, seen = {}, spied(monkeypatch)
    for setting in ("0", "1"):
        monkeypatch.setenv("VISX_PLAIN", setting)
        seen.clear()
        model = visx.wrap(build(dtype=dtype), size=SIZE, resize=SIZE)
        model.owned = True
        maps[setting] = asked_for(model, cnn_method.name)
        assert bool(seen) == (setting == "0" and cnn_method.name not in PLAIN_ALONE), seen
    scale = maps["1"].max() - maps["1"].min()
    rounding = 1e-9 if dtype == torch.float64 else 1e-4  # what a difference of two scores has left of its digits
    assert scale > 0 and np.abs(maps["0"] - maps["1"]).max() <= rounding * scale


def test_visx_plain_is_heeded_between_two_calls(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("VISX_PLAIN", raising=False)
    network, x = Network(build(), owned=True, accelerate=True), pictures()
    assert norms(network, x) == 2 and norms(network, x) == 0, "learnt, then folded"
    monkeypatch.setenv("VISX_PLAIN", "1")
    assert norms(network, x) == 2
    monkeypatch.setenv("VISX_PLAIN", "0")
    assert norms(network, x) == 0


@pytest.mark.accelerated
def test_wrap_takes_acceleration_back(monkeypatch: pytest.MonkeyPatch):
    seen = spied(monkeypatch)
    for accelerate in (False, True):
        asked_for(visx.wrap(build(), size=SIZE, resize=SIZE, accelerate=accelerate), "occlusion")
        assert bool(seen) == accelerate
