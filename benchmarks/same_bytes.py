"""Whether visx still writes what it wrote: a fixed run of two checkouts, compared byte by byte.

    git worktree add /tmp/before COMMIT
    python benchmarks/same_bytes.py make /tmp/old --tree /tmp/before
    python benchmarks/same_bytes.py make /tmp/new
    python benchmarks/same_bytes.py compare /tmp/old /tmp/new       # exit code 1 where a byte differs

The run takes every method on three models and the four pictures of `samples/`, with few copies and steps for the slow
methods, then `evaluate`, `sensitivity`, `compare`, `predict`, `layers`, `diff`, `report`, a resumed run, wrong usage and
the Python API. Exit codes and what is printed are compared too. Durations are left out, and so is the page of `report`
where only they differ. A map that differs is shown with its largest difference as a share of the map's range.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
TIMES = {"seconds", "mean_seconds", "mtime"}
SMALL = [
    f"-p{param}"
    for param in (
        "integrated_gradients.steps=7",
        "smoothgrad.samples=5",
        "occlusion.patch=56",
        "occlusion.stride=42",
        "lime.samples=60",
        "lime.segments=20",
        "meaningful_perturbation.iterations=6",
        "rise.masks=50",
    )
]
NET = """
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, channels, out, stride):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.narrow = nn.Conv2d(out, out, 1)
        self.short = nn.Conv2d(channels, out, 1, stride)

    def forward(self, x):
        return F.relu(self.narrow(F.relu(self.norm(self.conv(x)))) + self.short(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(3, 12, 2), Block(12, 16, 2), Block(16, 24, 2))
        self.head = nn.Linear(24, 7)

    def forward(self, x):
        return self.head(self.blocks(x).mean((2, 3)))


def make():
    torch.manual_seed(3)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return net.eval()
"""
API = """
import sys, types
from pathlib import Path
import numpy as np
import visx

spec = types.ModuleType("net")
exec(Path("net.py").read_text(), spec.__dict__)
pictures = sorted(map(str, Path("pictures").iterdir()))


def keep(name, results):
    results = results if isinstance(results, list) else [results]
    for number, one in enumerate(results):
        stem = f"api/{name}.{number}.{one.method}.{one.target}"
        np.save(stem + ".npy", one.map)
        for kind in ("native", "channels"):
            if getattr(one, kind) is not None:
                np.save(f"{stem}.{kind}.npy", getattr(one, kind))
        np.save(stem + ".overlay.npy", one.overlay())
        print(name, number, one.method, one.layer, one.target, one.label, one.score, one.score_kind, one.probability,
              one.extras, one.warnings, one.remarks)


Path("api").mkdir()
model = visx.load_model("efficientnet_lite0")
own = visx.wrap(spec.make(), size=96, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), labels=list("abcdefg"))
few = {"gradcam": {}, "backprop": {}, "guided_backprop": {}, "deconvnet": {}, "cam": {}, "guided_gradcam": {},
       "input_x_gradient": {}, "integrated_gradients": {"steps": 5}, "smoothgrad": {"samples": 4},
       "occlusion": {"patch": 40, "stride": 28}, "lime": {"samples": 40, "segments": 15},
       "meaningful_perturbation": {"iterations": 4}, "rise": {"masks": 40}}
for method, params in few.items():
    keep("own", visx.explain(own, pictures, method=method, target=["top2", "3"], **params))
    keep("bare", visx.explain(spec.make(), pictures[0], method=method, seed=5, batch_size=3, **params))
keep("builtin", visx.explain(model, pictures, method=["gradcam", "backprop"], target="top2", score="prob"))
keep("layers", visx.explain(model, pictures[0], layer=["blocks.4", model.module.blocks[-1]], target="espresso"))
keep("array", visx.explain(own, np.arange(48 * 64, dtype=np.uint16).reshape(48, 64), range=(0, 4000)))
for wrong in ({"method": "gradcan"}, {"layer": "nowhere"}, {"target": "top0"}, {"score": "odds"}, {"seed": -1.5},
              {"steps": 3}, {"precision": "fp8"}, {"batch_size": 0}):
    try:
        visx.explain(model, pictures[0], **wrong)
        print(wrong, "was taken")
    except visx.VisxError as error:
        print(wrong, error, error.hint if hasattr(error, "hint") else "")
"""
BOXES = (
    "image,left,top,right,bottom\nastronaut.png,150,0,300,200\nchelsea.png,100,40,330,260\ncoffee.png,150,60,420,330\n"
)
MODELS = {"lite0": [], "squeezenet": ["-Msqueezenet1_1", "-wrandom"], "own": ["-Mnet.py:make", "--size", "96"]}
PAIRS = ["-mgradcam", "-mbackprop", "-mocclusion"]


def commands() -> dict[str, list[str]]:
    """What is run, by the name of its output: arguments of `visx`."""
    runs: dict[str, list[str]] = {}
    for name, model in MODELS.items():
        runs[f"explain-{name}"] = ["explain", "pictures", "-mall", *model, *SMALL, "--raw-channels", "--json"]
        runs[f"predict-{name}"] = ["predict", "pictures", *model, "--json"]
        runs[f"layers-{name}"] = ["layers", model[0][2:] if model else "efficientnet_lite0", *model[1:], "--json"]
    own, one = MODELS["own"], "pictures/coffee.png"
    return runs | {
        "predict-text": ["predict", "pictures", "--top", "3"],
        "layers-text": ["layers", "efficientnet_lite0", "--spatial"],
        "methods": ["methods"],
        "methods-lime": ["methods", "lime"],
        "methods-json": ["methods", "--json"],
        "version": ["--version"],
        "targets": ["explain", "pictures", "-ttop2", "-tespresso", "--score", "prob", "-mgradcam,backprop", "--json"],
        "logprob": ["explain", one, *own, "-t0", "-t3", "--score", "logprob", "-mgradcam,rise", "-prise.masks=20"],
        "two-layers": ["explain", one, "-l", "blocks.4", "-l", "blocks[2]", "--json", "-v"],
        "unit": ["explain", one, "-mdeconvnet", "-l", "blocks.4", "-punit=max", "--json"],
        "table": ["explain", "pictures", "-t", "targets.csv", "-mbackprop", "--json"],
        "half": ["explain", "pictures", "--precision", "bf16", "-mgradcam,backprop", "--json"],
        "one-by-one": ["explain", "pictures", "--batch-size", "1", "-mall", *own, *SMALL, "--json"],
        "by-three": ["explain", "pictures", "--batch-size", "3", "-mall", *SMALL, "--seed", "4", "--json"],
        "look": ["explain", one, "--colormap", "viridis", "--alpha", "0.8", "--squash", "--size", "160", "--show"],
        "shard": ["explain", "pictures", "--shard", "2/2", "--json", "-mbackprop"],
        "extras": [
            "explain", one, *own, "-mlime,rise,meaningful_perturbation", *SMALL[4:], "-prise.stderr=true",
            "-pmeaningful_perturbation.frames=3", "-plime.segmenter=quickshift", "--json",
        ],
        "broken": ["explain", "broken", "-mgradcam", "--json"],
        "resumed": ["explain", "pictures", "-mall", *own, *SMALL, "--raw-channels", "--json", "-o", "out/explain-own"],
        "evaluate": [
            "evaluate", "pictures", *PAIRS, *own, *SMALL[2:4], "--boxes", "boxes.csv", "--json", "--metrics",
            "insertion,deletion,road,average_drop,increase,infidelity,max_sensitivity,randomization,"
            "localisation,pointing_game,energy",
        ],
        "evaluate-again": ["evaluate", "pictures", *PAIRS, *own, *SMALL[2:4], "-o", "out/evaluate"],
        "evaluate-lite0": [
            "evaluate", "pictures", "-mintegrated_gradients,gradcam", SMALL[0], "-pgrid_pointing.confidence=0.05",
            "--metrics", "completeness,deletion,grid_pointing",
        ],
        "evaluate-missed": ["evaluate", one, *own, "--min", "insertion=2", "--max", "deletion=-1"],
        "sensitivity": ["sensitivity", "pictures", *own, "-mlime", *SMALL[4:6], "--vary", "seed=0..2", "--json"],
        "sensitivity-metrics": [
            "sensitivity", one, *own, "-msmoothgrad", "--vary", "spread=0.1,0.2", "--vary", "samples=3,4",
            "--metrics", "spearman,insertion",
        ],
        "compare": ["compare", one, "-mgradcam,backprop,lime", *SMALL[4:6], "-ttop2", "--no-times", "-oout/sheet.png"],
        "compare-svg": [
            "compare", one, "-mgradcam,guided_backprop", "-Mefficientnet_lite0,net.py:make", "--no-times",
            "--shared-scale", "--theme", "dark", "--json", "-oout/sheet.svg",
        ],
        "diff-same": ["diff", "out/explain-own", "out/explain-own"],
        "diff-batch": ["diff", "out/explain-own", "out/one-by-one", "--json"],
        "diff-other": ["diff", "out/explain-lite0", "out/by-three", "--min", "spearman=0.99", "--junit", "out/junit.xml"],
        "report": ["report", "out/explain-own"],
        "wrong-method": ["explain", "pictures", "-mgradcan"],
        "wrong-param": ["explain", "pictures", "-mlime", "-psample=3"],
        "wrong-value": ["explain", "pictures", "-mlime", "-psamples=-3"],
        "wrong-target": ["explain", one, "-tespreso"],
        "wrong-layer": ["explain", one, "-lblock.4"],
        "wrong-model": ["explain", one, "-Mresnet51"],
        "no-fit": ["explain", one, "-mcam", "-Malexnet", "-wrandom"],
        "no-image": ["explain", "nowhere.png", "--json"],
        "no-option": ["explain", one, "--layers", "x"],
        "help": ["explain", "--help"],
    }  # fmt: skip


def make(place: Path, tree: Path, only: str) -> None:
    """Run everything in the folder `place` with the visx of `tree`."""
    if place.exists() and not only:
        shutil.rmtree(place)
    for name in ("printed", "broken"):
        (place / name).mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "samples", place / "pictures", dirs_exist_ok=True)
    shutil.copy(ROOT / "samples" / "coffee.png", place / "broken")
    (place / "broken" / "cut.png").write_bytes((ROOT / "samples" / "rocket.png").read_bytes()[:9000])
    (place / "broken" / "empty.jpg").touch()
    (place / "net.py").write_text(NET)
    (place / "boxes.csv").write_text(BOXES)
    (place / "targets.csv").write_text(
        "image,target\nastronaut.png,1\nchelsea.png,285\ncoffee.png,espresso\nrocket.png,5\n"
    )
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "COLUMNS": "100",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment |= {"PYTHONDONTWRITEBYTECODE": "1"}
    start = "import sys; sys.argv[0] = 'visx'; from visx.cli import main; main()"
    for name, arguments in commands().items():
        if not re.search(only, name):
            continue
        if (
            arguments[0] in ("explain", "evaluate", "sensitivity")
            and "-o" not in arguments
            and "--help" not in arguments
        ):
            arguments = [*arguments, "-o", f"out/{name}"]
            shutil.rmtree(place / "out" / name, ignore_errors=True)
        run(name, [sys.executable, "-c", start, *arguments], place, environment)
    if re.search(only, "api"):
        shutil.rmtree(place / "api", ignore_errors=True)
        run("api", [sys.executable, "-c", API], place, environment)


def run(name: str, command: list[str], place: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=place, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
    for stream in ("stdout", "stderr"):
        (place / "printed" / f"{name}.{stream}").write_bytes(getattr(done, stream))
    (place / "printed" / f"{name}.code").write_text(str(done.returncode))
    print(name, done.returncode, flush=True)


def differences(old: Path, new: Path) -> list[str]:
    """A line for every file that differs."""
    names = [{p.relative_to(place) for p in place.rglob("*") if p.is_file()} for place in (old, new)]
    lines = [f"{name}: only in {old}" for name in sorted(names[0] - names[1])]
    lines += [f"{name}: only in {new}" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        if (old / name).read_bytes() != (new / name).read_bytes() and (why := difference(old / name, new / name)):
            lines.append(f"{name}: {why}")
    return lines


def difference(old: Path, new: Path) -> str:
    """How two files differ; empty where only durations do."""
    if old.suffix == ".npy":
        a, b = np.load(old), np.load(new)
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{a.dtype} {a.shape}, now {b.dtype} {b.shape}"
        off = np.abs(a.astype(np.float64) - b).max() / max(float(np.ptp(a.astype(np.float64))), 1e-300)
        return f"differs by {off:.1e} of the range"
    if old.suffix == ".png":
        return "another picture"
    texts = [without_times(path) for path in (old, new)]
    if texts[0] == texts[1]:
        return ""
    if sorted(texts[0]) == sorted(texts[1]):
        return "another order of lines"
    only = [[line for line in texts[i] if line not in texts[1 - i]] for i in (0, 1)]
    if len(only[0]) == len(only[1]) and all(line.startswith("{") for line in only[0] + only[1]):
        pairs = [changed(json.loads(a), json.loads(b)) for a, b in zip(*only, strict=True)]
        return "\n  " + "\n  ".join(dict.fromkeys(f"{where}: {what}" for pair in pairs for where, what in pair))
    return "\n  - ".join(["", *only[0][:4]]) + "\n  + ".join(["", *only[1][:4]])


def changed(old: Any, new: Any, where: str = "") -> list[tuple[str, str]]:
    """Where two JSON values differ, and how."""
    if isinstance(old, dict) and isinstance(new, dict) and list(old) == list(new):
        return [one for key in old for one in changed(old[key], new[key], f"{where}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [one for a, b in zip(old, new, strict=True) for one in changed(a, b, f"{where}[]")]
    return [(where, f"{json.dumps(old)[:300]}, now {json.dumps(new)[:300]}")] if old != new else []


def without_times(path: Path) -> list[str]:
    """The lines of a text file without durations; JSON in its own order of keys."""
    lines = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            line = json.dumps(timeless(json.loads(line)))
        except ValueError:
            line = re.sub(r"\b\d+(\.\d+)? ?(s|ms|min|it/s|images/s)\b", "TIME", line)
            line = re.sub(r'"(mean_)?seconds": ?[\d.e-]+', "TIME", line)
            line = re.sub(r'class="bar" width="[\d.]+"', "TIME", line)  # of the report, a method's mean seconds
        if not re.match(r"\d+/\d+ images, ", line):  # progress: how often it is told depends on the time
            lines.append(line)
    return lines


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: timeless(one) for key, one in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [timeless(one) for one in value]
    return "TIME" if isinstance(value, int) and value > 10**17 else value  # nanoseconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(required=True, dest="action")
    making = actions.add_parser("make", help="run everything in a new folder")
    making.add_argument("place", type=Path)
    making.add_argument("--tree", type=Path, default=ROOT, help="the checkout whose visx is run")
    making.add_argument("--only", default="", metavar="PATTERN", help="runs whose name fits, as a regular expression")
    comparing = actions.add_parser("compare", help="show what differs between two such folders")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    options = parser.parse_args()
    if options.action == "make":
        make(options.place.resolve(), options.tree.resolve(), options.only)
        return 0
    lines = differences(options.old, options.new)
    print("\n".join(lines) or "the same")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
