"""Mutation fuzzing of everything that reads a stranger's bytes: images, checkpoints, stored maps and manifests.

    python tests/fuzz.py --inputs 20000 --seed 0

Every input is a valid file of some format, changed (`mutations.py`). A loader may read it or refuse it with a `VisxError`;
any other exception, an input that takes longer than is allowed, and memory that grows are findings: they are printed and
written to `--keep FOLDER`, and the exit code is 1. The same seed makes the same inputs, but for
checkpoints of the format before zip files: PyTorch writes memory addresses into those.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save
from torch import nn

from mutations import vary
from visx.drift import Comparison
from visx.errors import VisxError
from visx.files import npy_bytes, to_json
from visx.images.decode import decode
from visx.images.find import Item
from visx.images.geometry import Preprocess
from visx.models import checkpoint
from visx.store.manifest import Journal
from visx.store.read import read_map, read_results
from visx.store.record import Record
from visx.store.recorder import Recorder

GROWTH = 1.25  # memory at the end over that after a tenth of the inputs
ALLOWED = 5.0  # seconds of wall clock an input may take
PREPROCESSES = (
    Preprocess(256, (224, 224)),
    Preprocess((40, 30), (32, 32), "bicubic", fit="inside", fill=(9, 9, 9)),
    Preprocess(None, (32, 32)),
)
Check = Callable[[bytes, Path], object]


class Hang(BaseException):
    """An input took longer than `ALLOWED`. Not an Exception: nothing under test may catch it."""


@dataclass(frozen=True)
class Loader:
    """Something that reads bytes: valid files to start from, and `check`, which reads one (through a file in a folder of
    its own where it needs one)."""

    name: str
    seeds: list[bytes]
    check: Check


@dataclass
class Figures:
    """What a run came to: inputs read and refused by loader, findings, the slowest input, and memory in MiB."""

    read: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[str, str, bytes]] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    memory: list[float] = field(default_factory=list)


def loaders() -> list[Loader]:
    """All that is fuzzed."""
    return [
        Loader("image", list(_images()), _decode),
        Loader("checkpoint .pth", list(_checkpoints()), lambda data, folder: _fit(data, folder / "w.pth")),
        Loader("checkpoint .safetensors", _safetensors(), lambda data, folder: _fit(data, folder / "w.safetensors")),
        Loader("manifest", _manifests(), _manifest),
        Loader("map", [npy_bytes(np.eye(8)), npy_bytes(np.ones((3, 40)))], _map),
    ]


def _images() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (24, 31, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (16, 20), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 300, zip=True)
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    gray, palette, clear = rgb.convert("L"), rgb.quantize(16), rgb.convert("RGBA")
    light = Image.fromarray(rng.random((24, 31), dtype=np.float32))
    wanted: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif}), (rgb, "JPEG", {"progressive": True}), (rgb.convert("CMYK"), "JPEG", {}),
        (gray, "JPEG", {}), (rgb, "PNG", {"pnginfo": text}), (deep, "PNG", {}), (palette, "PNG", {"transparency": 3}),
        (clear, "PNG", {"exif": exif}), (rgb.convert("1"), "PNG", {}), (rgb, "WEBP", {}), (clear, "WEBP", {"lossless": True}),
        (rgb, "WEBP", frames), (rgb, "TIFF", {}), (deep, "TIFF", {}), (light, "TIFF", {}),
        *((rgb, "TIFF", {"compression": c}) for c in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")),
        (rgb.convert("1"), "TIFF", {"compression": "group4"}), (rgb, "BMP", {}), (palette, "BMP", {}), (palette, "GIF", {}),
        (rgb, "GIF", {**frames, "transparency": 2}), (rgb, "PPM", {}), (rgb, "EPS", {}), (rgb, "TGA", {}), (rgb, "ICO", {}),
        (rgb, "PCX", {}), (rgb, "SGI", {}), (rgb, "DDS", {}), (rgb, "MPO", frames),
    ]  # fmt: skip
    for image, kind, options in wanted:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        yield buffer.getvalue()


def _decode(data: bytes, folder: Path) -> None:
    picture = decode(data)
    assert picture.rgb.dtype == np.uint8
    assert picture.rgb.ndim == 3
    assert picture.rgb.shape[2] == 3
    for preprocess in PREPROCESSES:
        x, place = preprocess(picture.rgb)
        assert x.shape == (3, *preprocess.crop)
        assert x.dtype == np.float32
        assert np.isfinite(x).all()
        assert all(np.isfinite(place.box))


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5))


def _checkpoints() -> Iterator[bytes]:
    state = _network().state_dict()
    for content in (state, {"epoch": 3, "model": {f"module.{k}": v.half() for k, v in state.items()}}):
        for zipped in (True, False):
            buffer = io.BytesIO()
            torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
            yield buffer.getvalue()


def _safetensors() -> list[bytes]:
    state = _network().state_dict()
    return [save(state), save({f"module.{k}": v.half() for k, v in state.items()}, {"format": "pt"})]


def _fit(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    state = checkpoint.read(path)
    module = _network()
    classes = checkpoint.classes_in(module, state)
    assert classes is None or classes < len(data), "a head larger than its file"
    checkpoint.fit(module, state, path)
    checkpoint.digest_state(module)


def record(name: str, rank: int = 0, targets: int = 1) -> dict[str, Any]:
    """A manifest's record, as `visx explain` writes it."""
    files = {"npy": f"{name}/gradcam.0.npy", "overlay": f"{name}/gradcam.0.png", "native": None, "channels": None}
    return {
        "schema_version": 1, "image": f"photos/{name}", "method": "gradcam", "params": {"relu": True}, "model": "m",
        "weights": {"name": "w", "sha256": "0"}, "preprocessing": {}, "fingerprint": None, "layer": "relu", "layer_shape": [4, 8, 8], "target": 0, "label": "a \ud800 \n",
        "score": 1.5, "score_kind": "logit", "probability": 0.25, "seed": 0, "device": "cpu", "precision": "fp32",
        "input_size": [4, 4], "crop": [0.0, 0.0, 4.0, 4.0], "min": 0.0, "max": 1.0, "extras": {"gap": [0.5, 1.0]},
        "warnings": ["w"], "files": files, "name": name, "written": {"npy": [64, 0, _ZEROS], "overlay": [64, 0, _ZEROS]}, "rendering": {"colormap": "turbo", "alpha": 0.5},
        "raw_channels": False, "image_sha256": "0" * 64, "image_stat": [10, 20], "settings": "s", "recipe": "r",
        "seconds": 0.1, "targets": targets, "rank": rank,
    }  # fmt: skip


def _manifests() -> list[bytes]:
    error = {"schema_version": 1, "image": "x", "method": None, "error": {"code": 1, "message": "m", "hint": ""}}
    lines = [record("a.png"), record("b.png", 0, 2), record("b.png", 1, 2), error, record("a.png")]
    return ["".join(to_json(line) + "\n" for line in lines[:count]).encode() for count in (1, 5)]


_ZEROS = hashlib.sha256(b"0" * 64).hexdigest()[:16]  # of the files that stand for results


class _Asking(Recorder):
    """A recorder that asks for one known job, without a model."""

    def __init__(self, out: Path) -> None:
        self.settings: Any = SimpleNamespace(
            out=out, overlay=True, rendering=record("a")["rendering"], raw_channels=False
        )
        self._fingerprint = None

    def _settings_of(self, *_: object) -> str:
        return "s"

    def _named_alike(self, *_: object) -> bool:
        return True


def _manifest(data: bytes, folder: Path) -> None:
    from visx.cli.explain import _line

    path = folder / "manifest.jsonl"
    path.write_bytes(data)
    for name in ("gradcam.0.npy", "gradcam.0.png"):
        file = folder / "a.png" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"0" * 64)
    with Journal(folder) as journal:
        journal.read()
        for name in ("a.png", "b.png"):
            done = _Asking(folder).done(journal, Item(Path(name), name), None, None, (10, 20), lambda: "")  # type: ignore[arg-type]
            for found in done:  # what the runner and the command do with it
                json.loads(found.line)
                _line(found, folder).encode()
        journal.append([Record.of_values(record("c.png"))])
        assert path.read_bytes().endswith(to_json(record("c.png")).encode() + b"\n")
    for stored in read_results(folder):
        row = Comparison.of(stored)
        assert all(isinstance(s, str) for s in (row.image, row.layer, row.target, stored.record.variant))
        with contextlib.suppress(VisxError):
            stored.map()


def _map(data: bytes, folder: Path) -> None:
    path = folder / "map.npy"
    path.write_bytes(data)
    values = read_map(path)
    assert values.ndim == 2
    assert np.isfinite(values).all()


def fuzz(count: int, seed: int, folder: Path, said: Callable[[str], None] = lambda text: None) -> Figures:
    """Feed `count` inputs to the loaders, in turn."""
    figures, rng = Figures(), random.Random(seed)
    picked = [loader for loader in loaders() for _ in range(6 if loader.name == "image" else 2)]

    def late(signum: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, late)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as the command does
            for number in range(count):
                loader = picked[number % len(picked)]
                data = vary(rng.choice(loader.seeds), rng.choice(loader.seeds), rng)
                _one(loader, data, folder, figures)
                if number % max(1, count // 10) == count // 10 - 1 or number == count - 1:
                    figures.memory.append(_resident())
                    said(f"{number + 1} inputs, {len(figures.findings)} findings, {figures.memory[-1]:.0f} MiB")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return figures


def _one(loader: Loader, data: bytes, folder: Path, figures: Figures) -> None:
    begun = time.process_time()
    faulthandler.dump_traceback_later(6 * ALLOWED, exit=True)  # stuck in a library, where no signal gets through
    signal.setitimer(signal.ITIMER_REAL, ALLOWED)
    try:
        loader.check(data, folder)
        figures.read[loader.name] += 1
    except VisxError as error:
        figures.refused[loader.name] += 1
        if "\n" in error.message:
            figures.findings.append((loader.name, f"a message of several lines: {error.message!r}", data))
    except (Exception, Hang) as error:
        figures.findings.append((loader.name, f"{type(error).__name__}: {str(error)[:300]}", data))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    figures.slowest = max(figures.slowest, (time.process_time() - begun, loader.name))


def _resident() -> float:
    """This process's memory in MiB; the most there ever was where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return peak()


def peak() -> float:
    """The most memory this process ever had, in MiB."""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="write the inputs that were findings here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        figures = fuzz(options.inputs, options.seed, Path(folder), lambda text: print(text, file=sys.stderr))
    if figures.memory[-1] > GROWTH * figures.memory[0]:
        figures.findings.append(("all", "memory grew", b""))
    for loader in loaders():
        print(f"{loader.name}: {figures.read[loader.name]} read, {figures.refused[loader.name]} refused")
    print(f"slowest: {figures.slowest[0]:.2f} s of processor time ({figures.slowest[1]})")
    print(
        f"memory: {figures.memory[0]:.0f} MiB after a tenth, {figures.memory[-1]:.0f} at the end, {peak():.0f} at most"
    )
    print(f"findings: {len(figures.findings)}")
    for number, (name, text, data) in enumerate(figures.findings):
        print(f"  {number} {name}: {text}")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{number}.bin").write_bytes(data)
    raise SystemExit(bool(figures.findings))


if __name__ == "__main__":
    main()
