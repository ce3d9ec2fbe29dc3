"""Networks whose output depends on more than the picture: noticed, run one row a pass, said, and left as they were."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import visx
from in_process import visx as command
from oracles import fingerprint
from visx.images.decode import as_picture
from visx.methods.contract import Method
from visx.network import behaviour as behaviours
from visx.network.behaviour import Behaviour, observe
from visx.network.network import Network
from visx.network.settings import seed_all
from visx.seeds import image_seed

SIZE = 16
CHEAP: dict[str, dict[str, Any]] = {
    "rise": {"masks": 6, "cells": 3},
    "occlusion": {"patch": 8, "stride": 8},
    "lime": {"samples": 12, "segments": 4},
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 3},
    "meaningful_perturbation": {"iterations": 2, "mask_size": 4},
}


class Net(nn.Module):
    """Features (B, 8, 6, 6), pooled, changed, and a linear head, in float64."""

    def __init__(self, change: Callable[[Net, Tensor], Tensor] = lambda net, pooled: pooled) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.pool, self.head, self.change = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4), change
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.change(self, self.pool(self.features(x)).flatten(1)))


class Answering(Net):
    """Logits (B, 4), in the form that `answer` gives them."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(super().forward(x))


def batch_norm(**options: Any) -> Net:
    net = Net()
    net.features[1] = nn.BatchNorm2d(8, **options).double()
    return net


def extended(change: Callable[[Any, Tensor], Tensor], **parts: Any) -> Net:
    net = Net(change)
    for name, part in parts.items():
        setattr(net, name, part.double() if isinstance(part, nn.Module) else part)
    return net


def counted(net: Any, x: Tensor) -> Tensor:
    net.calls += 1
    return x * net.calls


def moving(net: Any, x: Tensor) -> Tensor:
    net.mean.mul_(0.9).add_(x.detach()[-1].mean() * 0.1)
    return x - net.mean


def remembered(net: Any, x: Tensor) -> Tensor:
    net.seen.append(x.detach())
    return x * len(net.seen)


def kept(net: Any, x: Tensor) -> Tensor:
    net.last = x
    net.history.append(x.shape)
    net.count.add_(1)
    return x


def with_buffer(change: Callable[[Any, Tensor], Tensor], **parts: Any) -> Net:
    net = extended(change, **parts)
    net.register_buffer("mean", torch.zeros((), dtype=torch.float64))
    net.register_buffer("count", torch.zeros((), dtype=torch.int64))
    return net


def one_by_one(net: Net, x: Tensor) -> Tensor:
    if len(x) != 1:
        raise ValueError("one picture, please")
    return x


class Fake(nn.Module):
    """Quantisation-aware training: observers see every pass, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

        self.net = Net().float()
        self.net.change = self.quantise
        self.fake = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255)

    def quantise(self, net: Net, x: Tensor) -> Tensor:
        return self.fake(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


noise = np.random.default_rng(0)
RANDOM: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: Net(lambda net, x: F.dropout(x, 0.5)),
    "randn": lambda: Net(lambda net, x: x + 0.01 * torch.randn(x.shape)),
    "randn_like": lambda: Net(lambda net, x: x * (1 + torch.randn_like(x))),
    "numpy": lambda: Net(lambda net, x: x * np.random.rand()),
    "python": lambda: Net(lambda net, x: x + random.random()),
    "tiny": lambda: Net(lambda net, x: x + 1e-9 * torch.rand(1)),
    "only_for_bright_pictures": lambda: Net(lambda net, x: x + torch.rand_like(x) * (x.mean() > 1e3)),
    "pooling": lambda: Net(
        lambda net, x: F.fractional_max_pool2d(x.view(-1, 8, 1, 1).expand(-1, 8, 4, 4) * 1.0, 2, 2).mean((2, 3))
    ),
}
OWN_GENERATOR: dict[str, Callable[[], nn.Module]] = {
    "torch": lambda: extended(
        lambda net, x: x + torch.rand(x.shape[1], generator=net.own), own=torch.Generator().manual_seed(3)
    ),
    "numpy": lambda: extended(lambda net, x: x * net.own.random(), own=np.random.default_rng(3)),
    "older_numpy": lambda: extended(lambda net, x: x * net.own.rand(), own=np.random.RandomState(3)),
    "python": lambda: extended(lambda net, x: x * net.own.random(), own=random.Random(3)),
}
COUPLED: dict[str, Callable[[], nn.Module]] = {
    "no_running_statistics": lambda: batch_norm(track_running_stats=False),
    "functional": lambda: Net(lambda net, x: x + F.batch_norm(x.view(-1, 2, 4), None, None, training=True).view(-1, 8)),
    "its_size_alone": lambda: Net(lambda net, x: x / len(x)),
    "a_case_of_its_own": lambda: Net(lambda net, x: x if len(x) == 1 else 2 * x),
    "attention": lambda: extended(
        lambda net, x: net.attention(x[:, None], x[:, None], x[:, None])[0][:, 0], attention=nn.MultiheadAttention(8, 2)
    ),
    "over_the_batch": lambda: Net(lambda net, x: x - x.mean(0, keepdim=True) * 0.5),
    "softmax": lambda: Net(lambda net, x: x * x.softmax(0)),
    "largest": lambda: Net(lambda net, x: x / x.max().detach()),
    "minibatch_deviation": lambda: Net(lambda net, x: x + 1e-7 * x.std(0, correction=0).mean()),
    "recurrent": lambda: extended(lambda net, x: net.lstm(x)[0], lstm=nn.LSTM(8, 8)),
    "cumulative": lambda: Net(lambda net, x: x.cumsum(0)),
}  # fmt: skip
STATEFUL: dict[str, Callable[[], nn.Module]] = {
    "counter": lambda: extended(counted, calls=0),
    "buffer": lambda: with_buffer(moving),
    "list": lambda: extended(remembered, seen=[]),
    **{f"own_{name}": make for name, make in OWN_GENERATOR.items()},
}
SINGLE: dict[str, Callable[[], nn.Module]] = {
    "raises": lambda: Net(one_by_one),
    "view": lambda: Net(lambda net, x: x.view(1, 8, -1).mean(2)),
    "first": lambda: Net(lambda net, x: x[:1]),
}
OTHERWISE = {**{f"random_{k}": v for k, v in RANDOM.items()}, **{f"coupled_{k}": v for k, v in COUPLED.items()},
             **{f"stateful_{k}": v for k, v in STATEFUL.items()}, **{f"single_{k}": v for k, v in SINGLE.items()},
             "fake_quantised": Fake}  # fmt: skip
PLAIN: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "float32": lambda: Net().float(),
    "channels_last": lambda: Net().float().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "nan": lambda: Net(lambda net, x: x * torch.nan),
    "some_nan": lambda: Net(lambda net, x: x.sqrt() + (-x).sqrt()),
    "constant": lambda: Net(lambda net, x: x * 0),
    "dropout_in_eval_mode": lambda: extended(lambda net, x: net.drop(x), drop=nn.Dropout(0.5)),
    "attention_over_tokens": lambda: extended(
        lambda net, x: net.attention(x[:, None], x[:, None], x[:, None])[0][:, 0],
        attention=nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "statistics_of_the_picture": lambda: Net(lambda net, x: F.layer_norm(x, (8,))),
    "one_logit_squeezed": lambda: Answering(lambda z: z[:, :1].sigmoid().squeeze()),
    "a_member_of_one_row": lambda: Answering(lambda z: {"logits": z, "prototypes": torch.ones(1, 7, 3)}),
}


def wrapped(module: nn.Module) -> visx.Model:
    return visx.wrap(module, size=SIZE, resize=SIZE)


def pictures(count: int = 3) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(count)]


def behaviour(module: nn.Module) -> Behaviour:
    model = wrapped(module)
    _ = model.anatomy
    return model.network().behaviour


def explained(model: visx.Model, images: Any, method: str, **more: Any) -> Any:
    return visx.explain(model, images, method=method, target=1, **CHEAP.get(method, {}), **more)


@pytest.mark.parametrize("kind", RANDOM)
def test_random_numbers_are_noticed(kind: str) -> None:
    assert behaviour(RANDOM[kind]()) == Behaviour(random=True, one_row=True)


@pytest.mark.parametrize("kind", COUPLED)
def test_coupling_across_the_batch_is_noticed(kind: str) -> None:
    assert behaviour(COUPLED[kind]()) == Behaviour(coupled=True, one_row=True)


@pytest.mark.parametrize("kind", STATEFUL)
def test_state_that_passes_change_is_noticed(kind: str) -> None:
    assert behaviour(STATEFUL[kind]()) == Behaviour(stateful=True, changing=True, one_row=True)


@pytest.mark.parametrize("kind", SINGLE)
def test_a_batch_of_one_is_noticed(kind: str) -> None:
    assert behaviour(SINGLE[kind]()) == Behaviour(single=True, one_row=True)


def test_observers_are_noticed() -> None:
    found = behaviour(Fake())
    assert found.changing and found.coupled and found.stateful


def test_a_source_of_noise_that_nobody_can_seed_is_said() -> None:
    found = behaviour(Net(lambda net, x: x + noise.random()))
    assert found.unrepeatable and found.one_row and not found.stateful
    assert "so will two maps" in found.warnings()[0]


@pytest.mark.parametrize("kind", PLAIN)
def test_rounding_and_odd_values_are_nothing(kind: str) -> None:
    assert behaviour(PLAIN[kind]()) == Behaviour()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "densenet121"])
def test_real_networks_are_plain(name: str) -> None:
    from torchvision import models

    module = models.get_model(name, weights=None, num_classes=5).to(memory_format=torch.channels_last)
    model = visx.wrap(module, size=64, resize=64)
    _ = model.anatomy
    assert model.network().behaviour == Behaviour()


def test_what_is_kept_and_not_used_is_put_back_and_costs_nothing() -> None:
    net = with_buffer(kept, history=[])
    model = wrapped(net)
    (result,) = explained(model, pictures(1), "backprop")
    assert model.network().behaviour == Behaviour(changing=True)
    assert not result.warnings
    assert not hasattr(net, "last") and net.history == [] and net.count == 0
    net(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.float64))
    explained(model, pictures(1), "gradcam")
    assert len(net.history) == 1 and net.count == 1 and net.last.shape == (1, 8)


def test_parameters_that_forward_writes_to_are_put_back() -> None:
    def halved(net: Any, x: Tensor) -> Tensor:
        net.head.weight.data.mul_(0.5)
        return x

    net = Net(halved).eval()
    with (network := Network(net)).session():
        found = observe(network, (3, SIZE, SIZE))
    assert found.parameters and found.changing and found.stateful
    before = net.head.weight.clone()
    with (network := Network(net, behaviour=lambda: found)).session():
        network.scores_of(torch.zeros(3, 3, SIZE, SIZE))
    torch.testing.assert_close(net.head.weight, before, rtol=0, atol=0)


def unversioned(state: dict[str, Any]) -> dict[str, Any]:
    """A fingerprint without the counters of writes to tensors, which no one can turn back."""
    return {k: (*v[:8], v[9]) if k.endswith(": tensor") else v for k, v in state.items()}


@pytest.mark.parametrize("kind", OTHERWISE)
def test_alone_or_in_a_folder_in_any_order_and_again(kind: str, cnn_method: Method) -> None:
    module = OTHERWISE[kind]()
    module.train()
    before = fingerprint(module)
    model = wrapped(module)
    images = pictures()
    layer = "net.features.2" if kind == "fake_quantised" else "features.2"
    more = {"layer": layer} if "layer" in cnn_method.needs else {}
    try:
        whole = explained(model, images, cnn_method.name, **more)
    except visx.VisxError as error:
        # no linear layer behind the pooling; operations that no rule is known of
        assert error.code == 4 and (cnn_method.name == "cam" or "that have no relevance rule" in error.message)
        pytest.skip(str(error))
    assert unversioned(before) == unversioned(fingerprint(module))
    sums = (kind, cnn_method.name) == ("fake_quantised", "rise")  # float32 sums over masks go by batches
    rounding = 1e-6 if sums else 0
    for size, order in ((2, [2, 0, 1]), (1, [1, 2, 0])):
        again = explained(model, [images[i] for i in order], cnn_method.name, batch_size=size, **more)
        for i, result in zip(order, again, strict=True):
            np.testing.assert_allclose(result.map, whole[i].map, rtol=rounding, atol=0)
            assert result.score == whole[i].score
    assert all(r.warnings for r in whole) or kind.startswith("single")
    fresh = explained(wrapped(OTHERWISE[kind]()), images[1], cnn_method.name, **more)
    np.testing.assert_array_equal(fresh.map, whole[1].map)


def test_a_map_is_of_the_picture_s_own_draw() -> None:
    """The gradient of the very pass that the seed names; another seed is another draw."""
    module = RANDOM["dropout"]().eval()
    (picture,) = pictures(1)
    model = wrapped(module)
    for seed in (0, 7):
        x = torch.from_numpy(model.preprocess(np.asarray(picture))[0])[None].double().requires_grad_()
        seed_all(image_seed(seed, as_picture(picture).digest))
        (wanted,) = torch.autograd.grad(module(x)[0, 1], x)
        got = explained(model, picture, "backprop", seed=seed).channels
        np.testing.assert_array_equal(got, wanted[0].float().numpy())
    first, second = (explained(model, picture, "rise", seed=seed).map for seed in (0, 7))
    assert not np.array_equal(first, second)


def test_copies_of_a_picture_see_one_draw() -> None:
    model = wrapped(RANDOM["randn"]().eval())
    _ = model.anatomy
    network, x = model.network(), torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with network.session(), network.of_picture(11):
        got = network.scores_of(x)
    for row, scores in zip(x, got, strict=True):
        seed_all(11)
        torch.testing.assert_close(model.module(row[None].double())[0].detach(), scores, rtol=0, atol=0)


def test_copies_are_scored_as_if_alone() -> None:
    """Batch statistics: those of each copy alone."""
    model = wrapped(COUPLED["no_running_statistics"]().eval())
    _ = model.anatomy
    network, x = model.network(), torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with network.session():
        got = network.scores_of(x)
    wanted = torch.cat([model.module(row[None].double()) for row in x]).detach()
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert float((got - model.module(x.double())).abs().max()) > 1e-3


def test_each_pass_begins_with_what_the_module_held() -> None:
    model = wrapped(STATEFUL["counter"]().eval())
    _ = model.anatomy
    model.module.calls = 2
    network, x = model.network(), torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with network.session():
        got = network.scores_of(x)
    assert model.module.calls == 2
    for row, scores in zip(x, got, strict=True):
        model.module.calls = 2
        torch.testing.assert_close(model.module(row[None].double())[0].detach(), scores, rtol=0, atol=0)


def test_others_get_no_pass_more_than_they_need() -> None:
    passes = []
    module = Net(lambda net, x: passes.append(len(x)) or x)  # type: ignore[func-returns-value]
    model = wrapped(module)
    _ = model.anatomy
    assert passes.count(2) <= 2 and passes.count(1) <= 3  # the look at pairs of pictures, at one, and at the anatomy
    explained(model, pictures(3), "backprop")
    passes.clear()
    explained(model, pictures(3), "backprop")
    assert passes == [3]
    bare = wrapped(module)  # another model of the same module has nothing to find out
    passes.clear()
    _ = bare.anatomy
    assert 2 not in passes
    module.features[1] = nn.BatchNorm2d(8, track_running_stats=False).double()  # unless it was changed
    changed = wrapped(module)
    _ = changed.anatomy
    assert changed.network().behaviour.coupled


NETS = """
import torch, visx
import torch.nn.functional as F
from torch import nn
class Net(nn.Module):
    def __init__(self, norm, change):
        super().__init__()
        self.features, self.head, self.change = nn.Sequential(nn.Conv2d(3, 8, 3, 2), norm, nn.ReLU()), nn.Linear(8, 4), change
    def forward(self, x):
        return self.head(self.change(self.features(x).mean((2, 3))))
def wrapped(*parts): return visx.wrap(Net(*parts), size=24, resize=24)
def dropout(): return wrapped(nn.BatchNorm2d(8), lambda x: F.dropout(x))
def statistics(): return wrapped(nn.BatchNorm2d(8, track_running_stats=False), lambda x: x)
def single(): return wrapped(nn.BatchNorm2d(8), lambda x: x.view(1, 8, -1).mean(2))
"""


@pytest.mark.parametrize("factory", ["dropout", "statistics", "single"])
@pytest.mark.parametrize("method", ["backprop", "gradcam", "rise"])
def test_by_the_command(factory: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    Path("photos").mkdir()
    for name, picture in zip("abc", pictures(), strict=True):
        picture.save(f"photos/{name}.png")
    words = ("-M", f"nets.py:{factory}", "-m", method, *(("-p", "masks=8") if method == "rise" else ()))
    for out, more in (("all", ()), ("two", ("--batch-size", "2")), ("again", ())):
        done = command("explain", "photos", "-o", out, *words, *more)
        assert done.code == 0, done.err
    alone = command("explain", "photos/b.png", "-o", "alone", *words)
    assert alone.code == 0 and ("warning" in alone.err) is (factory != "single")
    files = {
        out: {f"{p.parent.name}/{p.name}": p.read_bytes() for p in Path(out).rglob("*.npy")}
        for out in ("all", "two", "again", "alone")
    }
    assert files["all"] == files["again"] and len(files["all"]) >= 3
    assert files["alone"] and files["alone"].items() <= files["all"].items()
    assert method == "rise" or files["all"] == files["two"]  # sums over masks go by batches
    records = visx_records(Path("all/manifest.jsonl"))
    assert all(bool(record["warnings"]) is (factory != "single") for record in records)


def visx_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("factory", ["dropout", "statistics"])
def test_metrics_and_predictions_repeat(factory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    for name, picture in zip("ab", pictures(2), strict=True):
        picture.save(f"{name}.png")
    told = [command("predict", *which, "-M", f"nets.py:{factory}", "--json").out for which in (["a.png", "b.png"],
                                                                                              ["b.png", "a.png"])]  # fmt: skip
    assert sorted(told[0].splitlines()) == sorted(told[1].splitlines())
    words = ("-M", f"nets.py:{factory}", "-m", "gradcam", "--metrics", "deletion", "--json")
    values = [command("evaluate", *which, "-o", out, *words).out for which, out in ((("a.png", "b.png"), "one"),
                                                                                    (("b.png", "a.png"), "two"))]  # fmt: skip
    assert values[0] and values[0] == values[1]


def test_predictions_are_of_the_draw_that_explain_has_with_the_same_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    pictures(1)[0].save("a.png")
    scores = {}
    for seed in ("0", "3"):
        words = ("a.png", "-M", "nets.py:dropout", "--json", "--seed", seed)
        (first, *_) = json.loads(command("predict", *words).out)["predictions"]
        (record,) = map(json.loads, command("explain", *words, "-m", "backprop", "-o", seed).out.splitlines())
        assert (record["target"], record["score"]) == (first["target"], pytest.approx(first["logit"], abs=1e-6))
        scores[seed] = first["logit"]
    assert scores["0"] != scores["3"]


def test_a_copied_model_keeps_what_was_found() -> None:
    model = copy.deepcopy(wrapped(RANDOM["dropout"]()))
    half = visx.explain(model, pictures(2), method="backprop", target=1, precision="bf16")
    assert all(r.warnings for r in half)
    assert model.network("bf16").behaviour.random


def test_a_network_that_needs_a_batch_is_refused_in_words() -> None:
    net = extended(lambda net, x: net.norm(x), norm=nn.BatchNorm1d(8, track_running_stats=False))
    with pytest.raises(visx.VisxError, match="running statistics"):
        explained(wrapped(net), pictures(2), "backprop")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "vgg11_bn", "swin_t", "vit_b_32"])
def test_torchvision_s_networks_are_plain_as_is_taken_for_granted(name: str) -> None:
    from torchvision import models

    module = models.get_model(name, weights=None, **({"image_size": 64} if name.startswith("vit") else {})).eval()
    network = visx.wrap(module, size=64).network()
    with network.session():
        assert observe(network, (3, 64, 64)) == Behaviour()


def _noisy_hook(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
    return output + torch.randn_like(output)


@pytest.mark.parametrize(
    ("edit", "looked_at"),
    [
        (lambda m: None, False),
        (lambda m: m.fc.weight.data.mul_(2), False),
        (lambda m: m.train(), False),
        (lambda m: m.fc.register_forward_hook(_noisy_hook), True),
        (lambda m: setattr(m, "fc", nn.Sequential(nn.Dropout(), m.fc)), True),
        (lambda m: setattr(m.layer1[0], "bn1", nn.BatchNorm2d(64, track_running_stats=False)), True),
        (lambda m: setattr(m, "forward", lambda x: type(m).forward(m, x) + torch.rand(1)), True),
    ],
)
def test_a_library_s_network_is_looked_at_once_it_is_edited(
    edit: Callable[[nn.Module], object], looked_at: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = visx.load_model("resnet18", "random", size=32)
    edit(model.module)
    looks: list[int] = []
    monkeypatch.setattr(behaviours._Look, "behaviour", lambda self: looks.append(1) or Behaviour())
    assert model.anatomy.classes == 1000
    assert bool(looks) == looked_at
