"""A tiny network in a file of one's own, pictures, and the command run in this process."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visx import cli

NETS = """
import torch, visx
from torch import nn
class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Linear(8, classes)
    def forward(self, x):
        return self.head(self.relu(self.conv(x)).mean((2, 3)))
def wrapped(module, **options):
    return visx.wrap(module, size=32, **options)
def good():
    return wrapped(Net(), labels=["ant", "bee", "cat", "tom cat", "dog"])
def plain():
    return Net()
class Tuple(Net):
    def forward(self, x): return super().forward(x), 1
class Pair(Net):
    def forward(self, x): return super().forward(x), super().forward(x)[:, :3]
class Dict(Net):
    def forward(self, x): return {"logits": super().forward(x)}
class BrightIsNaN(Net):
    def forward(self, x):
        return super().forward(x) + torch.where(x.mean((1, 2, 3)) > 1, float("nan"), 0.0)[:, None]
class Raises(Net):
    def forward(self, x): raise ValueError("inner\\nsecond line")
def pair(): return wrapped(Pair())
def tuple_(): return wrapped(Tuple())
def dict_(): return wrapped(Dict())
def one(): return wrapped(Net(1))
def nan(): return wrapped(BrightIsNaN())
def zero():
    net = Net()
    nn.init.zeros_(net.head.weight)
    return wrapped(net)
def forward(): return wrapped(Raises())
def raising(): raise RuntimeError("boom\\nsecond line")
def leaving(): raise SystemExit(7)
def nothing(): return None
def mislabelled(): return wrapped(Net(), labels=["ant"])
"""


@dataclass
class Outcome:
    """What a command left behind: exit code, standard output and error."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Standard output as JSON Lines; NaN and infinity are no JSON."""

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} in JSON")

        return [json.loads(line, parse_constant=refuse) for line in self.out.splitlines()]


class Left(BaseException):
    """Stands for os._exit."""


@pytest.fixture
def visx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """`visx("explain", ...)` in this process, in a folder with `nets.py` and the picture `cat.png`."""
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(NETS)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save("cat.png")

    def run(*args: str, stdin: bytes = b"") -> Outcome:
        codes: list[int] = []

        def leave(code: int) -> None:
            codes.append(code)
            raise Left

        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["visx", *map(str, args)])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            patch.setattr(cli.os, "_exit", leave)
            patch.setattr(cli.signal, "signal", lambda *a: None)
            capfd.readouterr()
            with pytest.raises(Left):
                cli.main()
        seen = capfd.readouterr()
        assert "Traceback" not in seen.err
        return Outcome(codes[0], seen.out, seen.err)

    return run


@pytest.fixture
def explain(visx: Any) -> Any:
    """`explain(...)`: `visx explain` with the tiny network."""
    return lambda *args, net="good", **options: visx("explain", "-M", f"nets.py:{net}", *args, **options)
