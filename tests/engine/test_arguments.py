"""Every argument of the Python API: what is taken, and that all else is answered by a usage error that says so."""

from __future__ import annotations

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import visx
from nets import GapHead, TwoConvs, seeded
from oracles import same
from visx.errors import ExitCode, VisxError
from visx.network.paths import layer_path

PICTURE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
LABELS = ["cat", "dog", "espresso", "espresso maker", "rocket"]


def net() -> nn.Module:
    return seeded(GapHead, dtype=torch.float32)


def model(**more: Any) -> visx.Model:
    return visx.wrap(net(), size=16, resize=16, labels=LABELS, **more)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a model that is a number": ({"model": 3}, "model is 3.*torch.nn.Module"),
    "no model": ({"model": None}, "model is None"),
    "an unknown model": ({"model": "resnet5"}, "unknown model 'resnet5'.*resnet50"),
    "a model's class": ({"model": GapHead}, "model is"),
    "no image": ({"image": None}, "image is None.*a path"),
    "a number for an image": ({"image": 3.5}, "image is 3.5"),
    "a mapping for an image": ({"image": {"path": "a.png"}}, "image is"),
    "no image in a list": ({"image": [PICTURE, None]}, "image is None"),
    "no method": ({"method": None}, "method is None.*name"),
    "an empty list of methods": ({"method": []}, "method is"),
    "a number for a method": ({"method": 3}, "method is 3"),
    "a number among methods": ({"method": ["gradcam", 3]}, "method is"),
    "an unknown method": ({"method": "gradcm"}, "unknown method 'gradcm'.*gradcam"),
    "an unknown method among known": ({"method": ["backprop", "gradcm"]}, "unknown method 'gradcm'"),
    "a number for a layer": ({"layer": 4}, "layer is 4.*path"),
    "a number among layers": ({"layer": ["features", 4]}, "layer is"),
    "another network's module": ({"layer": nn.Conv2d(3, 4, 3)}, "a Conv2d that is not in the model"),
    "a mapping for a layer": ({"layer": {"features": 1}}, "layer is"),
    "an unknown layer": ({"layer": "featres"}, "unknown layer 'featres'.*features"),
    "an index beyond the end": ({"layer": "features[9]"}, r"unknown layer 'features\[9\]'"),
    "an index before the start": ({"layer": "features[-9]"}, r"unknown layer 'features\[-9\]'"),
    "half an index": ({"layer": "features[0"}, "no path"),
    "a truth value for a target": ({"target": True}, "target is True.*class index"),
    "no target": ({"target": None}, "target is None"),
    "a fraction for a target": ({"target": 1.5}, "target is 1.5"),
    "an empty list of targets": ({"target": []}, "target is"),
    "a target beyond the end": ({"target": np.int64(9)}, "target 9 is out of range"),
    "an unknown score": ({"score": "logits"}, "unknown score 'logits'.*logit"),
    "a number for a score": ({"score": 1}, "unknown score '1'"),
    "a list for a score": ({"score": ["logit"]}, "unknown score"),
    "a fraction for a seed": ({"seed": 0.5}, "seed is 0.5.*whole number"),
    "a word for a seed": ({"seed": "1"}, "seed is '1'"),
    "an unknown precision": ({"precision": "fp8"}, "unknown precision 'fp8'.*bf16"),
    "a type for a precision": ({"precision": torch.float16}, "unknown precision"),
    "a list for a precision": ({"precision": ["fp32"]}, "unknown precision"),
    "no images a batch": ({"batch_size": 0}, "batch_size=0: at least 1"),
    "a fraction a batch": ({"batch_size": 2.5}, "batch_size is 2.5"),
    "a truth value a batch": ({"batch_size": True}, "batch_size is True"),
    "auto, which is the command's": ({"batch_size": "auto"}, "batch_size is 'auto'"),
    "an unknown parameter": ({"method": "rise", "mask": 9}, "unknown parameter of rise 'mask'.*masks"),
    "an unknown parameter of several": (
        {"method": ["rise", "lime"], "mask": 9},
        "unknown parameter of rise, lime 'mask'.*masks",
    ),
    "a truth value for a number": ({"method": "rise", "cells": True}, "cells=True: no truth value.*int >= 1"),
    "a parameter that is no number": ({"method": "rise", "masks": [3]}, "masks"),
    "a range of one": ({"range": (1,)}, "range"),
    "a range of words": ({"range": ("a", "b")}, "range"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_a_usage_error(case: str) -> None:
    wrong, message = WRONG[case]
    given = {"model": model(), "image": PICTURE, **wrong}
    with pytest.raises(VisxError, match=f"(?s){message}") as error:
        visx.explain(given.pop("model"), given.pop("image"), **given)
    assert error.value.code == ExitCode.USAGE


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"spec": 3}, "load_model.. takes the name"),
        ({"spec": net()}, "visx.wrap.. takes a module"),
        ({"spec": "efficientnet_lite0", "weights": None}, "load_model.. takes the name"),
        ({"spec": "efficientnet_lite0", "device": "gpu"}, "unknown device 'gpu'.*cuda"),
        ({"spec": "efficientnet_lite0", "device": 1.5}, "unknown device 1.5"),
        ({"spec": "efficientnet_lite0", "labels": 7}, "labels are 7"),
        ({"spec": "efficientnet_lite0", "labels": []}, "labels hold no names"),
        ({"spec": "efficientnet_lite0", "labels": {1: "a", 3: "b"}}, "indices"),
    ],
)
def test_wrong_arguments_of_load_model(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(VisxError, match=message) as error:
        visx.load_model(**wrong)
    assert error.value.code == ExitCode.USAGE


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda names: dict(enumerate(names)), iter])
def test_labels_of_any_kind(kind: Any) -> None:
    names = [f"class {n}" for n in range(1000)]
    assert visx.load_model("efficientnet_lite0", "random", labels=kind(names)).labels == tuple(names)


def test_images_of_any_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)

    class Pathlike:
        def __fspath__(self) -> str:
            return str(path)

    want = visx.explain(model(), path).map
    data = path.read_bytes()
    with path.open("rb") as file:
        kinds = [str(path), Pathlike(), data, bytearray(data), io.BytesIO(data), file, PICTURE, Image.fromarray(PICTURE),
                 torch.from_numpy(PICTURE), torch.from_numpy(PICTURE / 255.0).requires_grad_()]  # fmt: skip
        for kind in kinds:
            assert same(visx.explain(model(), kind).map, want, 1e-5), type(kind)
    for several in ([PICTURE, path], (PICTURE, path), iter([PICTURE, path]), (p for p in [PICTURE, path])):
        found = visx.explain(model(), several)
        assert len(found) == 2 and all(same(one.map, want, 1e-5) for one in found)
    assert visx.explain(model(), []) == []


def test_targets_of_any_kind() -> None:
    for target in (1, np.int64(1), torch.tensor(1), "1", "dog"):
        assert visx.explain(model(), PICTURE, target=target).target == 1
    for several in ([1, "rocket"], (np.int64(1), 4), np.array([1, 4]), torch.tensor([1, 4])):
        assert [r.target for r in visx.explain(model(), PICTURE, target=several)] == [1, 4]


def test_several_methods_get_the_parameters_they_take() -> None:
    found = visx.explain(
        model(), PICTURE, ["backprop", "smoothgrad"], target=[0, 1], samples=2, reduce="l2", seed=np.int64(3)
    )
    assert [(r.method, r.target) for r in found] == [
        ("backprop", 0), ("backprop", 1), ("smoothgrad", 0), ("smoothgrad", 1)
    ]  # fmt: skip
    alone = visx.explain(model(), PICTURE, "smoothgrad", target=1, samples=2, reduce="l2", seed=3)
    assert np.array_equal(found[3].map, alone.map)
    assert np.array_equal(found[1].map, visx.explain(model(), PICTURE, "backprop", target=1, reduce="l2").map)


def test_a_model_by_its_name_is_the_loaded_one() -> None:
    found = visx.explain("efficientnet_lite0", PICTURE, "backprop")
    assert np.array_equal(found.map, visx.explain(visx.load_model(), PICTURE, "backprop").map)


def test_layers_as_modules_and_by_index() -> None:
    mine = model()
    want = visx.explain(mine, PICTURE, layer="features.4")
    part = mine.module.get_submodule("features.4")
    for layer in (part, "features[4]", "features[-2]", ["features[-2]", "features.4", part], iter([part])):
        found = visx.explain(mine, PICTURE, layer=layer)
        assert found.layer == "features.4" and np.array_equal(found.map, want.map)
    both = visx.explain(mine, PICTURE, layer=[mine.module.features, "features[-2]"])
    assert [r.layer for r in both] == ["features", "features.4"]


def test_a_module_of_a_compiled_or_a_copied_network_is_found() -> None:
    mine = model()
    half = visx.explain(mine, PICTURE, layer=mine.module.features[4], precision="bf16")
    assert half.layer == "features.4"
    inner = seeded(lambda: TwoConvs(nn.ReLU(), nn.ReLU()), dtype=torch.float32)
    compiled = torch.compile(inner, backend="eager")
    assert visx.explain(visx.wrap(compiled, size=16), PICTURE, layer=inner.conv2).layer == "conv2"


def test_the_network_itself_is_no_layer() -> None:
    mine = model()
    with pytest.raises(VisxError, match="layer is the model itself"):
        visx.explain(mine, PICTURE, layer=mine.module)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(OrderedDict(a=nn.ReLU()))])
        self.parts = nn.ModuleDict({"first": nn.ReLU(), "2": nn.Tanh()})


@pytest.mark.parametrize(
    ("path", "want"),
    [
        ("blocks[0][1]", "blocks.0.1"), ("blocks[0].1", "blocks.0.1"), ("blocks.0[-1]", "blocks.0.1"),
        ("blocks[-1].a", "blocks.1.a"), ("blocks[1][-1]", "blocks.1.a"), ("blocks[1][0]", "blocks.1.a"), ("blocks[-2][-2]", "blocks.0.0"), ("blocks[ -1 ]", "blocks.1"),
        ('parts["first"]', "parts.first"), ("parts['2']", "parts.2"), ("parts[2]", "parts.2"), ("blocks.1", "blocks.1"),
    ],
)  # fmt: skip
def test_paths_with_indices(path: str, want: str) -> None:
    assert layer_path(Nested(), path) == want


@pytest.mark.parametrize(
    "path", ["blocks[2]", "blocks[-3]", "parts[-1]", "blocks[1][1]", "[0]", "blocks[x]", "blocks[0]]"]
)
def test_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(VisxError) as error:
        layer_path(Nested(), path)
    assert error.value.code == ExitCode.USAGE
