"""One network of every family: the default layer, and its Grad-CAM against a plain PyTorch program.

    python benchmarks/sweep.py                      # all families of timm, torchvision, transformers; resumes where it stopped
    python benchmarks/sweep.py --only 'timm/swin*'  # a part: anew, shown, and put into the table
    python benchmarks/sweep.py --part 1/2           # the first of two halves, for two processes at a time
    python benchmarks/sweep.py --table              # only write benchmarks/sweep.md from what is there

A family is the first token of a name; its smallest network is taken, with random weights (a head of zeros is filled, and
networks without a head get one of ten classes). Those of transformers are in `sweep_transformers.py`. Rows of families that
are not run stay in the table as they are. For each the map before its ReLU (`gradcam -p relu=false`) at the default
layer is compared with a program that knows nothing of visx: a hook, `autograd.grad`, the mean of the gradient, and a
reshape (float64 where float32 gives less than 0.9999). `places` says whether a change in a corner of the picture shows up
in that corner of the layer (unclear: every cell sees the whole picture, and random weights decide); `cells` how many of the
grid's cells receive a gradient.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import multiprocessing
import os
import re
import sys
import time
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import sweep_transformers
import timm
import torch
import torchvision
from torch import Tensor, nn

import visx
from visx.engine.batch import explain_batch
from visx.engine.jobs import plan
from visx.methods import get_method
from visx.targets.classes import parse_target

HERE = Path(__file__).parent
DONE, TABLE = HERE / "sweep.jsonl", HERE / "sweep.md"
WORDS = [
    "test",
    "atto",
    "femto",
    "pico",
    "nano",
    "zepto",
    "xxtiny",
    "xtiny",
    "tiny",
    "xxs",
    "xs",
    "xxsmall",
    "xsmall",
    "t0",
    "s0",
    "b0",
    "lite",
    "small",
    "mini",
    "s",
]
TIMEOUT = 300  # seconds a network
LEAST = 0.02  # of a map's side: a smaller shift tells nothing
LARGE = 80e6  # parameters; these come last


def families() -> dict[str, list[str]]:
    """Family -> names, those first that are likely to be small."""

    def size(name: str) -> tuple[int, list[int], int]:
        parts = re.split(r"[_.\-]", name)
        return (
            min([WORDS.index(p) for p in parts if p in WORDS] + [len(WORDS)]),
            [int(n) for n in re.findall(r"\d+", name)],
            len(name),
        )

    found: dict[str, list[str]] = {}
    for name in timm.list_models():
        found.setdefault("timm/" + name.split("_")[0], []).append(name)
    for name in torchvision.models.list_models(torchvision.models):
        found.setdefault(re.split(r"_|(?<=[a-z])\d", name)[0], []).append(name)
    found |= {family: [family] for family in sweep_transformers.FAMILIES}
    return {family: sorted(names, key=size) for family, names in sorted(found.items())}


def smallest(family: str, names: list[str]) -> tuple[str, float]:
    """The network of fewest parameters, of the likely ones, and how many it has."""

    def parameters(name: str) -> float:
        try:
            with torch.device("meta"):
                module = timm.create_model(name) if family.startswith("timm/") else torchvision.models.get_model(name)
            return sum(p.numel() for p in module.parameters())
        except Exception:  # not every network can be built without memory
            return 1e9

    if family in sweep_transformers.FAMILIES:
        return family, 0
    count, name = min((parameters(name), name) for name in names[:3])
    return (f"timm/{name}" if family.startswith("timm/") else name), count


def load(spec: str) -> visx.Model:
    """A network with random weights, a head, and no layer whose weights are all zero."""
    if spec in sweep_transformers.FAMILIES:
        return filled(sweep_transformers.load(spec))
    model = visx.load_model(spec, "random")
    if spec.startswith("timm/") and not getattr(model.module, "num_classes", 1):
        torch.manual_seed(0)
        module = timm.create_model(spec.removeprefix("timm/"), num_classes=10).eval().requires_grad_(False)
        p = model.preprocess
        model = visx.wrap(module, size=p.crop, resize=p.resize, mean=p.mean, std=p.std, name=spec)
    return filled(model)


def filled(model: visx.Model) -> visx.Model:
    """The model, with noise in the place of weights that are all zero."""
    generator = torch.Generator().manual_seed(1)
    for module in model.module.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and not weight.any():
            noise = torch.randn(weight.shape, generator=generator)
            weight.data = 1 + noise * 0.1 if weight.dim() == 1 else noise * 0.02
    return model


def plain(module: nn.Module, layer: str, x: Tensor, grid: tuple[int, int], target: int) -> tuple[np.ndarray, Tensor]:
    """Grad-CAM before its ReLU and the gradient (K, h, w), by PyTorch alone; the layer's last run counts."""
    kept: list[Tensor] = []

    def hook(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().clone().requires_grad_())
        return kept[-1].clone()

    handle = module.get_submodule(layer).register_forward_hook(hook)
    output = module(x)
    logits = output if isinstance(output, Tensor) else output[0]
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[0, target], kept[-1])
    a, g = as_map(kept[-1].detach(), grid), as_map(gradient, grid)
    return (a * g.mean((1, 2), keepdim=True)).sum(0).double().numpy(), g


def as_map(output: Tensor, grid: tuple[int, int]) -> Tensor:
    """An output of one image as (K, h, w), by the shape of the grid alone."""
    height, width = grid
    values = output[0] if output.shape[0] == 1 else output[:, 0]
    if values.dim() == 3 and tuple(values.shape[1:]) == grid:
        return values
    if values.dim() == 3 and tuple(values.shape[:2]) == grid:
        return values.permute(2, 0, 1)
    if values.dim() == 2 and values.shape[0] >= height * width:  # tokens, others first
        return values[-height * width :].t().reshape(-1, height, width)
    raise ValueError(f"{tuple(output.shape)} is no {grid}")


def corners(module: nn.Module, layer: str, x: Tensor, grid: tuple[int, int]) -> bool | None:
    """Whether changes in three corners of the picture move the middle of the layer's change the same way; None where it moves by
    less than `LEAST` of the map's side: then every cell sees the whole picture, and random weights decide where it moves."""
    kept: list[Tensor] = []
    handle = module.get_submodule(layer).register_forward_hook(lambda m, a, output: kept.append(output.detach()))
    height, width = (int(n * 0.3) for n in x.shape[-2:])
    with torch.no_grad():
        module(x)
        base, middles = as_map(kept[-1], grid).clone(), []
        for y0, x0 in ((0, 0), (0, x.shape[-1] - width), (x.shape[-2] - height, 0)):
            changed = x.clone()
            changed[..., y0 : y0 + height, x0 : x0 + width] *= 0.9
            module(changed)
            change = (as_map(kept[-1], grid) - base).double().square().sum(0)
            change = change / change.sum()
            y, z = (torch.arange(n, dtype=torch.float64) for n in grid)
            middles.append((float((change.sum(1) * y).sum()), float((change.sum(0) * z).sum())))
    handle.remove()
    (top, left), (_, right), (bottom, _) = middles
    shifts = [by / side for by, side in ((bottom - top, grid[0]), (right - left, grid[1])) if side > 1]
    return None if min(map(abs, shifts)) < LEAST else min(shifts) > 0


def check(spec: str) -> dict[str, Any]:
    """What the table says of one network."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    start = time.perf_counter()
    model = load(spec)
    reference = copy.deepcopy(model.module).to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
    row: dict[str, Any] = {"network": spec, "parameters": sum(p.numel() for p in reference.parameters())}
    anatomy = model.anatomy
    row["grids"] = sum(layer.grid is not None for layer in anatomy.layers)
    if anatomy.default_layer is None:
        return {**row, "layer": None, "reason": anatomy.no_layer}
    layer = next(one for one in anatomy.layers if one.name == anatomy.default_layer)
    assert layer.grid is not None
    row |= {"layer": layer.name, "grid": list(layer.grid.shape), "layout": layer.grid.layout}
    x = torch.randn(1, *model.input_shape, generator=torch.Generator().manual_seed(2))
    target, grid = 3, layer.grid.shape[1:]
    for dtype in (torch.float32, torch.float64):
        if dtype == torch.float64:
            model = visx.wrap(
                copy.deepcopy(reference).double(),
                size=model.preprocess.crop,
                mean=model.preprocess.mean,
                std=model.preprocess.std,
                head=model.head,
            )
            reference = reference.double()
        row |= compared(model, reference, layer.name, x.to(dtype), grid, target)
        row["dtype"] = str(dtype).removeprefix("torch.")
        if row["r"] >= 0.9999:
            break
    row["places"] = corners(reference, layer.name, x.to(dtype), grid)
    return {**row, "seconds": round(time.perf_counter() - start, 1)}


def compared(
    model: visx.Model, reference: nn.Module, layer: str, x: Tensor, grid: tuple[int, int], target: int
) -> dict[str, Any]:
    expected, gradient = plain(reference, layer, x, grid, target)
    (job,) = plan(model, [get_method("gradcam")], [layer], {"gradcam": {"relu": False}})
    network = model.network()
    spec = parse_target(str(target), None, model.classes)
    with network.session():
        (answers,) = explain_batch(model, network, job, x, [spec.for_image("", None, model.classes)], [0])
    if isinstance(answers, visx.VisxError):
        raise answers
    found = answers[0].native if answers[0].native is not None else answers[0].map
    a, b = found.astype(np.float64).ravel(), expected.ravel()
    a, b = a - a.mean(), b - b.mean()
    r = float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-300))
    scale = float(np.abs(expected).max())
    if np.ptp(expected) < 1e-6 * scale:  # the same everywhere: nothing to correlate
        r = 1.0 if np.abs(found - expected).max() < 1e-5 * scale else 0.0
    return {
        "r": r if scale > 0 else float("nan"),
        "off": float(np.abs(found - expected).max() / max(scale, 1e-300)),
        "cells": [int(gradient.ne(0).any(0).sum()), grid[0] * grid[1]],
    }


def child(spec: str, pipe: Any) -> None:
    try:
        pipe.send(check(spec))
    except BaseException as error:
        pipe.send({"network": spec, "error": f"{type(error).__name__}: {error}"[:300]})


def isolated(spec: str) -> dict[str, Any]:
    """`check` in a process of its own, which gives all memory back."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(spec, there))
    process.start()
    there.close()
    try:
        row = here.recv() if here.poll(TIMEOUT) else {"network": spec, "error": f"not done after {TIMEOUT} s"}
    except EOFError:
        row = {"network": spec, "error": "the process died (memory?)"}
    process.terminate()
    process.join()
    return row


def line_of(row: dict[str, Any]) -> str:
    """A row of the table."""
    hugging = row["family"] in sweep_transformers.FAMILIES
    network = sweep_transformers.shown(row["family"]) if hugging else row["network"]
    if not row.get("layer"):
        return f"| {row['family']} | {network} | none: {row.get('reason') or row.get('error')} | | | | | |"
    cells, places = row["cells"], {True: "yes", False: "no", None: "unclear"}[row["places"]]
    r = f"{row['r']:.6f}" + (" (float64)" if row["dtype"] == "float64" else "")
    shape = " x ".join(map(str, row["grid"]))
    return (
        f"| {row['family']} | {network} | `{row['layer']}` | {shape} | {row['layout']} | {r} "
        f"| {cells[0]} of {cells[1]} | {places} |"
    )


def lines_there() -> dict[str, str]:
    """Family -> its row of the table as it is."""
    lines = TABLE.read_text(encoding="utf-8").splitlines() if TABLE.exists() else []
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| family", "| ---"))]
    return {line.split(" | ")[0].removeprefix("| "): line for line in rows}


def table(lines: dict[str, str], count: int) -> str:
    """The Markdown table of the families that were run, of so many."""
    cells = [[cell.strip() for cell in lines[family].split("|")[1:-1]] for family in sorted(lines)]
    have = [row for row in cells if not row[2].startswith("none:")]
    exact = [row for row in have if float(row[5].split()[0]) >= 0.9999]
    versions = f"timm {timm.__version__}, torchvision {torchvision.__version__.split('+')[0]} and transformers {transformers_version()}"
    text = [
        "# Default layers of one network a family",
        "",
        f"{len(cells)} of {count} families were run, each with its smallest network and random weights, of {versions}: "
        f"{len(have)} ({len(have) / max(len(cells), 1):.1%}) have a default layer, for {len(exact)} of "
        f"these Grad-CAM before its ReLU equals a plain PyTorch program (r >= 0.9999), for "
        f"{sum(row[7] == 'yes' for row in have)} changes in the picture's corners are in the map's. "
        "Written by `benchmarks/sweep.py`, whose docstring says what is compared.",
        "",
        "| family | network | layer | K x h x w | layout | r | cells with a gradient | corners |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(lines[family] for family in sorted(lines)),
    ]
    return "\n".join(text) + "\n"


def transformers_version() -> str:
    return importlib.metadata.version("transformers")


def done(family: str, spec: str) -> dict[str, Any]:
    """Check a network, and keep and show what came out."""
    row = {"family": family, **isolated(spec)}
    with DONE.open("a") as file:
        file.write(json.dumps(row) + "\n")
    shown = {k: v for k, v in row.items() if k not in ("family", "network", "parameters")}
    print(f"{family}: {spec}", json.dumps(shown), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PATTERN", help="networks or families to run anew, for instance 'timm/vit*'")
    parser.add_argument("--table", action="store_true", help="write the table from what is there")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="the I-th of N parts of the families")
    options = parser.parse_args()
    rows = {}
    for line in DONE.read_text().splitlines() if DONE.exists() else []:
        row = json.loads(line)
        rows[row["family"]] = row
    part, parts = map(int, options.part.split("/"))
    wanted = [] if options.table else list(families().items())[part - 1 :: parts]
    later: list[tuple[str, str]] = []
    for family, names in wanted:
        if options.only and not any(fnmatch(name, options.only) for name in (family, *(f"timm/{n}" for n in names))):
            continue
        if family in rows and not options.only:
            continue
        spec, count = smallest(family, names)
        if count > LARGE and not options.only:
            later.append((family, spec))
            continue
        rows[family] = done(family, spec)
    for family, spec in later:
        rows[family] = done(family, spec)
    lines = lines_there() | {family: line_of(row) for family, row in rows.items()}
    TABLE.write_text(table(lines, len(families())), encoding="utf-8")
    bad = [row["network"] for row in rows.values() if row.get("error") or (row.get("layer") and not row["r"] >= 0.9999)]
    print(f"{len(lines)} networks; without a right map: {', '.join(bad) or 'none'}", file=sys.stderr)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
