"""The command in this process, as `main` runs it, without the second that a new process takes; and a toy model for it."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from visx.errors import VisxError

TOY = """
import torch
from torch import nn
import visx

def make():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )
    return visx.wrap(net, size=48, resize=48)
"""


def visx(*args: object) -> SimpleNamespace:
    """Run `visx ARGS`: its exit `code`, `out` and `err`."""
    from visx.cli.app import app

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = app(list(map(str, args)), standalone_mode=False)
        except VisxError as error:
            code = int(error.code)
            print(error, file=err)
    return SimpleNamespace(code=int(code or 0), out=out.getvalue(), err=err.getvalue())


def make_work(folder: Path, names: str) -> Path:
    """`photos/NAME.png` for each letter, coarse colours of 48x48 pixels, and `toy.py` with its factory `make`."""
    random = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for name in names:
        coarse = Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8))
        coarse.resize((48, 48), Image.Resampling.BICUBIC).save(folder / "photos" / f"{name}.png")
    (folder / "toy.py").write_text(TOY)
    return folder
