"""What a model's output means: found by running, stated by the user, and the scores of each kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import visx
from nets import CLASSES, GapHead, SqueezeLike, VGGLike, Wrapped, images, seeded
from visx.errors import VisxError
from visx.models.model import Model
from visx.network.outputs import Outputs, ScoreKind

SIZE = 16


def wrapped(answer: Callable[[Tensor], Any], **options: Any) -> Model:
    return visx.wrap(seeded(lambda: Wrapped(answer)), size=SIZE, **options)


class Named(NamedTuple):
    logits: Tensor
    aux: Tensor | None


@dataclasses.dataclass
class Data:
    loss: Tensor
    logits: Tensor


FOUND: dict[str, tuple[Callable[[Tensor], Any], dict[str, Any], int]] = {
    "logits": (lambda z: z, {"kind": "logits"}, CLASSES),
    "log softmax": (lambda z: z.log_softmax(1), {"kind": "logits"}, CLASSES),
    "temperature": (lambda z: z / 2.5 + 1, {"kind": "logits"}, CLASSES),
    "relu behind": (lambda z: z.relu(), {"kind": "logits"}, CLASSES),
    "silu by hand": (lambda z: z * z.sigmoid(), {"kind": "logits"}, CLASSES),
    "softmax": (lambda z: z.softmax(1), {"kind": "probabilities"}, CLASSES),
    "softmax of two": (lambda z: z[:, :2].softmax(1), {"kind": "probabilities"}, 2),
    "softmax by hand": (lambda z: z.exp() / z.exp().sum(1, keepdim=True), {"kind": "probabilities"}, CLASSES),
    "mean of softmaxes": (lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2, {"kind": "probabilities"}, CLASSES),
    "stacked softmaxes": (lambda z: torch.stack([z.softmax(1), z.relu().softmax(1)]).mean(0), {"kind": "probabilities"}, CLASSES),
    "some of a softmax": (lambda z: z.softmax(1)[:, 1:3], {"kind": "probabilities"}, 2),
    "sigmoid and its rest": (lambda z: torch.cat([1 - z[:, :1].sigmoid(), z[:, :1].sigmoid()], 1), {"kind": "probabilities"}, 2),
    "sigmoid": (lambda z: z.sigmoid(), {"kind": "sigmoid", "values": "probabilities"}, CLASSES),
    "hard sigmoid": (lambda z: F.hardsigmoid(z), {"kind": "sigmoid", "values": "probabilities"}, CLASSES),
    "mean of sigmoids": (lambda z: torch.stack([z.sigmoid(), (-z).sigmoid()]).mean(0), {"kind": "sigmoid", "values": "probabilities"}, CLASSES),
    "clamped sigmoid": (lambda z: z.sigmoid().clamp(1e-3, 1 - 1e-3), {"kind": "sigmoid", "values": "probabilities"}, CLASSES),
    "scaled sigmoid": (lambda z: z.sigmoid() * 100, {"kind": "logits"}, CLASSES),
    "one logit": (lambda z: z[:, :1], {"kind": "sigmoid", "values": "logits"}, 2),
    "one logit, squeezed": (lambda z: z[:, 0], {"kind": "sigmoid", "values": "logits"}, 2),
    "one logit, squeezed to nothing": (lambda z: z[:, :1].squeeze(), {"kind": "sigmoid", "values": "logits"}, 2),
    "one probability": (lambda z: z[:, :1].sigmoid(), {"kind": "sigmoid", "values": "probabilities"}, 2),
    "the second of two": (lambda z: z[:, :2].softmax(1)[:, 1], {"kind": "sigmoid", "values": "probabilities"}, 2),
    "squeezed row": (lambda z: z.squeeze(), {"kind": "logits"}, CLASSES),
    "map of one cell": (lambda z: z[:, :, None, None], {"kind": "logits"}, CLASSES),
    "dict": (lambda z: {"logits": z, "loss": z.sum(), "mask": z[:, None, None].expand(-1, 2, 2, -1)}, {"kind": "logits", "head": "logits"}, CLASSES),
    "tuple with a list": (lambda z: ([z.softmax(1)], 3, None), {"kind": "probabilities", "head": "0.0"}, CLASSES),
    "named tuple": (lambda z: Named(z, None), {"kind": "logits", "head": "logits"}, CLASSES),
    "dataclass": (lambda z: Data(z.sum(), z[:, :1]), {"kind": "sigmoid", "values": "logits", "head": "logits"}, 2),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_found_by_running(case: str) -> None:
    answer, identity, classes = FOUND[case]
    model = wrapped(answer)
    assert model.outputs.identity == identity
    assert model.classes == classes


def test_a_pass_without_a_graph_is_read_by_its_values() -> None:
    class Blind(nn.Module):
        def __init__(self, answer: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.net = Wrapped(answer)

        @torch.no_grad()
        def forward(self, x: Tensor) -> object:
            return self.net(x)

    def kind(answer: Callable[[Tensor], Tensor], **options: Any) -> dict[str, Any]:
        return visx.wrap(seeded(lambda: Blind(answer)), size=SIZE, **options).outputs.identity

    assert kind(lambda z: z) == {"kind": "logits"}
    assert kind(lambda z: z.softmax(1)) == {"kind": "probabilities"}
    assert kind(lambda z: z.sigmoid()) == {"kind": "logits"}  # no run can tell
    assert kind(lambda z: z.sigmoid(), means="sigmoid") == {"kind": "sigmoid", "values": "probabilities"}
    assert kind(lambda z: z * 9, means="sigmoid") == {"kind": "sigmoid", "values": "logits"}


def column(z: Tensor, kind: ScoreKind, of: str) -> Tensor:
    """The table of CONTRACT.md, written slowly, for class 1 of logits z."""
    p = {"softmax": z.softmax(1), "sigmoid": z.sigmoid()}[of][:, 1]
    logit = {"softmax": z[:, 1], "sigmoid": (p / (1 - p)).log()}[of]
    return {"logit": logit, "prob": p, "logprob": p.log()}[kind]


KINDS: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, str], int, Callable[[Tensor, ScoreKind], Tensor]]] = {
    "logits": (lambda z: z, {}, 1, lambda z, kind: column(z, kind, "softmax")),
    "probabilities": (lambda z: z.softmax(1), {}, 1, lambda z, kind: column(z, "logprob" if kind == "logit" else kind, "softmax")),
    "sigmoid, probabilities": (lambda z: z.sigmoid(), {}, 1, lambda z, kind: column(z, kind, "sigmoid")),
    "sigmoid, logits": (lambda z: z, {"means": "sigmoid"}, 1, lambda z, kind: column(z, kind, "sigmoid")),
    "one logit, class 1": (lambda z: z[:, 1:2], {}, 1, lambda z, kind: column(z, kind, "sigmoid")),
    "one logit, class 0": (lambda z: z[:, 1:2], {}, 0, lambda z, kind: column(-z, kind, "sigmoid")),
    "one probability, class 1": (lambda z: z[:, 1].sigmoid(), {}, 1, lambda z, kind: column(z, kind, "sigmoid")),
    "one probability, class 0": (lambda z: z[:, 1].sigmoid(), {}, 0, lambda z, kind: column(-z, kind, "sigmoid")),
    "regression": (lambda z: 100 * z, {"means": "regression"}, 1, lambda z, kind: 100 * z[:, 1]),
}  # fmt: skip


@pytest.mark.parametrize("score", ["logit", "prob", "logprob"])
@pytest.mark.parametrize("case", KINDS)
def test_the_score_and_its_gradient_are_those_of_the_table(case: str, score: ScoreKind) -> None:
    """backprop without a reduction is the gradient of the explained scalar; in a batch as alone."""
    answer, options, target, formula = KINDS[case]
    module = seeded(lambda: Wrapped(answer))
    model = visx.wrap(module, size=SIZE, **options)
    x = images(2, SIZE)
    ids = torch.full((2, 1), target)
    if case == "regression" and score == "logprob":
        with pytest.raises(VisxError, match="no probability") as caught:
            visx.explain(model, images_as_picture(), "backprop", target=1, score=score)
        assert caught.value.code == 4
        return
    leaf = x.clone().requires_grad_()
    want = formula(module.net(leaf), score)
    (gradient,) = torch.autograd.grad(want.sum(), leaf)
    network = model.network()
    with network.session():
        got = network.input_gradients(x, lambda columns: network.outputs.scores(columns, ids, score))
    torch.testing.assert_close(got.scores[:, 0], want.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.grads[:, 0], gradient.to(got.grads), rtol=1e-5, atol=1e-7)


def images_as_picture() -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_probabilities_have_finite_scores_and_gradients(dtype: torch.dtype) -> None:
    p = torch.tensor([[0.0, 1.0, 1e-7, 0.5]], dtype=dtype, requires_grad=True)
    single = torch.tensor([[1e-7]], dtype=dtype, requires_grad=True)
    for outputs, values in (
        (Outputs("probabilities"), p),
        (Outputs("sigmoid", probable=True), p),
        (Outputs("sigmoid", single=True, probable=True), single),
    ):
        for kind in ("logit", "prob", "logprob"):
            table = outputs.table(outputs.columns(values, 1), kind)  # type: ignore[arg-type]
            (grad,) = torch.autograd.grad(table.sum(), values, retain_graph=True)
            assert table.isfinite().all() and grad.isfinite().all(), (outputs, kind)
    odds = Outputs("sigmoid", single=True, probable=True)
    low, high = odds.table(odds.columns(torch.tensor([[1e-30]]), 1), "logit")[0].tolist()
    assert low == -high == pytest.approx(30 * 2.302585, rel=1e-4)  # not lost in 1 - (1 - p)


def test_a_probability_of_zero_is_said() -> None:
    model = wrapped(lambda z: (z * 1e5).softmax(1))
    result = visx.explain(model, images_as_picture(), "occlusion", target="top5", score="logprob", patch=8, stride=8)
    cut = [r for r in result if any("cut off" in w for w in r.warnings)]
    assert len(cut) == CLASSES - 1 and all(r.probability == 0 for r in cut)


def test_half_precision_and_nan_do_not_hide_a_meaning() -> None:
    net = seeded(lambda: Wrapped(lambda z: (z.softmax(1) + (2 * z).softmax(1)) / 2), dtype=torch.bfloat16)
    assert visx.wrap(net, size=SIZE).outputs.kind == "probabilities"
    assert wrapped(lambda z: (z * float("nan")).softmax(1)).outputs.kind == "probabilities"
    assert wrapped(lambda z: (z * float("nan")).sigmoid()).outputs.probable


def test_stated_meanings_are_checked() -> None:
    for means, code in (("logit", 2), ("embedding", 4), ("boxes", 4), ("masks", 4), ("features", 2)):
        with pytest.raises(VisxError) as caught:
            wrapped(lambda z: z, means=means)
        assert caught.value.code == code and "logits" in str(caught.value)
    for answer, means in ((lambda z: z[:, :1], "logits"), (lambda z: z * 9, "probabilities")):
        with pytest.raises(VisxError, match="the model returns") as caught:
            _ = wrapped(answer, means=means).outputs
        assert caught.value.code == 2


def test_of_several_members_one_is_chosen() -> None:
    def two(z: Tensor) -> object:
        return {"a": z, "b": {"c": z[:, :3], "d": z[:, :, None, None].expand(-1, -1, 2, 2)}}

    with pytest.raises(VisxError, match=r"a \(N, 5\), b\.c \(N, 3\).*--head a") as caught:
        _ = wrapped(two).outputs
    assert caught.value.code == 4
    assert wrapped(two, head="b.c").classes == 3 and wrapped(two, head=1).outputs.member == "b.c"
    for head, code, says in (("b.x", 2, "b.c"), ("b.d", 4, "shape")):
        with pytest.raises(VisxError, match=says) as caught:
            _ = wrapped(two, head=head).outputs
        assert caught.value.code == code
    with pytest.raises(VisxError, match="one tensor") as caught:
        _ = wrapped(lambda z: z, head=0).outputs
    assert caught.value.code == 2
    with pytest.raises(VisxError, match=r"logits \(N, 5\), aux \(N, 5\)"):  # as Inception and GoogLeNet in training
        _ = wrapped(lambda z: Named(z, 2 * z)).outputs
    with pytest.raises(VisxError, match=r"0 \(N, 4\), 1 \(N, 1\)"):  # a class and an age, say
        _ = wrapped(lambda z: (z[:, :4], z[:, 4:])).outputs
    assert wrapped(lambda z: (z, torch.ones(1, 7), z.detach())).outputs.member == "0", "what the picture has no part in"
    assert wrapped(lambda z: Named(z, 2 * z), head="logits").classes == CLASSES
    result = visx.explain(wrapped(two, head="b.c"), images_as_picture(), "backprop", target="top3")
    assert sorted(r.target for r in result) == [0, 1, 2]


@pytest.mark.parametrize("squeezed", [False, True])
def test_cam_of_one_logit(squeezed: bool) -> None:
    """Class 1 has the weights of the logit, class 0 their opposites."""

    class One(GapHead):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            logit = super().forward(x)
            return logit.squeeze(1) if squeezed else logit

    module = seeded(One)
    model = visx.wrap(module, size=SIZE)
    yes, no = (visx.explain(model, images_as_picture(), "cam", target=t) for t in (1, 0))
    with torch.no_grad():
        x = torch.from_numpy(model.preprocess(images_as_picture())[0])[None].double()
        want = torch.einsum("k,khw->hw", module.fc.weight[0], module.features(x)[0])
    torch.testing.assert_close(torch.from_numpy(yes.native), want.float())
    assert (no.native == -yes.native).all() and yes.native.any()


class Residual(nn.Module):
    """conv, then conv + its input, a norm before pooling: a network whose `head` may be an Identity."""

    def __init__(self, head: nn.Module, norm: nn.Module | None = None, stem: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = stem or nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
        self.norm, self.head = norm or nn.Identity(), head

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.norm(x + self.block(x)).mean((2, 3)))


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.gate = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        return x * F.hardsigmoid(self.gate(x.mean((2, 3), keepdim=True)))


class GatedMaps(nn.Module):
    """Class maps weighted by a gate that is made with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.maps = nn.Conv2d(3, 8, 3), nn.Conv2d(8, CLASSES, 1)
        self.gate = nn.Sequential(nn.Conv2d(8, CLASSES, 1), nn.BatchNorm2d(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x))
        return (self.maps(x) * torch.sigmoid(self.gate(x))).mean((2, 3))


class Prototypes(nn.Module):
    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.points, self.by_hand = nn.Parameter(torch.randn(CLASSES, 8)), by_hand

    def forward(self, x: Tensor) -> Tensor:
        return -(x[:, None] - self.points).square().sum(2) if self.by_hand else -torch.cdist(x, self.points)


class Cosine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CLASSES, 8))

    def forward(self, x: Tensor) -> Tensor:
        return 16 * F.normalize(x) @ F.normalize(self.weight).t()


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Bilinear(8, 8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x, x)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) + self.b(x)) / 2


class Tokens(nn.Module):
    """A small ViT: class token, one block, a norm."""

    def __init__(self, head: nn.Module, pool: str = "token") -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.randn(1, 1, 8))
        self.block = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.norm, self.head, self.pool = nn.LayerNorm(8), head, pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.norm(x + self.block(x))
        return self.head(x[:, 0] if self.pool == "token" else x.mean(1))


def without_head(net: nn.Module, name: str) -> nn.Module:
    setattr(net, name, nn.Identity())
    return net


def vgg_without_its_last_layer() -> nn.Module:
    return nn.Sequential(
        *VGGLike(SIZE).features, nn.Flatten(), nn.Linear(128, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Dropout()
    )


FEATURES: dict[str, Callable[[], nn.Module]] = {
    "batch norm, ReLU, mean": lambda: without_head(GapHead(), "fc"),
    "a residual sum": lambda: Residual(nn.Identity()),
    "a residual sum, normalised": lambda: Residual(nn.Identity(), nn.BatchNorm2d(8)),
    "features behind a gate": lambda: nn.Sequential(Gated(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "1x1 convolution, norm, pooling": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "a residual sum of linear maps": lambda: Residual(nn.Identity(), stem=nn.Conv2d(3, 8, 3, 2, 1)),
    "pooled features normalised": lambda: Residual(nn.BatchNorm1d(8)),
    "pooled features of length one": lambda: Residual(nn.Softmax(1)),
    "maps laid out": lambda: without_head(VGGLike(SIZE), "fc"),
    "the hidden layer of VGG": vgg_without_its_last_layer,
    "a class token": lambda: Tokens(nn.Identity()),
    "mean of tokens": lambda: Tokens(nn.Identity(), "mean"),
}
HEADS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: Residual(nn.Linear(8, CLASSES)),
    "linear, batch norm": lambda: Residual(nn.Sequential(nn.Linear(8, CLASSES), nn.BatchNorm1d(CLASSES))),
    "linear, ReLU": lambda: Residual(nn.Sequential(nn.Linear(8, CLASSES), nn.ReLU())),
    "linear, softmax": lambda: Residual(nn.Sequential(nn.Linear(8, CLASSES), nn.Softmax(1))),
    "no bias": lambda: Residual(nn.Linear(8, CLASSES, bias=False)),
    "1x1 convolution, ReLU, pooling": SqueezeLike,
    "convolution, pooling": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ),
    "1x1 convolution behind pooling": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, CLASSES, 1), nn.Flatten()
    ),
    "gated class maps": GatedMaps,
    "cosine": lambda: Residual(Cosine()),
    "bilinear": lambda: Residual(Bilinear()),
    "prototypes": lambda: Residual(Prototypes(False)),
    "prototypes by hand": lambda: Residual(Prototypes(True)),
    "mean of two heads": lambda: Residual(TwoHeads()),
    "class token": lambda: Tokens(nn.Linear(8, CLASSES)),
    "a head a token, averaged": lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Transposed(), nn.LayerNorm(8), nn.Linear(8, CLASSES), Mean()),
}  # fmt: skip


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


@pytest.mark.parametrize("case", FEATURES)
def test_features_are_no_classes(case: str) -> None:
    module = seeded(FEATURES[case])
    model = visx.wrap(module, size=SIZE)
    assert model.outputs.kind == "features"
    with pytest.raises(VisxError, match=r"no classifier.*model with a head") as caught:
        visx.explain(model, images_as_picture(), "backprop")
    assert caught.value.code == 4
    told = visx.wrap(module, size=SIZE, means="logits")
    assert visx.explain(told, images_as_picture(), "backprop").map.shape == (SIZE, SIZE)
    named = visx.wrap(module, size=SIZE, labels=[str(i) for i in range(model.anatomy.classes)])
    assert named.outputs.kind != "features", "what has names are classes"


@pytest.mark.parametrize("case", HEADS)
def test_a_head_of_any_form_is_one(case: str) -> None:
    model = visx.wrap(seeded(HEADS[case]), size=SIZE)
    assert model.outputs.kind in ("logits", "probabilities") and model.classes == CLASSES


def test_labels_of_one_logit() -> None:
    for labels, want in ((["cat", "dog"], ["cat", "dog"]), (["dog"], ["not dog", "dog"]), (None, ["0", "1"])):
        model = wrapped(lambda z: z[:, :1], labels=labels)
        both = visx.explain(model, images_as_picture(), "backprop", target="top2")
        assert {r.target: r.label for r in both} == dict(enumerate(want))
        assert both[0].score == -both[1].score > 0
        assert both[0].probability + both[1].probability == pytest.approx(1)
    with pytest.raises(VisxError, match="3 labels for a model of 2"):
        _ = wrapped(lambda z: z[:, :1], labels=["a", "b", "c"]).classes
    assert visx.explain(wrapped(lambda z: z[:, :1], labels=["dog"]), images_as_picture(), target="not dog", method="backprop").target == 0  # fmt: skip
