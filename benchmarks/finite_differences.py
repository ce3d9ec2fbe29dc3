"""Gradients of one image against finite differences, for one network of every family of timm and torchvision.

    python benchmarks/finite_differences.py                  # all families of `sweep.py`; resumes where it stopped
    python benchmarks/finite_differences.py --only 'timm/x*' # a part, anew
    python benchmarks/finite_differences.py --table          # only write benchmarks/finite_differences.md

Everything in float64, random weights, one picture of noise alone (a batch of one is where PyTorch's own backward pass of
batch normalisation errs); in the plain layout, as a module handed in has it, or with `--layout loaded` in that of models
that visx loads. Along two directions, the gradient's own and one at random, the slope of a logit by central
differences is compared with what the gradient promises: `error` is the larger deviation, as a part of the gradient's norm
times the direction's. Steps from 1e-4 to 1e-9 are tried, since a step may meet a kink; a wrong gradient fails at all.
"""

from __future__ import annotations

import argparse
import json
import time
from fnmatch import fnmatch
from pathlib import Path

import torch
from sweep import families, load, smallest
from torch import Tensor, nn

from visx.network.network import Network

HERE = Path(__file__).parent
DONE = HERE / "finite_differences.jsonl"
ENOUGH = 1e-5  # an error below this needs no other step
STEPS = (1e-6, 1e-5, 1e-4, 1e-7, 1e-8, 1e-9)

NOTE = """An error above 1e-3 stands beside a gradient so small that differences of the logits, known to 1e-16 of their size, do not
show it; all others agree. Without `visx/network/norms.py` the plain rows of `timm/efficientformer_l1` and `timm/xcit_*` have an
error of 1.
"""


def slope(module: nn.Module, x: Tensor, direction: Tensor, step: float) -> float:
    """d logit 0 / d direction, by central differences."""
    with torch.no_grad():
        high, low = (float(module(x + sign * step * direction)[0, 0]) for sign in (1, -1))
    return (high - low) / (2 * step)


def check(spec: str, layout: str) -> dict[str, object]:
    """One network's row."""
    start = time.perf_counter()
    model = load(spec)
    module = model.module.double()
    if layout == "plain":
        module = module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network = Network(module, channels_last=layout == "loaded" and model.channels_last)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, *model.input_size, generator=generator, dtype=torch.float64)
    with network.session():
        found = network.input_gradients(x, lambda values: values[:, :1])
        grad = found.grads[:, 0].double()
        norm = float(grad.norm())
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        errors = []
        for direction in (grad / max(norm, 1e-300), noise / noise.norm()):
            promised, best = float((grad * direction).sum()), float("inf")
            for step in STEPS:
                best = min(best, abs(slope(network.module, x, direction, step) - promised) / max(norm, 1e-300))
                if best < ENOUGH:
                    break
            errors.append(best)
    return {
        "model": spec,
        "layout": layout,
        "error": max(errors),
        "norm": norm,
        "seconds": round(time.perf_counter() - start, 1),
    }


def write_table() -> None:
    """The table of what is kept, the worst first."""
    rows = [json.loads(line) for line in DONE.read_text().splitlines()]
    lines = ["| network | layout | error | norm of the gradient |", "| --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda r: -r.get("error", float("inf"))):
        figures = f"{row['error']:.1e} | {row['norm']:.2g}" if "error" in row else f"{row['failed']} |"
        lines.append(f"| `{row['model']}` | {row['layout']} | {figures} |")
    (HERE / "finite_differences.md").write_text("\n".join(lines) + "\n\n" + NOTE)


def main() -> None:
    """Check what is asked for, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="*", help="families that match this pattern")
    parser.add_argument("--most", type=float, default=30e6, help="networks of more parameters are left out")
    parser.add_argument("--layout", choices=["plain", "loaded"], default="plain")
    parser.add_argument("--table", action="store_true", help="only write the table")
    asked = parser.parse_args()
    rows = [json.loads(line) for line in DONE.read_text().splitlines()] if DONE.exists() else []
    done = {row["model"] for row in rows if row["layout"] == asked.layout}
    for family, names in {} if asked.table else families().items():
        if not fnmatch(family, asked.only):
            continue
        spec, count = smallest(family, names)
        if count > asked.most or (spec in done and asked.only == "*"):
            continue
        try:
            row = check(spec, asked.layout)
        except Exception as error:  # a detector, a network without pictures: the table says why
            row = {
                "model": spec,
                "layout": asked.layout,
                "failed": f"{type(error).__name__}: {error}".splitlines()[0][:100],
            }
        with DONE.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    write_table()


if __name__ == "__main__":
    main()
