"""Local passes: the logits of whole copies, wherever the patch and whatever the sizes, from less work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normed import settled
from oracles import column_scores, fingerprint
from visx.engine.batch import explain_batch
from visx.engine.jobs import plan
from visx.errors import VisxError
from visx.methods import get_method
from visx.models import load_model
from visx.models.efficientnet_lite0 import MBConv, SameConv2d
from visx.network.fast import crops
from visx.network.fast.accelerated import PLANS
from visx.network.fast.crops import Local
from visx.network.fast.windows import Side
from visx.network.memory import BatchSize
from visx.network.network import Network
from visx.network.scorer import Scorer
from visx.targets.classes import TargetSpec

pytestmark = pytest.mark.accelerated


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(9 * channels, 4)]


class Residual(nn.Module):
    """Two ways that see differently far, added up; the longer one dilated and not square."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(channels, channels, 3, stride, 2, dilation=2, bias=False)
        self.n = nn.BatchNorm2d(channels)
        self.b = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.short = nn.Conv2d(channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(F.relu_(self.n(self.a(x))))
        y += self.short(x)
        return torch.cat([y, F.max_pool2d(y, 3, 1, 1)], 1)


class Functional(nn.Module):
    """A first part without a module in it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.ParameterList([nn.Parameter(torch.randn(6, c, 3, 3)) for c in (3, 6)])
        self.scale = nn.Parameter(torch.rand(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(F.conv2d(F.pad(x, (0, 2, 1, 0)), self.w[0], None, 2))
        return F.avg_pool2d((F.conv2d(x, self.w[1], padding=1) * self.scale).sigmoid(), 2, ceil_mode=True)


def strided() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, 2, 2), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1),
        Residual(6, 1), Residual(12, 2), nn.AvgPool2d(3, 1, 1), nn.Hardswish(), *head(24),
    )  # fmt: skip


def ceiled() -> nn.Module:
    """Nothing is padded; sizes round down in convolutions and up in pools."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Conv2d(6, 6, 1, 2), nn.Tanh(),
        nn.Conv2d(6, 6, 3), nn.AvgPool2d(2, 2, ceil_mode=True), *head(6),
    )  # fmt: skip


def same() -> nn.Module:
    return nn.Sequential(
        SameConv2d(3, 6, 3, 2), MBConv(6, 6, 1, 3, 1), MBConv(6, 8, 2, 5, 2), MBConv(8, 8, 2, 3, 2), *head(8)
    )


def functional() -> nn.Module:
    return nn.Sequential(Functional(), nn.Conv2d(6, 4, 3), *head(4))


def network(net: nn.Module) -> Network:
    return Network(settled(net), owned=True, accelerate=True)


@pytest.fixture(autouse=True)
def repeatable():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def every_cut(monkeypatch):
    """Cuts count as worth their while whatever they save."""
    monkeypatch.setattr(crops, "WORTHWHILE", -math.inf)


def cuts(net: Network, shape: tuple[int, ...], boxes: Sequence[tuple[int, ...]]) -> list[crops.Plan]:
    with net.session(), torch.no_grad():
        record = net.record(torch.Size(shape), operations=False)
        return net.fast.folded(torch.Size(shape), lambda folded, _: crops._plans(folded, record, boxes))


def everywhere(height: int, width: int, patch: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Nothing hidden; patches in the corners, at the edges, one pixel from them and in the middle."""
    tops, lefts = (
        sorted({0, 1, (n - p) // 2, (n - p) // 2 + 1, n - p - 1, n - p})
        for n, p in ((height, patch[0]), (width, patch[1]))
    )
    return [(0, 0, 0, 0), *((top, left, top + patch[0], left + patch[1]) for top, left in product(tops, lefts))]


def pictures(height: int, width: int) -> Tensor:
    """An image and a fill."""
    return torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(height))


def whole(net: Network, image: Tensor, fill: Tensor, boxes: Sequence[tuple[int, ...]]) -> Tensor:
    scorer = Scorer(net.scores_of, BatchSize(100))
    return scorer.patched_scores(image, fill, boxes, column_scores(torch.arange(4)[None]))


@pytest.mark.parametrize(("height", "width"), [(96, 96), (93, 99), (107, 90), (95, 94)])
@pytest.mark.parametrize(("make", "least"), [(strided, 4), (ceiled, 6), (same, 6), (functional, 2)])
def test_every_cut_gives_the_logits_of_whole_copies_wherever_the_patch(make, least, height, width, every_cut):
    net, (image, fill) = network(make()), pictures(height, width)
    for patch in ((1, 1), (5, 8), (19, 12)):
        boxes = everywhere(height, width, patch)
        found = cuts(net, image.shape, boxes)
        smaller = [cut for cut in found if cut.crop[0] < height and cut.crop[1] < width]
        assert patch != (1, 1) or len(smaller) >= least
        with net.session():
            want = whole(net, image, fill, boxes)
            for cut in found:
                got = Local(net, cut, image).logits(fill, boxes)
                torch.testing.assert_close(got, want, rtol=0, atol=1e-10, msg=lambda m, c=cut: f"{c.module}: {m}")


def test_a_crop_begins_and_ends_where_the_strides_do(every_cut):
    net, boxes = network(same()), everywhere(61, 67, (9, 9))
    for cut in cuts(net, (3, 61, 67), boxes):
        for n, size in enumerate((61, 67)):
            assert (size - cut.crop[n]) % cut.sides[n].jump == 0
            begins = [cut.origin(box)[n] for box in boxes]
            assert all(b % cut.sides[n].jump == 0 and 0 <= b <= size - cut.crop[n] for b in begins)


def test_what_a_map_reads_is_the_receptive_field():
    """Two 3x3 convolutions with padding 1, the second with stride 2: 5 pixels, 2 each way."""
    side = Side().through(3, 1, 1, 1).through(3, 2, 1, 1)
    assert side == Side(2, -2, 2)
    assert side.changed(10, 11, 50) == (4, 7), "elements at pixels 8, 10 and 12"
    assert side.needed(10, 11, 50, 100) == (6, 15)
    assert side.needed(0, 1, 50, 100) == (0, 5) and side.needed(99, 100, 50, 100) == (96, 100)


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()


class Attending(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).view_as(x)


class Positioned(nn.Module):
    """Adds a constant that is another one in every place."""

    def __init__(self) -> None:
        super().__init__()
        self.where = nn.Parameter(torch.rand(1, 6, 1, 32))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.where


class Resized(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0)


@pytest.mark.parametrize(
    "part", [Gated(6), Attending(), Positioned(), Resized(), nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 3, padding="same"),
             nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6, track_running_stats=False)]
)  # fmt: skip
def test_no_cut_lies_behind_what_looks_at_more_than_a_window(part, every_cut):
    first = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU())
    net = network(nn.Sequential(first, part, nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), *head(6)))
    boxes = everywhere(64, 64, (9, 9))
    assert {id(cut.module) for cut in cuts(net, (3, 64, 64), boxes)} <= {id(first), *map(id, first)}
    image, fill = pictures(64, 64)
    with net.session():
        near = net.patched(image, boxes)
        if isinstance(part, nn.BatchNorm2d):
            assert near is None, "copies hang on each other"
            return
        assert near is not None
        torch.testing.assert_close(near.logits(fill, boxes), whole(net, image, fill, boxes), rtol=0, atol=1e-10)


class Part(nn.Module):
    """A first part that can be cut behind `first`, a second that does something of its own, and what `then` does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Sequential(*head(6))

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(x))


class Branches(Part):
    """Which way it goes hangs on the brightness of what it sees, which of a crop is another."""

    def middle(self, x: Tensor) -> Tensor:
        x = self.first(x * 2) if x.mean() > 0.1 else self.first(x)
        return self.second(x.relu())


class Scaled(Part):
    """By a number that Python reads of the image."""

    def middle(self, x: Tensor) -> Tensor:
        return self.second(self.first(x / x.abs().max().item()).relu())


class ByNumpy(Part):
    def middle(self, x: Tensor) -> Tensor:
        return self.second(self.first(x * float(x.numpy().mean())).relu())


class Striped(Part):
    """Every third column is written to: which one it is hangs on where a crop begins."""

    def middle(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x[..., ::3] = 0
        return self.second(x)


class StripedByView(Part):
    def middle(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x[..., ::3].mul_(-1)
        return self.second(x)


class StripedByFunction(Part):
    def middle(self, x: Tensor) -> Tensor:
        x = self.first(x)
        torch.neg(x[..., ::3], out=x[..., ::3])
        return self.second(x)


class Summed(Part):
    def middle(self, x: Tensor) -> Tensor:
        x = self.first(x)
        torch.cumsum(x, 3, out=x)
        return self.second(x)


class Placed(Part):
    """Knows where it is by the size."""

    def middle(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + torch.linspace(0, 1, x.shape[-1], dtype=x.dtype)
        return self.second(x)


class Shuffled(Part):
    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(F.interpolate(self.second(self.first(x)), scale_factor=2, mode="bilinear"), 2)[:, ::4]


class Sampled(Part):
    def middle(self, x: Tensor) -> Tensor:
        grid = F.affine_grid(torch.eye(2, 3, dtype=x.dtype)[None] * 0.9, [1, 6, *x.shape[2:]], align_corners=False)
        return self.second(F.grid_sample(self.first(x), grid.expand(len(x), -1, -1, -1), align_corners=False))


class Pooled(Part):
    def middle(self, x: Tensor) -> Tensor:
        return self.second(F.adaptive_avg_pool2d(self.first(x), (20, 20)))


class Circular(Part):
    def middle(self, x: Tensor) -> Tensor:
        return self.second(F.pad(self.first(x), (1, 1, 1, 1), mode="circular"))


class Rolled(Part):
    def middle(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).roll(5, 3).flip(2))


class ByBatch(Part):
    """Does something else with several images."""

    def middle(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) * (1 if len(x) == 1 else 2))


@pytest.mark.parametrize(
    "build", [Branches, Scaled, ByNumpy, Striped, StripedByView, StripedByFunction, Summed, Placed, Shuffled, Sampled,
              Pooled, Circular, Rolled, ByBatch]
)  # fmt: skip
def test_crops_are_not_taken_for_what_they_are_not(build: type[Part], every_cut):
    net = network(build())
    image, fill = pictures(60, 61)
    boxes = [(0, 0, 0, 0), *((top, left, top + 9, left + 9) for top, left in product((0, 7, 26, 51), (0, 10, 25, 52)))]
    for brightness in (0.0, 1.0, -1.0):
        with net.session():
            want = torch.cat([whole(net, image + brightness, fill, [box]) for box in boxes])
            near = net.patched(image + brightness, boxes)
            assert (near is not None) == (build in (Placed, Shuffled, Pooled, Circular, Rolled))
            if near is not None:
                got = torch.cat([near.logits(fill, [box]) for box in boxes])
                torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_hooks_see_whole_maps():
    net, (image, _), boxes = network(strided()), pictures(64, 64), everywhere(64, 64, (9, 9))
    handle = net.module[1].register_forward_hook(lambda module, args, output: None)
    assert net.patched(image, boxes) is None
    handle.remove()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_wrong_cut_does_not_pass_for_rounding(dtype: torch.dtype, monkeypatch):
    """In half precision a patch's effect may be less than what rounding does to the logits."""

    class Slight(Part):
        def middle(self, x: Tensor) -> Tensor:
            return self.second(self.first(x * (x.shape[-1] / 64)) * 1e-2)

    slight = network(Slight())
    slight.module.head[2].bias.data.copy_(torch.tensor([-10.0, 0, 10, 20]))
    half = Network(slight.module.to(dtype), owned=True, accelerate=True)
    assert cuts(network(Slight()), (3, 64, 64), everywhere(64, 64, (9, 9)))
    with half.session():
        assert half.patched(pictures(64, 64)[0].float(), everywhere(64, 64, (9, 9))) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_right_cut_is_taken_in_every_precision(dtype: torch.dtype):
    net = Network(network(strided()).module.to(dtype), owned=True, accelerate=True)
    image, fill = (x.float() for x in pictures(64, 64))
    boxes = everywhere(64, 64, (19, 19))
    with net.session():
        near = net.patched(image, boxes)
        assert near is not None and near._plan.module in set(net.module.modules())
        got, want = near.logits(fill, boxes), whole(net, image, fill, boxes)
    assert (got - want).abs().max() < {torch.float32: 1e-5}.get(dtype, 0.05) * (want.max() - want.min())


def test_where_float32_cannot_tell_float64_decides():
    """A patch whose effect is a millionth of the logits' range."""
    net = network(strided())
    net.module[-1].weight.data.mul_(1e-4)
    net.module[-1].bias.data.copy_(torch.tensor([-10.0, 0, 10, 20]))
    net = Network(net.module.float(), owned=True, accelerate=True)
    with net.session():
        assert net.patched(pictures(64, 64)[0].float(), everywhere(64, 64, (9, 9))) is not None


def test_few_plans_are_remembered():
    net = network(strided())
    with net.session():
        for size in range(40, 60):
            net.patched(pictures(size, size)[0], [(0, 0, 5, 5)])
    assert len(net.fast._plans) == PLANS and (torch.Size((3, 59, 59)), ((0, 0, 5, 5),)) in net.fast._plans


class Around(nn.Module):
    """What the first convolution gives is read again behind the second, and the second runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.twice = (nn.Conv2d(c, 6, 3, padding=1) for c in (3, 6, 6))
        self.head = nn.Sequential(*head(12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(torch.cat([self.twice(self.twice(self.second(x).relu())), x], 1))


def test_no_cut_has_a_way_around_it_or_runs_twice(every_cut):
    net = network(Around())
    assert [cut.module for cut in cuts(net, (3, 40, 40), everywhere(40, 40, (9, 9)))] == [net.module.first]


def test_what_would_save_too_little_is_not_done():
    net, (image, _) = network(strided()), pictures(64, 64)
    with net.session():
        assert net.patched(image, everywhere(64, 64, (9, 9))) is not None
        assert net.patched(image, everywhere(64, 64, (60, 60))) is None, "crops would be the image"
        late = network(nn.Sequential(nn.AvgPool2d(2, 2), nn.Flatten(), nn.Linear(3 * 32 * 32, 4)))
        assert late.patched(image, everywhere(64, 64, (9, 9))) is None, "nearly all work is behind"


def test_a_network_that_is_not_to_be_accelerated_goes_the_plain_way():
    image, _ = pictures(64, 64)
    assert Network(settled(strided())).patched(image, everywhere(64, 64, (9, 9))) is None


class Sized(nn.Module):
    """Its first part takes one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Sequential(*head(6))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == (64, 64)
        return self.head(self.part(x))


class Misread(nn.Module):
    """Looks at the size of the picture, which the watch does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Sequential(*head(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x * (x.shape[-1] / 64)))


@pytest.mark.parametrize("make", [Sized, Misread])
def test_what_does_not_come_out_the_same_goes_the_plain_way(make):
    net, (image, _), boxes = network(make()), pictures(64, 64), everywhere(64, 64, (9, 9))
    assert cuts(net, image.shape, boxes)
    with net.session():
        assert net.patched(image, boxes) is None


def test_it_is_learnt_once_and_holds_when_values_change(monkeypatch):
    net, (image, fill), boxes = network(strided()), pictures(64, 64), everywhere(64, 64, (9, 9))
    with net.session():
        before = net.patched(image, boxes)
        monkeypatch.setattr("visx.network.fast.accelerated.learn", None)
        with torch.no_grad():
            net.module[0].weight.mul_(-2.0)
        near = net.patched(image, boxes)
        assert before is not None and near is not None
        torch.testing.assert_close(near.logits(fill, boxes), whole(net, image, fill, boxes), rtol=0, atol=1e-10)


def test_less_is_computed_and_the_module_is_what_it_was():
    net, (image, fill), boxes = network(strided()), pictures(64, 64), everywhere(64, 64, (9, 9))
    was, sizes = fingerprint(net.module), []
    with net.session():
        near = net.patched(image, boxes)
        assert near is not None
        near.logits(fill, boxes)
    assert fingerprint(net.module) == was
    with net.session():
        handle = net.module[0].register_forward_hook(lambda m, args, output: sizes.append(output.numel()))
        near.logits(fill, boxes)
        whole(net, image, fill, boxes)
        handle.remove()
    assert sizes[0] < sizes[1] / 3

    def broken(*args: object) -> None:
        raise KeyboardInterrupt

    with net.session(), pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops.Plan, "pasted", broken)
        near.logits(fill, boxes)
    assert fingerprint(net.module) == was


def test_batches_halve_and_targets_share_as_on_the_plain_way():
    net, (image, fill), boxes, said = network(strided()), pictures(64, 64), everywhere(64, 64, (9, 9)), []
    ids = torch.tensor([3, 1])

    class Small:
        def __init__(self, way: Local) -> None:
            self.way = way

        def logits(self, fill: Tensor, boxes: Sequence[tuple[int, int, int, int]]) -> Tensor:
            if len(boxes) > 4:
                raise torch.OutOfMemoryError("out of memory")
            return self.way.logits(fill, boxes)

    with net.session():
        want = whole(net, image, fill, boxes)[:, ids]
        for size in (1, 7, 64):
            scorer = Scorer(net.scores_of, BatchSize(size, said.append), patched=lambda i, b: Small(net.patched(i, b)))
            torch.testing.assert_close(
                scorer.patched_scores(image, fill, boxes, column_scores(ids[None])), want, rtol=0, atol=1e-10
            )
    assert said
    with pytest.raises(VisxError, match="out of memory with a single copy"):
        Scorer(net.scores_of, BatchSize(4), patched=lambda i, b: Endless()).patched_scores(
            image, fill, boxes, column_scores(ids[None])
        )


class Endless:
    def logits(self, fill: Tensor, boxes: Sequence[object]) -> Tensor:
        raise torch.OutOfMemoryError("out of memory")


@pytest.mark.parametrize(
    ("spec", "patch", "pad"),
    [("efficientnet_lite0", 64, False), ("efficientnet_lite0", 53, False), ("efficientnet_lite0", 5, False),
     ("efficientnet_lite0", 53, True), ("resnet18", 53, False), ("squeezenet1_1", 64, False)],
)  # fmt: skip
def test_occlusion_of_real_networks_is_what_it_was(spec, patch, pad, monkeypatch):
    model = load_model(spec, "default" if spec == "efficientnet_lite0" else "random")
    params = {"patch": patch, "stride": 90 if pad else min(patch, 80) if patch > 5 else 5, "pad": pad}
    x = pictures(224, 224)[:1].float()
    if patch == 5:
        monkeypatch.setattr("visx.methods.occlusion._starts", lambda *_: [0, 100, 219])
    (job,) = plan(model, [get_method("occlusion")], params={"occlusion": params})
    net, used = model.network(), []
    patched = Network.patched
    monkeypatch.setattr(Network, "patched", lambda *args: used.append(patched(*args)) or used[-1])

    def maps() -> Tensor:
        with net.session():
            return torch.tensor(explain_batch(model, net, job, x, [TargetSpec("top1", top=1)], [0])[0][0].native)

    near = maps()
    assert used[0] is not None
    monkeypatch.setattr(Network, "patched", lambda *args: None)
    plain = maps()
    torch.testing.assert_close(near, plain, rtol=0, atol=1e-4 * float(plain.max() - plain.min()))
