"""The target contract: an objective that is no class goes through methods, batches, the manifest and the metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import visx
from nets import images, seeded
from oracles import CHEAP, of_transformers, same
from visx import targets
from visx.engine.batch import Answer, explain_batch
from visx.engine.explainer import Explainer
from visx.engine.jobs import plan
from visx.errors import VisxError
from visx.evaluate.bench import Bench, explain_all
from visx.files import to_json
from visx.images.find import Item
from visx.methods import all_methods, get_method
from visx.methods.contract import Method
from visx.metrics import get_metric
from visx.network.outputs import LOGITS, Outputs, ScoreKind
from visx.store.read import read_results
from visx.store.settings import Settings
from visx.targets.classes import Column, TargetSpec
from visx.targets.contract import Fixed, Identity, Objective, Objectives, Target, Targets, reference_of, together

SIZE = 12
PASSED: list[int] = []  # pictures in each pass


class Maps(nn.Module):
    """A picture (3, H, W) -> three maps (3, H/2, W/2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        PASSED.append(len(x))
        return self.second(self.first(x).relu())


class OfMaps(Outputs):
    """Values that are maps (B, K, h, w)."""

    def values(self, raw: Any, batch: int) -> Tensor:
        assert raw.dim() == 4 and len(raw) == batch
        return raw

    @property
    def has_probabilities(self) -> bool:
        return False


MAPS = OfMaps("maps", classes=3)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Region(Objective):
    """The mean of one map over a region (top, left, bottom, right)."""

    channel: int
    box: tuple[int, int, int, int]
    column = None

    @property
    def identity(self) -> Identity:
        name = "-".join(map(str, self.box))
        return Identity("region", f"map{self.channel}-{name}", f"map {self.channel}", None, {"channel": self.channel, "box": list(self.box)})  # fmt: skip

    def score(self, values: Tensor, outputs: Outputs, kind: ScoreKind) -> Tensor:
        top, left, bottom, right = self.box
        return values[:, self.channel, top:bottom, left:right].mean((1, 2))

    @classmethod
    def again(cls, identity: Mapping[str, Any], outputs: Outputs, labels: Sequence[str] | None) -> Region:
        return cls(identity["channel"], tuple(identity["box"]))


ONE, TWO, THREE = Region(0, (0, 0, 2, 3)), Region(2, (3, 1, 6, 6)), Region(1, (0, 0, 6, 6))


class Positive(Target):
    """The whole of every map whose mean is positive in the picture."""

    text = "positive"

    def objectives(self, values: Tensor, outputs: Outputs, labels: Sequence[str] | None) -> list[Objective]:
        found = [Region(k, (0, 0, 6, 6)) for k, mean in enumerate(values.mean((1, 2)).tolist()) if mean > 0]
        if not found:
            raise VisxError("no map of this image is positive")
        return list(found)


class AsClasses(nn.Module):
    """The same network as a classifier that has the objectives' scores for logits."""

    def __init__(self, maps: Maps) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, x: Tensor) -> Tensor:
        values = self.maps(x)
        return torch.stack([o.score(values, MAPS, "logit") for o in (ONE, TWO, THREE)], 1)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[visx.Model]:
    """A model of maps, as a kind of output that visx does not know yet."""
    monkeypatch.setattr("visx.network.anatomy.recognise", lambda raw, **kwargs: MAPS)
    wrapped = visx.wrap(seeded(Maps), size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert wrapped.outputs is MAPS
    monkeypatch.undo()
    return wrapped


def explain(
    model: visx.Model, name: str, x: Tensor, specs: Sequence[Target], layer: str | None = None, seed: int = 0
) -> list[Any]:
    params = {name: CHEAP.get(name, {})}
    (job,) = plan(model, [get_method(name)], [layer] if layer else [], params, "logit")
    network = model.network()
    with network.session():
        return explain_batch(model, network, job, x, specs, range(seed, seed + len(x)))


FITTING = [m for m in all_methods() if "gap_head" not in m.needs and not of_transformers(m)]


@pytest.mark.parametrize("method", FITTING, ids=lambda method: method.name)
def test_is_explained_as_the_classifier_that_has_it_for_a_logit(model: visx.Model, method: Method) -> None:
    x = images(2, SIZE)
    layer = "first" if "layer" in method.needs else None
    found = explain(model, method.name, x, [Fixed(ONE, TWO), Fixed(TWO, ONE)], layer)
    classifier = visx.wrap(AsClasses(model.module), size=SIZE, means="logits", mean=(0.5,) * 3, std=(0.5,) * 3)
    classes = [TargetSpec("0", index=0), TargetSpec("1", index=1)]
    for b, mine in enumerate(found):
        spec, name = together(classes[:: 1 - 2 * b]), layer and "maps.first"
        (theirs,) = explain(classifier, method.name, x[b : b + 1], [spec], name, seed=b)  # alone
        assert [a.objective for a in mine] == [[ONE.identity, TWO.identity], [TWO.identity, ONE.identity]][b]
        assert [a.probability for a in mine] == [None, None]
        for a, b in zip(mine, theirs, strict=True):
            assert np.ptp(b.map) > 0 and same(a.map, b.map, 1e-6) and a.score == pytest.approx(b.score, rel=1e-6)
    assert not same(found[0][0].map, found[0][1].map, 1e-2)


@pytest.mark.parametrize("name", ["backprop", "gradcam", "rise", "integrated_gradients", "meaningful_perturbation", "smoothgrad"])  # fmt: skip
def test_images_of_a_batch_have_different_numbers_of_them(model: visx.Model, name: str) -> None:
    """Each image has its own, in order, as alone; one without any has its error and stops no other."""
    x, layer = images(3, SIZE), "first" if name == "gradcam" else None
    specs = [together([Fixed(ONE), Fixed(TWO, THREE)]), Fixed(THREE), Positive()]
    with torch.no_grad():
        model.module.second.bias -= model.module(x)[2].mean((1, 2)) + 1e-3  # none is positive in the last
    found = explain(model, name, x, specs, layer)
    assert [a.objective.slug for a in found[0]] == [o.identity.slug for o in (ONE, TWO, THREE)]
    assert [a.asked for a in found[0]] == [0, 1, 1] and [a.objective for a in found[1]] == [THREE.identity]
    assert isinstance(found[2], VisxError) and "no map of this image is positive" in found[2].message
    for b in (0, 1):
        (job,) = plan(model, [get_method(name)], [layer] if layer else [], {name: CHEAP.get(name, {})}, "logit")
        with model.network().session():
            (alone,) = explain_batch(model, model.network(), job, x[b : b + 1], [specs[b]], [b])
        for a, want in zip(found[b], alone, strict=True):
            assert same(a.map, want.map, 1e-6)


@pytest.mark.parametrize("name", ["backprop", "rise"])
def test_a_batch_in_which_no_image_has_any(model: visx.Model, name: str) -> None:
    with torch.no_grad():
        model.module.second.weight.zero_()
        model.module.second.bias.fill_(-1)
    found = explain(model, name, images(2, SIZE), [Positive()] * 2)
    assert [str(error) for error in found] == ["no map of this image is positive"] * 2


def test_the_images_with_few_are_not_explained_for_those_with_many(model: visx.Model) -> None:
    """Three objectives and one: four masks are learned, not six."""
    x = images(2, SIZE)
    passed = []
    for specs in ([Fixed(ONE, TWO, THREE), Fixed(ONE)], [Fixed(ONE, TWO, THREE)] * 2):
        PASSED.clear()
        explain(model, "meaningful_perturbation", x, specs)
        passed.append(sum(PASSED))
    assert passed[1] - passed[0] >= 2 * CHEAP["meaningful_perturbation"]["iterations"]


def test_columns_of_a_batch_cost_one_gather_and_a_backward_pass_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered, backward = [], []
    scores, grad = Outputs.scores, torch.autograd.grad
    monkeypatch.setattr(Outputs, "scores", lambda self, *args: gathered.append(args[1].shape) or scores(self, *args))
    monkeypatch.setattr(torch.autograd, "grad", lambda *args, **kwargs: backward.append(1) or grad(*args, **kwargs))
    network = visx.wrap(AsClasses(seeded(Maps)), size=SIZE, means="logits").network()
    specs = [together([TargetSpec("top2", top=2), TargetSpec("1", index=1)])] * 4
    asked = Targets(specs, network.outputs)
    gathered.clear(), backward.clear()
    with network.session():
        network.input_gradients(images(4, SIZE), lambda values: asked.scores(values, "logit"))
    assert gathered == [(4, 3)] and len(backward) == 3


def test_columns_beside_other_kinds_are_scored_alike() -> None:
    values = torch.randn(2, 5, dtype=torch.float64)

    class First(Region):
        def score(self, values: Tensor, outputs: Outputs, kind: ScoreKind) -> Tensor:
            return values[:, 0] * 2

    mixed = Objectives([[Column.of(3, LOGITS, None), First(0, (0, 0, 1, 1))]] * 2, LOGITS)
    assert mixed.columns(values) is None
    want = torch.stack([values.softmax(1)[:, 3], values[:, 0] * 2], 1)
    torch.testing.assert_close(mixed.scores(values, "prob"), want)
    torch.testing.assert_close(mixed.of(1).scores(values, "prob"), want)
    torch.testing.assert_close(mixed.pairs().scores(values.repeat_interleave(2, 0), "prob")[:, 0], want.flatten())


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        pixels = np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"{seed}.png")
    return tmp_path


def test_the_manifest_names_it(model: visx.Model, work: Path) -> None:
    items = [Item(work / f"{n}.png", f"{n}.png") for n in (1, 2)]
    jobs = plan(model, [get_method("gradcam"), get_method("backprop"), get_method("rise")], ["first"], {"rise": {"masks": 20}}, "logit")  # fmt: skip
    settings = Settings(work / "out", together([Fixed(ONE), Fixed(TWO, THREE)]))
    maps = explain_all(model, jobs, items, settings)
    assert (maps.written, maps.skipped, maps.errors) == (18, 0, [])
    lines = [json.loads(line) for line in (work / "out" / "manifest.jsonl").read_text().splitlines()]
    assert all(line["target"] is None and line["objective"]["kind"] == "region" for line in lines)
    first = next(line for line in lines if line["method"] == "gradcam" and line["objective"]["channel"] == 2)
    assert first["objective"] == {"kind": "region", "channel": 2, "box": [3, 1, 6, 6]} and first["label"] == "map 2"
    assert first["probability"] is None and first["targets"] == 2 and first["rank"] == 0
    assert first["files"]["npy"].split("/")[1].startswith("gradcam.first.map2-3-1-6-6.")
    again = explain_all(model, jobs, items, settings)
    assert (again.written, again.skipped) == (0, 18), "results are found again"
    results = read_results(work / "out")
    assert {to_json(result.record.identity) for result in results} == {
        to_json(o.identity.json) for o in (ONE, TWO, THREE)
    }


def test_metrics_measure_it_where_it_can_be_made_again(
    model: visx.Model, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = Item(work / "1.png", "1.png")
    (job,) = plan(model, [get_method("integrated_gradients")], params={"integrated_gradients": {"steps": 64}})
    (sample,) = explain_all(model, [job], [item], Settings(work / "out", Fixed(TWO))).samples
    assert sample.target == "region-2-3-1-6-6"
    bench, metric = Bench(Explainer(model, model.network())), get_metric("completeness")
    with pytest.raises(VisxError, match="region") as caught:
        bench.measure(sample, metric, metric.params())
    assert caught.value.code == 4
    monkeypatch.setitem(targets.KINDS, "region", Region.again)
    assert bench.measure(sample, metric, metric.params()).value < 0.02
    steady = get_metric("max_sensitivity")
    assert 0 < bench.measure(sample, steady, steady.params(samples=2)).value < 1, "the method explains the same again"


def answer_of_a_unit() -> Answer:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = visx.wrap(net, size=SIZE)
    (job,) = plan(model, [get_method("deconvnet")], ["0"], {"deconvnet": {"unit": "max"}})
    with model.network().session():
        ((answer,),) = explain_batch(model, model.network(), job, images(1, SIZE), [TargetSpec("top1", top=1)], [0])
    return answer  # type: ignore[no-any-return]


def test_a_unit_is_no_class() -> None:
    identity = answer_of_a_unit().objective
    assert identity.kind == "unit" and set(identity.json) == {"kind", "index", "y", "x"}
    assert identity.slug == f"unit-{identity.index}-{identity.json['y']}-{identity.json['x']}"
    assert reference_of(identity.json) == identity.slug
    with pytest.raises(VisxError, match="unit"):
        targets.again(identity.json, LOGITS, None)


def test_classes_and_values_are_made_again_as_they_were() -> None:
    value = Outputs("regression", classes=4)
    for outputs, labels in (
        (LOGITS, ["cat", "Dog!", "a b", "d"]),
        (LOGITS, None),
        (value, None),
        (value, ["w", "h", "x", "y"]),
    ):
        for index in range(4):
            objective = Column.of(index, outputs, labels)
            assert targets.again(objective.identity.json, outputs, labels) == objective
    assert Column.of(1, LOGITS, ["cat", "Dog!"]).identity == Identity("class", "1-dog", "Dog!", 1)
    assert Column.of(1, value, None).identity == Identity("out", "out-1", "out:1", 1)
