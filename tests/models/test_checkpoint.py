"""Checkpoints that plain PyTorch loads: the module that comes of them computes what the trained one did."""

from __future__ import annotations

import argparse
import copy
import datetime
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from visx.errors import VisxError
from visx.models import checkpoint, load_model

State = dict[str, Any]


class Net(nn.Module):
    """Takes `old.` for `conv.` from older files, as a hook of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self._register_load_state_dict_pre_hook(self._older)

    @staticmethod
    def _older(state: State, prefix: str, *_: Any) -> None:
        for key in [k for k in state if k.startswith(f"{prefix}old.")]:
            state[key.replace("old.", "conv.")] = state.pop(key)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3)))


def trained() -> Net:
    torch.manual_seed(3)
    net = Net().eval()
    net(torch.rand(2, 3, 8, 8))
    net.norm.running_mean.uniform_(-1, 1)
    return net


def under(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    return {key: torch.full_like(value, 7) for key, value in state.items()}


NOTHING_SAID: dict[str, Callable[[State], Any]] = {
    "counters missing": lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    "the module's own hook": lambda s: {k.replace("conv.", "old."): v for k, v in s.items()},
    "a hook behind a prefix": lambda s: under("backbone.")({k.replace("conv.", "old."): v for k, v in s.items()}),
    "a compiled part": lambda s: {k.replace("conv.", "conv._orig_mod."): v for k, v in s.items()},
    "compiled, parallel": lambda s: under("_orig_mod.module.")(s),
    "module.model.": under("module.model."), "backbone.": under("backbone."), "encoder.": under("encoder."),
    "network.": under("network."), "any name": under("my.wrapper."), "a teacher alone": lambda s: {"teacher": under("module.")(s)},
    "ema alone": lambda s: {"model_ema": under("module.")(s), "epoch": 3},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "arguments": lambda s: {"model": s, "args": argparse.Namespace(lr=np.float64(0.1), out=Path("a"), when=datetime.datetime.now())},
    "numbers of numpy": lambda s: {"state_dict": s, "best": np.float32(0.5), "kind": np.dtype("int64"), "curve": np.arange(3.0)},
    "containers": lambda s: {"model": OrderedDict(s), "log": defaultdict(list, a=[1]), "day": datetime.date.today(), "s": {1, 2}, "f": frozenset({1})},
    "a path as a key": lambda s: {"model": s, "files": {Path("a"): 1}},
}  # fmt: skip

SAID: dict[str, tuple[Callable[[State], Any], str]] = {
    "lightning": (lambda s: {"state_dict": {**under("model.")(s), "loss.weight": torch.ones(3), "criterion.pos_weight": torch.ones(1)},
                             "hyper_parameters": {"lr": np.float64(1)}}, "2 of its tensors.*loss.weight, criterion.pos_weight"),
    "a loss beside it": (lambda s: {**s, "criterion.pos_weight": torch.ones(1)}, "criterion.pos_weight"),
    "a profiler's counts": (lambda s: {**s, "conv.total_ops": torch.ones(1)}, "conv.total_ops"),
    "ema beside it": (lambda s: {"state_dict": other(s), "state_dict_ema": s}, "averaged weights .'state_dict_ema'.*not 'state_dict'"),
    "averaged": (lambda s: {"model": other(s), "model_ema": {"n_averaged": torch.tensor(3), **under("module.")(s)}}, "n_averaged"),
    "teacher and student": (lambda s: {**under("student.")(other(s)), **under("teacher.")(s)}, "student.conv.weight"),
}  # fmt: skip


def loaded(content: Any, path: Path) -> tuple[Net, list[str]]:
    torch.save(content, path)
    fresh, said = Net().eval(), []
    said += checkpoint.fit(fresh, checkpoint.read(path, said.append), path)
    return fresh, said


def check(fresh: nn.Module, net: nn.Module, near: float = 0) -> None:
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(fresh(x), net(x), rtol=near, atol=near)


@pytest.mark.parametrize("case", NOTHING_SAID)
def test_what_plain_torch_loads_is_loaded(case: str, tmp_path: Path) -> None:
    net = trained()
    fresh, said = loaded(NOTHING_SAID[case](net.state_dict()), tmp_path / "w.pth")
    assert said == []
    check(fresh, net, 5e-3 if case == "half" else 0)


@pytest.mark.parametrize("case", SAID)
def test_what_is_left_out_is_said_in_a_line(case: str, tmp_path: Path) -> None:
    net = trained()
    wrap, text = SAID[case]
    fresh, said = loaded(wrap(net.state_dict()), tmp_path / "w.pth")
    assert re.search(text, " ".join(said))
    assert not any("\n" in line for line in said)
    check(fresh, net)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: {k: v for k, v in s.items() if "head" not in k}, r"2 missing \(head.weight, head.bias\)"),
        (lambda s: under("model.")({k: v for k, v in s.items() if "head" not in k}), r"2 missing \(head.weight"),
        (lambda s: {k: v for k, v in s.items() if "running_mean" not in k}, r"1 missing \(norm.running_mean"),
        (lambda s: {**s, "extra.weight": torch.ones(1)}, r"1 unexpected \(extra.weight"),
        (lambda s: under("net.")({**s, "extra.weight": torch.ones(1)}), r"1 unexpected \(extra.weight"),
        (lambda s: {**s, "conv.weight": torch.ones(4, 3, 5, 5)}, "conv.weight: 4x3x5x5 instead of 4x3x3x3"),
        (lambda s: {**under("a.")(s), **under("b.")(s)}, "several networks.*a., b."),
        (lambda s: {"x": torch.ones(2)}, "missing.*1 unexpected"),
    ],
)
def test_what_would_leave_a_part_random_is_refused(change: Callable[[State], State], text: str, tmp_path: Path) -> None:
    with pytest.raises(VisxError, match=text):
        loaded(change(trained().state_dict()), tmp_path / "w.pth")


def test_torchvisions_older_names(tmp_path: Path) -> None:
    dense = models.densenet121(weights=None).eval()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", k): v for k, v in dense.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    vit = models.vit_b_32(weights=None, num_classes=3).eval()
    older = {
        k.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): v for k, v in vit.state_dict().items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in older
    for name, module, state in (("densenet121", dense, old), ("vit_b_32", vit, older)):
        torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "w.pth")
        model = load_model(name, str(tmp_path / "w.pth"))
        now = model.module.state_dict()
        assert all(torch.equal(now[k], v) for k, v in module.state_dict().items() if "num_batches" not in k)


def test_lazy_layers_and_extra_state(tmp_path: Path) -> None:
    class Extra(Net):
        scale = 1.0

        def get_extra_state(self) -> Any:
            return {"scale": self.scale}

        def set_extra_state(self, state: Any) -> None:
            self.scale = state["scale"]

    net, fresh = Extra(), Extra()
    net.scale = 4.0
    torch.save(under("model.")(net.state_dict()), tmp_path / "w.pth")
    assert checkpoint.fit(fresh, checkpoint.read(tmp_path / "w.pth"), tmp_path) == []
    assert fresh.scale == 4.0
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU())
    made = copy.deepcopy(lazy)
    made(torch.rand(1, 3, 8, 8))
    torch.save(made.state_dict(), tmp_path / "l.pth")
    state = checkpoint.read(tmp_path / "l.pth")
    assert checkpoint.classes_in(lazy, state) is None
    checkpoint.fit(lazy, state, tmp_path)
    check(lazy, made)


def test_a_compiled_module_takes_a_plain_checkpoint(tmp_path: Path) -> None:
    net, fresh = trained(), Net().eval()
    fresh.conv = torch.compile(fresh.conv, backend="eager")  # type: ignore[assignment]
    torch.save(net.state_dict(), tmp_path / "w.pth")
    assert checkpoint.fit(fresh, checkpoint.read(tmp_path / "w.pth"), tmp_path) == []
    check(fresh, net)


def test_safetensors_with_metadata(tmp_path: Path) -> None:
    net, fresh = trained(), Net().eval()
    save_file(net.state_dict(), tmp_path / "w.safetensors", {"format": "pt", "epoch": "3"})
    checkpoint.fit(fresh, checkpoint.read(tmp_path / "w.safetensors"), tmp_path)
    check(fresh, net)


@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("w.onnx", 2, "-M FILE.onnx"), ("w.pt2", 2, "torch.export.load"), ("w.h5", 2, "FILE.py:FACTORY"),
        ("model.safetensors.index.json", 2, "several files"),
    ],
)  # fmt: skip
def test_files_of_other_kinds_are_told(name: str, code: int, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(VisxError) as error:
        load_model("resnet18", str(tmp_path / name))
    assert error.value.code == code
    assert text in str(error.value)


@pytest.mark.filterwarnings("ignore")
def test_whole_networks_are_told(tmp_path: Path) -> None:
    torch.jit.script(nn.Sequential(nn.Linear(2, 2))).save(tmp_path / "s.pt")
    with pytest.raises(VisxError, match="TorchScript archive") as error:
        load_model("resnet18", str(tmp_path / "s.pt"))
    assert "torch.jit.load" in error.value.hint
    torch.save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "m.pt")
    with pytest.raises(VisxError, match=r"more than tensors.*Sequential") as error:
        load_model("resnet18", str(tmp_path / "m.pt"))
    assert "state_dict" in error.value.hint


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("model.pt", "-M resnet50 -w model.pt"), ("a/model.PTH", "-w a/model.PTH"), ("w.safetensors", "-w w.safetensors"),
        ("w.ckpt", "-w w.ckpt"), ("net.h5", "FILE.py:FACTORY"),
    ],
)  # fmt: skip
def test_a_file_as_the_model_points_the_way(spec: str, text: str) -> None:
    with pytest.raises(VisxError) as error:
        load_model(spec)
    assert error.value.code == 2
    assert text in error.value.hint


class Call:
    """A pickle that calls something harmless-looking or named in the list with arguments."""

    def __init__(self, *what: Any) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return self.what


def test_names_that_are_allowed_execute_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(argparse.Namespace, "__init__", lambda self, **_: made.append(self))
    state = trained().state_dict()
    torch.save({"model": state, "args": Call(argparse.Namespace, ())}, tmp_path / "w.pth")
    checkpoint.read(tmp_path / "w.pth")
    assert made == []
    for bad in (
        Call(eval, ("1",)),
        Call(getattr, (1, "real")),
        Call(__import__, ("os",)),
        Call(Path.unlink, (tmp_path / "w.pth",)),
    ):
        torch.save({"model": state, "x": bad}, tmp_path / "x.pth")
        with pytest.raises(VisxError, match="runs no code"):
            checkpoint.read(tmp_path / "x.pth")
    assert (tmp_path / "w.pth").exists()


def test_a_file_that_was_cut_off_and_one_that_holds_a_part(tmp_path: Path) -> None:
    whole = trained().state_dict()
    torch.save(whole, tmp_path / "w.pth")
    data = (tmp_path / "w.pth").read_bytes()
    for size in (len(data) // 2, len(data) - 20):
        (tmp_path / "w.pth").write_bytes(data[:size])
        with pytest.raises(VisxError, match=r"w\.pth is damaged: a part of it is missing") as error:
            checkpoint.read(tmp_path / "w.pth")
        assert error.value.hint == "copy or download it again"
    with pytest.raises(VisxError) as error:
        loaded({k: v for k, v in whole.items() if "head" not in k}, tmp_path / "w.pth")
    assert "a part of the network alone" in error.value.hint


def test_a_module_that_refuses_to_load_says_why_itself(tmp_path: Path) -> None:
    from torchvision.models import mnasnet0_5

    net = mnasnet0_5(weights=None)
    torch.save(dict(net.state_dict()), tmp_path / "w.pth")  # without the version that mnasnet asks for
    with pytest.raises(VisxError, match=r"does not fit the model: version sh(?:ould|luld) be set"):
        checkpoint.fit(net, checkpoint.read(tmp_path / "w.pth"), tmp_path / "w.pth")
