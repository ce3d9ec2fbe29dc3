"""Whole commands, started fresh: against `python -c "import torch"`, and against a bare script with torchvision.

python benchmarks/startup.py [IMAGE] [--rounds 7]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile

from timing import table, take_turns

BARE = """
import sys, torch, torchvision
from PIL import Image
weights = torchvision.models.ResNet50_Weights.DEFAULT
model = torchvision.models.resnet50(weights=None).eval()
x = weights.transforms()(Image.open(sys.argv[1]).convert("RGB"))[None]
with torch.no_grad():
    model(x)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", default="samples/coffee.png")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    visx = [sys.executable, "-c", "from visx.cli import main; main()"]

    with tempfile.TemporaryDirectory() as folder:

        def explain(*more: str) -> list[str]:
            return [*visx, "explain", "-q", "--overwrite", "-o", folder, options.image, *more]

        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "visx explain, built-in model": explain(),
            "visx --help": [*visx, "--help"],
            "bare script, resnet50": [sys.executable, "-c", BARE, options.image],
            "visx explain, resnet50": explain("-M", "resnet50", "-w", "random"),
        }

        def starter(command: list[str]):  # type: ignore[no-untyped-def]
            return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        medians = take_turns({name: starter(command) for name, command in commands.items()}, options.rounds)
    print(table("whole commands", medians, "import torch"))
    print(f"\nresnet50: {medians['visx explain, resnet50'] / medians['bare script, resnet50']:.2f} x the bare script")


if __name__ == "__main__":
    main()
