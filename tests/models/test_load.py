"""Models from a SPEC: checkpoints of every wrapping, hostile ones, dead networks, and weights that are always the same."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from visx.errors import VisxError
from visx.images.decode import decode, read
from visx.images.geometry import Preprocess
from visx.models import checkpoint, downloads, load_model, sources, wrap
from visx.models.labels import read_labels

State = dict[str, Tensor]


class Tiny(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


def prefixed(prefix: str) -> Callable[[State], Any]:
    return lambda state: {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize(
    "wrapping",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": s, "optimizer": {"lr": 0.1}},
        prefixed("module."),
        prefixed("_orig_mod."),
        prefixed("_orig_mod.module."),
        lambda s: {"state_dict": prefixed("model.")(s), "hyper_parameters": {"lr": 1}},
        lambda s: {"model": {"state_dict": prefixed("module.")(s)}},
        lambda s: {k: v.half() for k, v in s.items()},
    ],
)
def test_wrapped_checkpoints(wrapping: Callable[[State], Any], tmp_path: Path) -> None:
    trained, fresh = Tiny(), Tiny()
    torch.save(wrapping(trained.state_dict()), tmp_path / "w.pth")
    checkpoint.fit(fresh, checkpoint.read(tmp_path / "w.pth"), tmp_path / "w.pth")
    for key, value in fresh.state_dict().items():
        assert torch.allclose(value, trained.state_dict()[key], atol=1e-3)


def test_safetensors(tmp_path: Path) -> None:
    trained, fresh = Tiny(), Tiny()
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    checkpoint.fit(fresh, checkpoint.read(tmp_path / "w.safetensors"), tmp_path)
    assert checkpoint.digest_state(fresh) == checkpoint.digest_state(trained)


class Hostile:
    """A pickle of it creates a file when it is loaded as pickles are."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return open, (str(self.canary), "w")


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path) -> None:
    canary, file = tmp_path / "canary", tmp_path / "w.pth"
    for content in (Hostile(canary), {"state_dict": Hostile(canary)}, {"a": torch.zeros(2), "b": Hostile(canary)}):
        torch.save(content, file)
        with pytest.raises(VisxError, match="holds more than tensors"):
            checkpoint.read(file)
        file.write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(VisxError):
            checkpoint.read(file)
        assert not canary.exists()
        pickle.loads(pickle.dumps(Hostile(canary)))  # the canary sings where code is run
        assert canary.exists()
        canary.unlink()


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    torch.save(Tiny().state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for name, data, message in [
        ("a.pth", b"", "0 bytes"),
        ("a.pth", b"text", "damaged"),
        ("a.pth", bytes(range(256)) * 9, "damaged"),
        ("a.pth", whole[: len(whole) // 2], "damaged"),
        ("a.safetensors", b"\xff" * 99, "damaged"),
        ("a.safetensors", b"", "damaged"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(VisxError, match=message) as error:
            checkpoint.read(tmp_path / name)
        assert error.value.code == 1
        assert "\n" not in error.value.message
    for content, message in [([1], "a list"), ({"a": 1}, "no tensors"), (torch.zeros(1), "a Tensor")]:
        torch.save(content, tmp_path / "b.pth")
        with pytest.raises(VisxError, match=message):
            checkpoint.read(tmp_path / "b.pth")


@pytest.mark.parametrize(
    "odd",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        lambda t: t.to("meta"),
        lambda t: t.to(torch.complex64),
        lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.quint8),
        lambda t: torch.nested.nested_tensor(list(t)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_no_module_takes(odd: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    state = Tiny().state_dict()
    state["head.weight"] = odd(state["head.weight"])
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(VisxError, match=r"sparse.*: head\.weight$"):
        checkpoint.read(tmp_path / "w.pth")


def test_one_row_that_claims_to_be_many_makes_no_model_of_that_size(tmp_path: Path) -> None:
    state = Tiny().state_dict()
    state["head.weight"] = torch.zeros(1, 4).expand(2**40, 4)
    state["head.bias"] = torch.zeros(1).expand(2**40)
    torch.save(state, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 10_000
    state = checkpoint.read(tmp_path / "w.pth")
    assert checkpoint.classes_in(Tiny(), state) is None
    with pytest.raises(VisxError, match="does not fit"):
        checkpoint.fit(Tiny(), state, tmp_path / "w.pth")


def test_a_mismatch_lists_keys_shortened(tmp_path: Path) -> None:
    torch.save(models.squeezenet1_1().state_dict(), tmp_path / "w.pth")
    with pytest.raises(VisxError, match=r"102 missing .*conv1.weight.*\.\.\.\).*52 unexpected") as error:
        load_model("resnet18", str(tmp_path / "w.pth"))
    assert len(error.value.message) < 500
    state = Tiny().state_dict()
    state["conv.weight"] = state["conv.weight"][:1]
    with pytest.raises(VisxError, match="1x3x3x3 instead of 4x3x3x3"):
        checkpoint.fit(Tiny(), state, tmp_path)


@pytest.mark.parametrize(
    "name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "efficientnet_lite0", "timm/resnet10t"]
)
def test_a_fine_tuned_head_brings_its_own_classes(name: str, tmp_path: Path) -> None:
    module = sources.find(name).build_for({}, 7)
    torch.save(nn.Module.state_dict(module), tmp_path / "w.pth")
    model = load_model(name, str(tmp_path / "w.pth"))
    assert model.classes == 7
    assert model.labels is None
    assert model.weights.sha256 == checkpoint.digest_file(tmp_path / "w.pth")


@pytest.mark.parametrize(("digest", "expected"), [("1378be20" + "0" * 56, True), ("0" * 64, False)])
def test_torchvisions_own_googlenet_file_is_fed_as_its_weights_are(
    digest: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(models.googlenet(weights=None, init_weights=False).state_dict(), tmp_path / "g.pth")
    monkeypatch.setattr("visx.models.checkpoint.digest_file", lambda path: digest)
    assert load_model("googlenet", str(tmp_path / "g.pth")).module.transform_input is expected


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@pytest.mark.parametrize("aux", [True, False])
def test_auxiliary_heads(name: str, aux: bool, tmp_path: Path) -> None:
    module = models.get_model(name, weights=None, aux_logits=aux, init_weights=False)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    model = load_model(name, str(tmp_path / "w.pth"))
    assert any("aux" in key.lower() for key in model.module.state_dict()) is aux


def test_the_builtins_logits_are_timms() -> None:
    ours = load_model()
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    state = dict(zip(theirs.state_dict(), ours.module.state_dict().values(), strict=True))
    theirs.load_state_dict(state)
    coffee = decode(read(Path(__file__).parents[2] / "samples" / "coffee.png")).rgb
    x = torch.from_numpy(np.stack([ours.preprocess(coffee)[0], ours.preprocess(coffee[:, :300])[0]]))
    with torch.no_grad():
        assert torch.allclose(ours.module(x), theirs(x), atol=2e-4)
        assert ours.label(int(ours.module(x)[0].argmax())) == "espresso"


def test_random_weights_are_the_same_in_two_processes() -> None:
    code = "from visx import load_model; print(load_model('squeezenet1_1', 'random').weights.sha256)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert load_model("squeezenet1_1", "random").weights.sha256 == other
    assert torch.equal(torch.get_rng_state(), before)


def test_a_vit_of_timm_takes_another_size(tmp_path: Path) -> None:
    """Trained at that size, or at its own and resampled as timm does it."""
    name, x = "vit_tiny_patch16_224", torch.rand(1, 3, 48, 64)
    for trained in ((48, 64), (224, 224)):
        module = timm.create_model(name, img_size=trained, num_classes=3).eval()
        nn.init.normal_(module.head.weight)
        torch.save(module.state_dict(), tmp_path / "w.pth")
        model = load_model(f"timm/{name}", tmp_path / "w.pth", size=(48, 64))
        module.set_input_size((48, 64))
        assert torch.equal(model.module(x), module(x)) and model.classes == 3
    assert load_model(f"timm/{name}", "random", size=(48, 64)).module(x).shape == (1, 1000)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_backbone_of_timm_takes_the_head_of_its_checkpoint(prefix: str, tmp_path: Path) -> None:
    """DINOv2 and others have no classifier of their own."""
    name, x = "vit_small_patch14_dinov2", torch.rand(1, 3, 28, 28)
    module = timm.create_model(name, img_size=28, num_classes=3).eval()
    torch.save({prefix + key: value for key, value in module.state_dict().items()}, tmp_path / "w.pth")
    model = load_model(f"timm/{name}", tmp_path / "w.pth", size=28)
    assert torch.equal(model.module(x), module(x)) and model.classes == 3 and model.labels is None


def test_no_network_for_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def dead(*args: Any, **kwargs: Any) -> None:
        raise URLError("no route\nto host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", dead)
    with pytest.raises(VisxError, match="no route") as error:
        load_model("resnet18")
    assert error.value.code == 1
    assert all(way in error.value.hint for way in ("--weights FILE", "--weights random", "efficientnet_lite0"))
    assert "to host" not in error.value.message


def test_a_download_leaves_standard_output_to_data(capsys: pytest.CaptureFixture[str]) -> None:
    with downloads.downloading("weights", "somewhere"):
        print("Downloading: ...")  # as torch.hub does
    assert capsys.readouterr() == ("", "Downloading: ...\n")


def test_no_network_for_timm_is_tried_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    tries: list[str] = []

    class Dead:
        def head(self, url: str, timeout: float) -> None:
            tries.append(url)
            raise OSError("unreachable")

    monkeypatch.setattr(huggingface_hub, "get_session", Dead)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: pytest.fail("went on without a network"))
    with pytest.raises(VisxError, match="unreachable") as error:
        load_model("timm/resnet18")
    assert len(tries) == 1
    assert "--weights random" in error.value.hint


def test_timms_cached_weights_need_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained = timm.create_model("resnet10t")
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: str(tmp_path / file))
    monkeypatch.setattr(downloads, "reach_hub", lambda: pytest.fail("asked the hub"))
    model = load_model("timm/resnet10t")
    assert torch.equal(model.module.state_dict()["fc.weight"], trained.state_dict()["fc.weight"])


def test_without_timm_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(VisxError, match="needs timm") as error:
        load_model("timm/resnet18")
    assert (error.value.code, error.value.hint) == (2, "pip install 'visx[timm]'")


@pytest.mark.parametrize(("spec", "near"), [("resnet5", "resnet50"), ("timm/resnet1", "timm/resnet18"), ("efficientnet_lite", "efficientnet_lite0")])  # fmt: skip
def test_unknown_models_have_near_matches(spec: str, near: str) -> None:
    with pytest.raises(VisxError, match="unknown model") as error:
        load_model(spec)
    assert near in error.value.hint


def test_labels(tmp_path: Path) -> None:
    for text in (
        "a\nb\n\n",
        '["a", "b"]',
        '{"0": "a", "1": "b"}',
        '{"1": ["n01", "b"], "0": ["n00", "a"]}',
        '{"a": 0, "b": 1}',
    ):
        (tmp_path / "l").write_text(text)
        assert read_labels(tmp_path / "l") == ("a", "b")
    for text in ("", "{", '{"1": "a"}', '{"x": "a"}'):
        (tmp_path / "l").write_text(text)
        with pytest.raises(VisxError):
            read_labels(tmp_path / "l")
    with pytest.raises(VisxError, match="takes a torch"):
        wrap(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "deeplabv3_resnet50", "quantized_resnet18"])
def test_torchvisions_other_models_are_known_and_refused(name: str) -> None:
    with pytest.raises(VisxError, match=f"{name}: of torchvision's models") as error:
        load_model(name, "random")
    assert error.value.code == 4


def test_a_library_model_is_the_same_whatever_torch_defaults_to() -> None:
    plain = load_model("squeezenet1_1", "random")
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            model = load_model("squeezenet1_1", "random")
            assert model.weights.sha256 == plain.weights.sha256 and torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(torch.float32)
    for device in ("meta", "cpu"):
        with torch.device(device):
            assert load_model("squeezenet1_1", "random").weights.sha256 == plain.weights.sha256
            assert torch.empty(1).device.type == device


def test_torchvisions_vits_take_another_size() -> None:
    def net(size: int) -> nn.Module:
        torch.manual_seed(0)
        return models.VisionTransformer(size, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16).eval()

    source: Any = sources.find("vit_b_32")
    source.build = lambda num_classes=1000, image_size=32: net(image_size)
    source.preprocess = lambda: Preprocess(48, (48, 48))
    module: Any = net(32)
    with torch.no_grad():
        before = nn.init.normal_(module.encoder.pos_embedding).clone()
    assert source.sized(module)(torch.zeros(1, 3, 48, 48)).shape == (1, 1000)
    after = module.encoder.pos_embedding
    assert after.shape == (1, 37, 16) and torch.equal(after[:, 0], before[:, 0])  # the class token's stays
    corners = before[0, 1:].reshape(4, 4, 16)[::3, ::3], after[0, 1:].reshape(6, 6, 16)[::5, ::5]
    assert torch.allclose(*corners)
    for size in (32, 48):  # a checkpoint of either size finds its network
        assert source.build_for(net(size).state_dict()).image_size == size
    source.preprocess = lambda: Preprocess(48, (48, 64))
    assert source.sized(net(32)).image_size == 32
