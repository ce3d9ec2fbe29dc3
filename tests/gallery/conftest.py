"""Runs as `visx explain` leaves them, without a network: manifests, maps and pictures that tests can look through."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

HOSTILE = (
    "<script>alert(1)</script>.png",
    "</script><img src=x onerror=alert(2)>.png",
    "quote\" and 'apostrophe' & <b>.png",
    "two\nlines.png",
    "\u202egnp.xelirf.png",
    "تصویر.png",
    "javascript:alert(3).png",
    "100% #1?.png",
)


class RunMaker:
    """Makes a run folder, result by result."""

    hostile = HOSTILE

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "run"
        self.folder.mkdir()

    def image(self, name: str, size: tuple[int, int] = (80, 60), colour: tuple[int, int, int] = (200, 60, 30)) -> Path:
        """A picture (width, height): one colour, with a white square in its middle."""
        pixels = np.full((size[1], size[0], 3), colour, np.uint8)
        pixels[size[1] // 2 - 5 : size[1] // 2 + 5, size[0] // 2 - 5 : size[0] // 2 + 5] = 255
        path = self.root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    def add(
        self, image: Path, method: str = "gradcam", values: np.ndarray | None = None, **changed: Any
    ) -> dict[str, Any]:
        """One result; `changed` replaces keys of its record."""
        if values is None:
            values = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
        target = changed.get("target", 3)
        stem = f"{image.name}/{method}.{target}"
        (self.folder / image.name).mkdir(exist_ok=True)
        np.save(self.folder / f"{stem}.npy", values)
        files = {"npy": f"{stem}.npy", "overlay": None, "native": None, "channels": None}
        record = {
            "schema_version": 1, "image": str(image), "method": method, "params": {}, "model": "toy",
            "weights": {"name": "random", "sha256": "0" * 64}, "layer": "layer4", "layer_shape": None, "target": target,
            "label": "tabby", "score": 2.5, "score_kind": "logit", "probability": 0.5, "seed": 0, "device": "cpu",
            "precision": "fp32", "input_size": [32, 32], "crop": [20.0, 10.0, 60.0, 50.0], "min": float(values.min()),
            "max": float(values.max()), "extras": {}, "warnings": [], "recipe": "0" * 16, "targets": 1,
            "rendering": {"colormap": "turbo", "alpha": 0.5}, "seconds": 0.25, "files": files, **changed,
        }  # fmt: skip
        self.write(record)
        return record

    def write(self, record: Any) -> None:
        """One line of the manifest; text is written as it is."""
        with (self.folder / "manifest.jsonl").open("a") as file:
            file.write((record if isinstance(record, str) else json.dumps(record)) + "\n")

    def error(self, image: Path, message: str, hint: str = "") -> None:
        """An image that failed."""
        error = {"code": 1, "message": message, "hint": hint}
        self.write({"schema_version": 1, "image": str(image), "method": None, "error": error})


@pytest.fixture
def run(tmp_path: Path) -> RunMaker:
    """An empty run to add to."""
    return RunMaker(tmp_path)


@pytest.fixture
def hostile(run: RunMaker) -> RunMaker:
    """A run whose names, labels, warnings and figures are all meant to be taken for markup."""
    for number, name in enumerate(HOSTILE):
        run.add(run.image(name), label=name, target=number, warnings=[f"warned: {name}"], extras={name: float(number)})
    run.error(run.root / "gone" / HOSTILE[0], f"damaged {HOSTILE[0]}", HOSTILE[1])
    return run


@pytest.fixture
def write(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[dict[str, Any], str]]]:
    """`write(run, inline=bytes)` writes the page and returns what was said of it, and the page."""
    from visx.cli.talk import Talk
    from visx.gallery import write_report

    def made(run: RunMaker, inline: int = 8_000_000, out: Path | None = None) -> tuple[dict[str, Any], str]:
        out = out or run.folder / "report.html"
        summary = write_report(run.folder, out, inline, Talk().say, Talk().progress)
        return summary, out.read_text()

    yield made
