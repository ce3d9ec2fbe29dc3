"""transformers' models from folders: values, preprocessing, labels, and what is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")

import visx  # noqa: E402
from transformers_folders import network, save  # noqa: E402
from visx.errors import VisxError  # noqa: E402
from visx.models import checkpoint, load_model  # noqa: E402
from visx.models.sources.processors import drawn  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(network("vit"), tmp_path / "vit")


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = {**json.loads(file.read_text(encoding="utf-8")), **changes}
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}), encoding="utf-8")


def refused(spec: str | Path, weights: str = "default", **options: Any) -> VisxError:
    with pytest.raises(VisxError) as error:
        load_model(f"hf/{spec}", weights, **options)
    assert "\n" not in str(error.value)
    return error.value


def test_a_folder_is_the_network_that_was_saved(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_model(f"hf/{folder}")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.module(x).logits, network("vit")(x).logits)
    assert model.weights == visx.models.Weights(
        "model.safetensors", checkpoint.digest_file(folder / "model.safetensors")
    )
    assert (model.classes, model.labels, model.input_size) == (5, None, (32, 32))
    assert model.outputs.identity == {"kind": "logits", "head": "logits"}
    assert capfd.readouterr() == ("", "")


def test_of_three_outputs_the_one_that_is_used(tmp_path: Path) -> None:
    for family in ("deit", "levit"):
        folder = save(network(family, "ForImageClassificationWithTeacher"), tmp_path / family)
        assert load_model(f"hf/{folder}").outputs.member == "logits"


def test_half_precision_weights_are_loaded_in_full(folder: Path) -> None:
    network("vit").half().save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
    for weights in ("default", "random"):
        model = load_model(f"hf/{folder}", weights)
        assert {p.dtype for p in model.module.parameters()} == {torch.float32}


def test_random_weights_are_the_same_every_time(folder: Path) -> None:
    torch.manual_seed(3)
    first = load_model(f"hf/{folder}", "random")
    torch.manual_seed(4)
    second = load_model(f"hf/{folder}", "random")
    assert first.weights == second.weights and first.weights.name == "random"
    assert first.weights.sha256 != load_model(f"hf/{folder}").weights.sha256


def test_labels_are_those_of_the_configuration(folder: Path) -> None:
    names = {str(i): n for i, n in enumerate(["ant", "bee", "cat", "dog", "elk"])}
    edit(folder / "config.json", id2label=names, label2id={n: int(i) for i, n in names.items()})
    assert load_model(f"hf/{folder}").labels == ("ant", "bee", "cat", "dog", "elk")
    assert load_model(f"hf/{folder}", "random").labels == ("ant", "bee", "cat", "dog", "elk")
    assert load_model(f"hf/{folder}", labels=list("abcde")).labels == tuple("abcde")


@pytest.mark.parametrize(
    ("problem", "kind"), [("regression", "regression"), ("multi_label_classification", "sigmoid"), (None, "logits")]
)
def test_the_kind_of_problem_says_what_the_output_means(problem: str, kind: str, folder: Path) -> None:
    edit(folder / "config.json", problem_type=problem)
    assert load_model(f"hf/{folder}").outputs.kind == kind


def test_a_checkpoint_over_the_configuration(folder: Path, tmp_path: Path) -> None:
    other = network("vit", classes=7, seed=1)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "w.pth")
    model = load_model(f"hf/{folder}", str(tmp_path / "w.pth"))
    assert (model.classes, model.labels) == (7, None)
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model.module(x).logits, other(x).logits)
    (folder / "model.safetensors").unlink()  # a folder may hold the configuration alone
    assert load_model(f"hf/{folder}", str(tmp_path / "w.pth")).classes == 7
    assert "holds no weights" in refused(folder).message


def test_several_files_of_weights(folder: Path) -> None:
    network("vit").save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    model = load_model(f"hf/{folder}")
    state = network("vit").state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.module.state_dict().items())
    parts = sorted(folder.glob("*.safetensors"))
    assert len(parts) > 1 and model.weights.name == "model.safetensors.index.json" and len(model.weights.sha256) == 64
    parts[0].unlink()
    assert parts[0].name in refused(folder).message


def test_pickled_weights_are_read_without_running_them(folder: Path, tmp_path: Path) -> None:
    state, canary = network("vit").state_dict(), tmp_path / "canary"
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert load_model(f"hf/{folder}").weights.name == "pytorch_model.bin"

    class Hostile:
        def __reduce__(self) -> Any:
            return open, (str(canary), "w")

    for write in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))):
        write({**state, "x": Hostile()}, folder / "pytorch_model.bin")
        refused(folder)
        assert not canary.exists()


def test_code_that_comes_with_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "own.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')\nclass Net: pass\nclass Config: pass\n")
    for file, kind in (("config.json", "AutoConfig"), ("preprocessor_config.json", "AutoImageProcessor")):
        edit(folder / file, auto_map={kind: "own.Config"})
        error = refused(folder, "random")
        assert error.code == 4 and "auto_map" in error.message and not (tmp_path / "canary").exists()
        edit(folder / file, auto_map=None)
    load_model(f"hf/{folder}", "random")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"architectures": ["DetrForObjectDetection"]}, 4, "is DetrForObjectDetection"),
        ({"architectures": ["ViTModel"]}, 4, "is ViTModel"),
        ({"model_type": "detr", "architectures": ["DetrForObjectDetection"]}, 4, "is DetrForObjectDetection"),
        ({"model_type": "bert", "architectures": None}, 4, "of model_type 'bert'"),
        ({"model_type": "vitt"}, 4, "unknown model_type 'vitt'"),
        ({"model_type": None}, 4, "unknown model_type"),
        ({"model_type": ["vit"]}, 4, "unknown model_type"),
        ({"hidden_size": "wide"}, 1, "transformers cannot use its"),
        ({"num_hidden_layers": 3}, 1, "16 tensors missing"),
        ({"intermediate_size": 48}, 1, "6 tensors of another shape"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, Any], code: int, words: str, folder: Path) -> None:
    edit(folder / "config.json", **changes)
    error = refused(folder)
    assert error.code == code and words in error.message, error


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff\xfe", "null"])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_damaged_json(content: str, file: str, folder: Path) -> None:
    (folder / file).write_text(content, encoding="latin-1")
    error = refused(folder)
    assert error.code == 1 and file in error.message and "damaged" in error.message


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("preprocessor_config.json", "image_mean", {"a": 1}),
        ("preprocessor_config.json", "resample", "x"),
        ("preprocessor_config.json", "rescale_factor", None),
        ("preprocessor_config.json", "image_std", [0, 1, 1]),
        ("config.json", "num_attention_heads", "x"),
        ("config.json", "id2label", 7),
    ],
)
def test_settings_of_another_type(file: str, key: str, value: Any, folder: Path) -> None:
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**content, key: value}), encoding="utf-8")
    refused(folder)


def test_damaged_weights(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    for content in (b"", whole[:50], whole[: len(whole) // 2]):
        (folder / "model.safetensors").write_bytes(content)
        error = refused(folder)
        assert error.code == 1 and "model.safetensors is damaged" in error.message


def test_a_head_that_was_not_trained_is_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in state.items() if not k.startswith("classifier")},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    error = refused(folder)
    assert "2 tensors missing (classifier.bias, classifier.weight)" in error.message
    save_file({**state, "decoder.bias": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    (remark,) = load_model(f"hf/{folder}").remarks
    assert "decoder.bias" in remark


def test_what_is_no_folder(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    folder.rename(tmp_path / "run" / "checkpoint-10")
    error = refused("run")
    assert error.code == 2 and "did you mean hf/run/checkpoint-10" in error.hint
    assert refused("run/checkpoint-10/config.json").code == 2
    for name in ("", "./nothing", "a/b/c", "../x"):
        error = refused(name)
        assert error.code == 2 and "no such folder" in error.message


def test_without_network_a_name_fails_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def dead() -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr("visx.models.downloads.reach_hub", dead)
    error = refused("google/vit-base-patch16-224")
    assert error.code == 1 and "cannot get config.json of hf/google/vit-base-patch16-224" in error.message
    assert "no route" in error.message and "hf/FOLDER" in error.hint


def test_a_cached_name_needs_no_network(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "hub" / "models--someone--bees"
    (repository / "refs").mkdir(parents=True)
    (repository / "snapshots").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    folder.rename(repository / "snapshots" / "c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("visx.models.downloads.reach_hub", lambda: pytest.fail("asked the hub"))
    assert load_model("hf/someone/bees").classes == 5
    from visx.models.listing import list_models

    assert list_models("bees") == [{"name": "hf/someone/bees", "source": "transformers", "weights_here": True}]


def test_a_folder_needs_neither_network_nor_much(folder: Path) -> None:
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('a connection')\n"
        "socket.socket.connect = refuse\n"
        "import visx\n"
        "assert 'transformers' not in sys.modules\n"
        f"visx.load_model('hf/{folder}')\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_transformers_too_old_or_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "4.40.1")
    error = refused(folder)
    assert error.code == 2 and "4.40.1" in error.message and "visx[hf]" in error.hint
    monkeypatch.setitem(sys.modules, "transformers", None)
    error = refused(folder)
    assert error.code == 2 and "pip install 'visx[hf]'" in error.hint


def test_a_folder_without_processor_asks_for_mean_and_std(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()
    error = refused(folder)
    assert error.code == 2 and "has no preprocessor_config.json" in error.message and "--mean --std" in error.hint
    model = load_model(f"hf/{folder}", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert (model.input_size, model.preprocess.mean) == ((32, 32), (0.5, 0.5, 0.5))


PROCESSORS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {"size": {"height": 40, "width": 48}},
    "DeiTImageProcessor": {},
    "BeitImageProcessor": {"size": {"height": 64, "width": 64}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True},
    "ConvNextImageProcessor": {"size": {"shortest_edge": 224}, "crop_pct": 0.9},
    "ConvNextImageProcessor large": {"size": {"shortest_edge": 384}},
    "LevitImageProcessor": {},
    "PoolFormerImageProcessor": {"crop_pct": 0.95},
    "MobileNetV1ImageProcessor": {},
    "MobileNetV2ImageProcessor": {},
    "MobileViTImageProcessor": {},
    "BitImageProcessor": {"size": {"shortest_edge": 67}, "crop_size": {"height": 60, "width": 60}},
    "EfficientNetImageProcessor": {"size": {"height": 96, "width": 96}},
    "EfficientNetImageProcessor offset": {"rescale_offset": True, "rescale_factor": 1 / 127.5, "include_top": False},
    "SegformerImageProcessor": {"size": {"height": 128, "width": 128}},
    "CLIPImageProcessor": {},
    "SiglipImageProcessor": {},
    "PvtImageProcessor": {"do_normalize": False},
    "ViTImageProcessor raw": {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [60, 70, 80]},
    "ViTImageProcessor as it is": {"do_resize": False},
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_become_what_the_processor_makes_of_them(name: str, folder: Path) -> None:
    kind, _, case = name.partition(" ")
    processor = getattr(transformers, kind)(**PROCESSORS[name])
    photograph = np.asarray(Image.open(Path(__file__).parents[2] / "samples" / "coffee.png").convert("RGB"))[:, :431]
    picture = drawn(32, 32) if case == "as it is" else photograph
    processor.save_pretrained(folder)
    model = load_model(f"hf/{folder}", "random")
    for pixels in (picture, np.ascontiguousarray(picture.transpose(1, 0, 2))):
        expected = processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"][0].numpy()
        own, _ = model.preprocess(pixels)
        expected = expected[::-1] if kind.startswith("MobileViT") else expected
        assert own.shape == expected.shape
        # levels of 255: Pillow and torchvision round a resampled pixel another way, by several at a hard edge
        off = np.abs((own - expected) * np.array(model.preprocess.std)[:, None, None]) * 255
        assert off.mean() < 0.2 and (off > 1.01).mean() < 1e-3, (off.mean(), off.max(), (off > 1.01).mean())


@pytest.mark.parametrize("family", ["vit", "deit", "swin"])
def test_another_size_interpolates_the_positions(family: str, tmp_path: Path) -> None:
    folder = save(network(family), tmp_path / family)
    model = load_model(f"hf/{folder}", size=(48, 64))
    assert (model.input_size, model.classes) == ((48, 64), 5)
    x = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.module(x).logits, network(family)(x, interpolate_pos_encoding=True).logits)
    layer = next(one for one in model.anatomy.layers if one.name == model.anatomy.default_layer)
    assert layer.grid is not None and layer.grid.shape[1] * 4 == layer.grid.shape[2] * 3


def test_a_network_of_one_size_says_so(tmp_path: Path) -> None:
    folder = save(network("levit"), tmp_path / "levit")
    with pytest.raises(VisxError, match="1x3x96x96") as error:
        _ = load_model(f"hf/{folder}", size=96).anatomy
    assert error.value.code == 1


def test_blue_first_is_turned_inside_the_network(folder: Path) -> None:
    transformers.MobileViTImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    model = load_model(f"hf/{folder}")
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.module(x).logits, network("vit")(x.flip(1)).logits)
    assert model.anatomy.default_layer is not None and model.anatomy.default_layer.endswith(".1.layernorm_before")
    edit(folder / "preprocessor_config.json", do_flip_channel_order=False)
    assert load_model(f"hf/{folder}").fingerprint.code != model.fingerprint.code  # type: ignore[union-attr]


def test_a_processor_that_does_something_else_is_not_guessed_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = transformers.AutoImageProcessor.from_pretrained(folder).__class__
    plain: Callable[..., Any] = kind.__call__

    def mirrored(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = plain(self, *args, **kwargs)
        result["pixel_values"] = result["pixel_values"].flip(-1)
        return result

    monkeypatch.setattr(kind, "__call__", mirrored)
    error = refused(folder)
    assert error.code == 2 and "something else than resize, crop and normalise" in error.message
    model = load_model(f"hf/{folder}", size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert model.input_size == (32, 32)
    edit(folder / "preprocessor_config.json", size={"shortest_edge": 32})
    assert "another size for each picture" in refused(folder).message


def test_the_configuration_is_part_of_the_recipe(folder: Path) -> None:
    before = load_model(f"hf/{folder}").fingerprint
    edit(folder / "config.json", layer_norm_eps=1e-3)
    after = load_model(f"hf/{folder}").fingerprint
    assert before is not None and after is not None and before.code != after.code


def test_a_module_of_ones_own_is_wrapped_with_its_labels() -> None:
    module: nn.Module = network("deit", "ForImageClassificationWithTeacher")
    model = visx.wrap(module, size=32, head="logits", labels=module.config.id2label)
    assert model.classes == 5 and model.label(2) == "LABEL_2"
