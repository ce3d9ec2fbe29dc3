"""Every source of models: what its contract promises, and that lists and help follow from the one registry."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import visx.models.sources as registry
from onnx_files import write
from visx.errors import VisxError
from visx.images.geometry import Preprocess
from visx.models import Weights, load_model
from visx.models.listing import list_models
from visx.models.sources import FORMS, SPECS, all_sources, find, kind_of
from visx.models.sources.contract import Source
from visx.network.blackbox import BlackBox
from visx.network.outputs import Outputs

NET = """
from torch import nn
def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
"""
VIT = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "image_size": 32, "patch_size": 8,
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
PROCESSOR = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
NEEDS = {"HuggingFace": "transformers", "Onnx": "onnxruntime"}  # sources whose extra may not be installed here
every = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            id=kind.__name__,
            marks=pytest.mark.skipif(
                importlib.util.find_spec(NEEDS.get(kind.__name__, "torch")) is None,
                reason=f"{NEEDS.get(kind.__name__)} is not installed",
            ),
        )
        for kind in all_sources()
    ],
)


SCORING = ("Onnx",)  # sources of what only scores, whose weights are its own


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the file that `Factory.example` names, also in a folder of a prefix's name; and a cache of
    the hub with the model that `HuggingFace.example` names."""
    hub = tmp_path / "hub" / "models--google--vit-base-patch16-224"
    (hub / "snapshots" / "abc").mkdir(parents=True)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("abc", encoding="utf-8")
    for name, content in (("config.json", VIT), ("preprocessor_config.json", PROCESSOR)):
        (hub / "snapshots" / "abc" / name).write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for place in (tmp_path, tmp_path / "timm"):
        place.mkdir(exist_ok=True)
        (place / "net.py").write_text(NET, encoding="utf-8")
    if importlib.util.find_spec("onnx"):
        write(tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@every
def test_its_example_is_its_own_and_becomes_a_model_that_states_what_the_source_does(kind: type[Source]) -> None:
    assert kind_of(kind.example) is kind
    weights = "default" if kind.__name__ in SCORING else "random"
    first, second = (load_model(kind.example, weights) for _ in range(2))
    source = find(kind.example)
    assert first.weights == second.weights and first.name == kind.example
    assert (first.owned, first.accelerate, first.rounding_safe) == (source.owned, source.owned, source.rounding_safe)
    assert first.input_size == source.preprocess().crop and first.classes > 1


@every
def test_default_weights_leave_the_callers_random_numbers(kind: type[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    if kind.__name__ in SCORING:
        pytest.skip("it builds no module")
    monkeypatch.setattr(
        kind, "default", lambda self: (self.build_for({"aux": torch.rand(1)}), Weights(str(torch.rand(1).item()), ""))
    )
    torch.manual_seed(7)
    before = torch.get_rng_state()
    models = [load_model(kind.example) for _ in range(2)]
    assert models[0].weights == models[1].weights
    assert torch.equal(torch.get_rng_state(), before)
    assert (models[0].accelerate, models[0].rounding_safe) == (kind.owned, kind.rounding_safe)


@every
def test_what_it_lists_it_takes(kind: type[Source]) -> None:
    listed = list(kind.listed())
    assert bool(listed) == bool(kind.title) and len(kind.title) <= 12
    assert all(kind_of(name) is kind and name.startswith(kind.prefix) for name, _ in listed[:5])
    if listed:
        row = next(row for row in list_models(kind.example) if row["name"] == kind.example)
        assert row["source"] == kind.title


@every
def test_an_unknown_name_after_its_prefix_is_an_error_with_near_matches(
    kind: type[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def gone(*_: object, **__: object) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    if not kind.prefix:
        pytest.skip("its SPECs have no prefix")
    monkeypatch.setattr("visx.models.downloads.reach_hub", lambda: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", gone)
    with pytest.raises(VisxError, match="unknown model") as error:
        find(f"{kind.example}x")
    assert error.value.code == 2 and kind.example in str(error.value)


def test_a_file_in_a_folder_of_a_prefixs_name_is_a_file() -> None:
    assert kind_of("timm/net.py:make").__name__ == "Factory"
    assert load_model("timm/net.py:make").classes == 5


def test_readme_names_every_form() -> None:
    readme = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    plain = readme.replace("`", "")
    assert [form for form in FORMS.values() if form.removesuffix(" (built in)") not in plain] == []
    assert all(form in SPECS for form in FORMS.values())


class Scores(BlackBox):
    """Two class columns: the mean of the picture, and its opposite."""

    outputs = Outputs("logits", classes=2)  # type: ignore[assignment]

    def scores_of(self, x: Tensor, seeds: object = ()) -> Tensor:
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([mean, -mean], 1)


class Toy(Source):
    """A source with two networks: one of torch, one that only scores."""

    example, prefix, title = "toy/small", "toy/", "toy"

    def __init__(self, spec: str) -> None:
        self.spec = spec

    @classmethod
    def takes(cls, spec: str) -> bool:
        return spec.startswith("toy/")

    @classmethod
    def listed(cls) -> list[tuple[str, bool]]:
        return [("toy/small", True), ("toy/scores", True)]

    def build(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def preprocess(self) -> Preprocess:
        return Preprocess(32, (32, 32))

    def default(self) -> tuple[nn.Module | BlackBox, Weights]:
        return (Scores() if self.spec == "toy/scores" else self.build()), Weights("toy", "")


def test_one_file_and_one_line_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("visx.models.sources.toy")
    module.Toy = Toy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.FORMS, "toy.Toy", "toy/NAME")
    assert load_model("toy/small").classes == 3
    assert [row["name"] for row in list_models("toy/")] == ["toy/small", "toy/scores"]
    black_box = load_model("toy/scores")
    assert black_box.classes == 2 and isinstance(black_box.source, BlackBox)


def test_the_layout_counts_with_a_sources_default_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[torch.Size] = []

    class Shape(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            shapes.append(x.shape)
            return x.mean(dim=(1, 2))

    monkeypatch.setattr(Toy, "default", lambda self: (Shape(), Weights("toy", "")))
    monkeypatch.setattr("visx.models.sources.find", Toy)
    assert load_model("toy/small", layout="NHWC").classes == 3
    assert {shape[1:] for shape in shapes} == {(32, 32, 3)}
