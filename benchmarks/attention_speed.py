"""Methods on a vision transformer against bare passes of it: ratios of medians, one process, in turns.

    python benchmarks/attention_speed.py [--models timm/vit_base_patch16_224] [--batches 1] [--rounds 15] [--device cpu]
                                         [--threads N] [--cpu-time]

Weights are random. Grad-CAM and the methods that need attention weights alone are compared with a bare forward pass without
gradients, methods that differentiate with a bare forward and backward pass to the input; the module is frozen for both, so
that no gradient of a parameter is computed. `--cpu-time` counts the process's own time instead of the clock's: for a machine
that others use, too.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
from gradients import bare_backward, bare_forward, turns, visx_runs
from timing import table

import visx
from visx.methods import NAMES

FORWARD = ("gradcam", "attention", "rollout")
BACKWARD = ("backprop", "transformer_attribution", "legrad", "libragrad", "attnlrp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="timm/vit_base_patch16_224")
    parser.add_argument("--batches", default="1")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its own choice")
    parser.add_argument("--cpu-time", action="store_true", help="the process's time instead of the clock's")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.backends.cudnn.allow_tf32 = False  # full float32 for all, as visx has it
    processor = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} cores"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor}\n")
    for name in options.models.split(","):
        model = visx.load_model(name, "random", device=options.device)
        for batch in map(int, options.batches.split(",")):
            x = torch.randn(batch, 3, *model.input_size, device=options.device)
            for base, bare, methods in (
                ("forward", bare_forward(model.module, x), FORWARD),
                ("forward + backward", bare_backward(model.module, x), BACKWARD),
            ):
                contenders = {base: bare}
                contenders |= {m: visx_runs(model, m, x) for m in methods if m in NAMES}
                with model.network().session():
                    medians = turns(contenders, options.rounds, clock)
                print(table(f"{name}, batch {batch}", medians, base), "\n", flush=True)


if __name__ == "__main__":
    main()
