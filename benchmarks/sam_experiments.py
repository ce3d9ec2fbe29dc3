"""The experiments of SAM (arXiv:2003.08754) on one ordinary network: how much maps change, for each preset.

    python benchmarks/sam_experiments.py IMAGES --count 8 --out sam-out --table benchmarks/sam_experiments.md

IMAGES is a folder of photographs; the first `--count` by name are used. Each preset is one `visx sensitivity` run, so a run
that was cut off goes on where it stopped. A CPU needs fewer passes than the paper's settings ask for: the presets that
`--full` names take those, the others the settings in REDUCED, and the table says which. What the table shows is reported beside the paper's
claims; nothing is fitted to them, and the paper's adversarially robust networks are not among the models.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

REDUCED = {
    "sam-gradient": (),
    "sam-smoothgrad": (),
    "sam-occlusion": ("stride=5",),  # no wider: patches of 5 would leave gaps
    "sam-lime": ("samples=200",),
    "sam-mp": ("iterations=60",),
}
METRICS = ("ssim", "spearman", "hog")
OWN = ("insertion", "deletion")  # of each setting's own map, in SAM's 28 steps; localisation wants annotated boxes


def run(preset: str, images: list[Path], out: Path, model: str, params: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows that `visx sensitivity --preset` prints."""
    command = [sys.executable, "-c", "from visx.cli import main; main()", "sensitivity", *map(str, images)]
    command += ["--preset", preset, "--model", model, "--out", str(out), "--json"]
    command += ["--metrics", ",".join((*METRICS, *OWN)), *(f"--param={name}.steps=28" for name in OWN)]
    for param in params:
        command += ["--param", param]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def table(rows: list[dict[str, Any]], key: str, metrics: tuple[str, ...]) -> list[str]:
    """Markdown lines: a row a pair, or a setting, a column a metric."""
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        if row[key] is not None:
            names = (row["method"], row["varied"], row[key])
            cells.setdefault(names, {})[row["metric"]] = f"{row['mean']:.3f} ± {row['std']:.3f}"
            if key == "setting" and row["between"] is not None:
                cells.setdefault((*names[:2], "between settings"), {})[row["metric"]] = f"{row['between']:.3f}"
    lines = [f"| method | varied | {key} | {' | '.join(metrics)} |", "| --- " * (3 + len(metrics)) + "|"]
    for (method, varied, name), values in cells.items():
        figures = " | ".join(values.get(metric, "-") for metric in metrics)
        lines.append(f"| {method} | {varied} | {name.replace(' | ', ' / ')} | {figures} |")
    return lines


def overall(rows: list[dict[str, Any]], method: str, varied: str) -> str:
    """The three figures over all pairs of a group, as a sentence has them."""
    found = {r["metric"]: r["mean"] for r in rows if (r["method"], r["varied"], r["pair"]) == (method, varied, "all")}
    return ", ".join(f"{name} {found[name]:.2f}" for name in METRICS if name in found) or "not run"


def claims(rows: list[dict[str, Any]]) -> list[str]:
    """Each claim of the paper beside what was measured."""
    lines = ["Gradient maps of ordinary networks move most under noise on the image (variance 0.1 on pixels 0..1):"]
    for method in ("backprop", "input_x_gradient", "integrated_gradients"):
        lines.append(f"- {method}: {overall(rows, method, 'noise=0,0.1')}")
    said = (
        ("LIME varies with its seed", "lime", "seed=0..4"),
        ("Occlusion hardly moves between patches 52, 53 and 54", "occlusion", "patch=52,53,54"),
        ("... and strongly between 5, 29 and 53", "occlusion", "patch=5,29,53"),
        ("SmoothGrad moves with its spread", "smoothgrad", "spread=0.1,0.2,0.3"),
        ("... and with its number of samples", "smoothgrad", "samples=25,50,75"),
        ("Meaningful perturbation moves with its blur", "meaningful_perturbation", "blur_radius=5,10,30"),
    )
    lines += ["", *(f"- {claim}: {overall(rows, method, varied)}" for claim, method, varied in said)]
    lines += [
        "",
        "Average accuracy does not tell of it. Deviation of insertion between an image's settings, and between images:",
    ]
    for row in rows:
        if row["setting"] == "all" and row["metric"] == "insertion":
            lines.append(f"- {row['method']}, {row['varied']}: {row['between']:.3f}, {row['std']:.3f}")
    return lines


def main() -> None:
    """Run the presets and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--out", type=Path, default=Path("sam-out"))
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--presets", default=",".join(REDUCED))
    parser.add_argument("--full", default="", help="presets that take the paper's settings, whatever they cost")
    asked = parser.parse_args()
    suffixes = {".jpg", ".jpeg", ".png"}
    images = sorted(p for p in asked.images.iterdir() if p.suffix.lower() in suffixes)[: asked.count]
    rows: list[dict[str, Any]] = []
    reduced = {}
    for preset in asked.presets.split(","):
        params = () if preset in asked.full.split(",") else REDUCED[preset]
        reduced[preset] = ", ".join(params)
        rows += run(preset, images, asked.out, asked.model, params)
        settings = "; ".join(f"{name}: {text}" for name, text in reduced.items() if text) or "none"
        head = [
            "# SAM's experiments",
            "",
            f"`python benchmarks/sam_experiments.py`: {asked.model}, {len(images)} images, probabilities explained. "
            f"Reduced from the paper's settings: {settings}. Mean ± standard deviation over images; `all` is the mean of "
            "each image over the pairs. Robust networks were not to be had.",
            "",
        ]
        tables = [*table(rows, "pair", METRICS), "", *table(rows, "setting", OWN), ""]
        asked.table.write_text("\n".join([*head, *claims(rows), "", *tables]), encoding="utf-8")


if __name__ == "__main__":
    main()
