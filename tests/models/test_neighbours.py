"""Files of one's own: each has its own neighbours, whatever their names, and nobody else notices."""

from __future__ import annotations

import copy
import dataclasses
import gc
import inspect
import pickle
import re
import sys
import typing
from pathlib import Path

import pytest
import torch
from torch import nn

from visx.errors import VisxError
from visx.models import load_model

NET = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)
    def forward(self, x):
        return self.head(x.mean((2, 3))) * {factor}
"""


def write(folder: Path, **files: str) -> Path:
    """`a__b="..."` is the file `a/b.py`."""
    for name, text in files.items():
        path = folder / (name.replace("__", "/").replace("DOT", "__") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def factor(model: object) -> float:
    """What a network of `NET` multiplies by."""
    module: nn.Module = model.module  # type: ignore[attr-defined]
    x = torch.ones(1, 3, 8, 8)
    with torch.no_grad():
        return round(float((module(x) / module.head(x.mean((2, 3)))).mean()), 3)


TWO = {
    "a module": {"model": "from blocks import Net\ndef make(): return Net()", "blocks": NET},
    "a package": {"model": "import parts.blocks\ndef make(): return parts.blocks.Net()", "parts__DOTinitDOT": "", "parts__blocks": NET},
    "relative in a package": {
        "model": "from parts import Net\ndef make(): return Net()", "parts__DOTinitDOT": "from .blocks import Net", "parts__blocks": NET,
    },
    "a plain folder": {"model": "import parts.blocks as b\ndef make(): return b.Net()", "parts__blocks": NET},
    "the file itself in a package": {"DOTinitDOT": "", "model": "from .blocks import Net\nfrom . import blocks\ndef make(): return blocks.Net()", "blocks": NET},
    "a circle": {
        "model": "import blocks\nFACTOR = {factor}\ndef make(): return blocks.Net()",
        "blocks": "import model\n" + NET.replace("{factor}", "model.FACTOR"),
    },
    "in the factory": {"model": "def make():\n    from blocks import Net\n    return Net()", "blocks": NET},
    "by importlib": {"model": "import importlib\ndef make(): return importlib.import_module('blocks').Net()", "blocks": NET},
    "in forward": {
        "model": NET.replace("return", "import late; from late import FACTOR; return").replace("{factor}", "FACTOR") + "\ndef make(): return Net()",
        "late": "FACTOR = {factor}",
    },
    "on sys.path": {
        "model": "import os, sys\nsys.path.insert(0, os.path.join(os.path.dirname(__file__), 'src'))\nfrom blocks import Net\ndef make(): return Net()",
        "src__blocks": NET,
    },
    "named like an installed package": {"model": "from timm import Net\ndef make(): return Net()", "timm": NET},
    "named like Python's own": {"model": "from types import Net, SimpleNamespace\ndef make(): return Net()", "types": NET + "\nSimpleNamespace = 1"},
    "unpickled": {
        "model": "import pickle\ndef make(): return pickle.loads(b'cblocks\\nNet\\n.')()", "blocks": NET,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", TWO)
def test_two_files_of_one_name_run_their_own_code(case: str, tmp_path: Path) -> None:
    before, path, finders = dict(sys.modules), list(sys.path), len(sys.meta_path)
    models = []
    for number in (2, 3):
        files = {name: text.replace("{factor}", str(number)) for name, text in TWO[case].items()}
        models.append(load_model(f"{write(tmp_path / f'v{number}', **files) / 'model.py'}:make"))
    assert [factor(model) for model in models] == [2, 3]
    assert [factor(model) for model in models] == [2, 3]  # also after both have run
    new = {name for name, module in sys.modules.items() if before.get(name) is not module}
    assert not {name for name in new if name.partition(".")[0] in ("model", "blocks", "parts", "late", "timm", "types")}
    assert sys.path == path
    assert len(sys.meta_path) <= finders + 1
    assert not list(tmp_path.rglob("__pycache__"))


def test_an_edit_within_one_second_is_seen(tmp_path: Path) -> None:
    for number in (2, 3, 4):
        write(tmp_path, model=TWO["a module"]["model"], blocks=NET.replace("{factor}", str(number)))
        assert factor(load_model(f"{tmp_path / 'model.py'}:make")) == number


def test_what_looks_a_class_up_by_its_module_finds_it(tmp_path: Path) -> None:
    blocks = (
        NET.replace("{factor}", "2")
        + """
import dataclasses
@dataclasses.dataclass
class Size:
    side: "int" = 3
    net: "Net | None" = None
"""
    )
    for folder in ("v1", "v2"):
        write(
            tmp_path / folder,
            blocks=blocks,
            model="from blocks import Net, Size\ndef make():\n    net = Net()\n    net.size = Size()\n    return net",
        )
    one, two = (load_model(f"{tmp_path / folder / 'model.py'}:make").module for folder in ("v1", "v2"))
    for net, folder in ((one, "v1"), (two, "v2")):
        kind = type(net)
        assert Path(inspect.getfile(kind)) == tmp_path / folder / "blocks.py"
        assert "def forward" in inspect.getsource(kind)
        assert typing.get_type_hints(type(net.size))["net"] == (kind | None)
        assert type(copy.deepcopy(net)) is type(pickle.loads(pickle.dumps(net))) is kind
        assert dataclasses.replace(net.size, side=4).side == 4
        x = torch.rand(1, 3, 4, 4)
        assert torch.equal(torch.jit.script(net)(x), net(x))
    assert type(one) is not type(two)


def test_installed_packages_stay_what_they_are(tmp_path: Path) -> None:
    import timm

    write(tmp_path, timm="import timm\n" + NET.replace("{factor}", "2") + "\nassert timm.create_model\ndef make(): return Net()",
          queue="raise RuntimeError", model="import queue, timm\nfrom torch import nn\nqueue.Queue\ndef make(): return timm.make()")  # fmt: skip
    assert (
        factor(load_model(f"{tmp_path / 'timm.py'}:make")) == 2
    )  # `import timm` inside timm.py means the installed one
    assert factor(load_model(f"{tmp_path / 'model.py'}:make")) == 2  # and beside it, that file
    assert sys.modules["timm"] is timm


def test_the_modules_go_with_the_model(tmp_path: Path) -> None:
    write(tmp_path, **{k: v.replace("{factor}", "2") for k, v in TWO["a package"].items()})
    before = set(sys.modules)
    model = load_model(f"{tmp_path / 'model.py'}:make")
    assert any(name.endswith(".parts.blocks") for name in set(sys.modules) - before)
    del model
    gc.collect()
    assert not {name for name in set(sys.modules) - before if name.startswith("visx_user_")}
    write(tmp_path, model="import parts.blocks\n1 / 0")
    with pytest.raises(VisxError, match="division"):
        load_model(f"{tmp_path / 'model.py'}:make")
    assert not {name for name in set(sys.modules) - before if name.startswith("visx_user_")}


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("def make(classes, *, width): pass", "needs arguments .classes, width.", "def make"),
        ("async def make(): pass", "is async", "plain function"),
        (NET + "def make(): return Net", "the class Net, no instance", r"return Net\(\)"),
        ("make = 3", "is a int", "def make"),
        ("def make(): return 1, 2", "returned a tuple", "return a torch.nn.Module"),
        ("import missing_thing", "No module named 'missing_thing'", ""),
        ("import parts.missing", "No module named 'parts.missing'", ""),
        ("from . import missing", "cannot import name 'missing'", ""),
        ("def make(): import parts.missing", "No module named 'parts.missing'", ""),
    ],
)  # fmt: skip
def test_odd_factories_are_told_in_words(text: str, said: str, hint: str, tmp_path: Path) -> None:
    write(tmp_path, model=text, parts__DOTinitDOT="")
    with pytest.raises(VisxError, match=said) as error:
        load_model(f"{tmp_path / 'model.py'}:make")
    assert "visx_user_" not in str(error.value)
    assert re.search(hint, error.value.hint)
