"""What commands share: the options that mean the same everywhere, and talking to people without getting into the data."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from visx.cli.output import put
from visx.errors import usage

if TYPE_CHECKING:
    import torch

    from visx.methods.contract import Method, ScoreKind
    from visx.models import Model

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Images, directories (walked recursively), or - for paths on standard input.",
        show_default=False,
    ),
]
Nul = Annotated[bool, typer.Option("-0", "--null", help="Paths on standard input are separated by NUL.")]
ModelSpec = Annotated[
    str,
    typer.Option(
        "-M",
        "--model",
        metavar="SPEC",
        help="efficientnet_lite0 (built in), a torchvision name, timm/NAME, or FILE.py:FACTORY.",
    ),
]
WeightsSpec = Annotated[
    str,
    typer.Option(
        "-w",
        "--weights",
        metavar="default|random|FILE",
        help="The model's own weights, random ones (always the same), or a checkpoint.",
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        "--labels", metavar="FILE", help="Class names of a custom model: one a line, or JSON.", show_default=False
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        "--head",
        metavar="KEY",
        help="Which member of a tuple, dict or dataclass is explained: an index, a key, or a path such as out.cls.",
        show_default="found by running",
    ),
]
Means = Annotated[
    str | None,
    typer.Option(
        "--means",
        metavar="KIND",
        help="What the output means: logits, probabilities, sigmoid (independent labels, or one logit) or regression.",
        show_default="found by running, said",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "-m",
        "--method",
        metavar="NAME[,NAME]",
        help="Methods (`visx methods` lists them), or all for every one that fits the model. Repeatable.",
        show_default="gradcam",
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "-l",
        "--layer",
        metavar="NAME",
        help="Module path, a.0.b, a[0].b or a[-1] (`visx layers MODEL` lists them); one map a layer. Repeatable.",
        show_default="the last feature map on the way to the score",
    ),
]
Target = Annotated[
    list[str] | None,
    typer.Option(
        "-t",
        "--target",
        metavar="TARGET",
        help="top1, topK (top3: three maps), a class index, a label or a unique part of one, FILE.csv with rows "
        "image,target, or out:N of a regression. Repeatable: one map each.",
        show_default="top1",
    ),
]
Score = Annotated[
    Literal["logit", "prob", "logprob"] | None,
    typer.Option("--score", help="The scalar that is explained.", show_default="each method's own"),
]
Colormap = Annotated[
    str,
    typer.Option(
        "--colormap",
        metavar="NAME",
        help="Colours of the overlay, for instance viridis; a signed map gets a diverging one: bluered or purplegreen.",
    ),
]
Alpha = Annotated[float, typer.Option("--alpha", min=0, max=1, help="Opacity of the map in the overlay.")]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="Where to compute.")]
Precision = Annotated[
    Literal["fp32", "bf16", "fp16"], typer.Option("--precision", help="The numbers the network computes with.")
]
BatchSize = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="N|auto",
        help="Images or perturbed copies at a time; halves itself when memory runs out.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Everything random derives from it and the image.")]
Param = Annotated[
    list[str] | None,
    typer.Option(
        "-p",
        "--param",
        metavar="KEY=VALUE",
        help="A method's parameter, or METHOD.KEY=VALUE (`visx methods NAME` lists them). Repeatable.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Where results go.")]
Json = Annotated[bool, typer.Option("--json", help="JSON Lines on standard output.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing but errors.")]
Verbose = Annotated[
    bool,
    typer.Option(
        "-v",
        "--verbose",
        help="Also say what was chosen (weights, preprocessing, outputs, layers, device, precision) and how long images take.",
    ),
]


_OFTEN = 700  # new objects between two looks for garbage, as Python has it


def split(values: Sequence[str] | None) -> list[str]:
    """Repeatable, comma-separated options as one list without doubles."""
    return list(dict.fromkeys(part.strip() for value in values or () for part in value.split(",") if part.strip()))


def shard(text: str | None) -> tuple[int, int] | None:
    """`--shard I/N`: part I of N, from 1."""
    if text is None:
        return None
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise usage(f"--shard {text!r} is not I/N with I from 1 to N", "for instance --shard 2/8")
    return int(number), int(count)


def print_table(lines: Sequence[Sequence[str]]) -> None:
    """Lines of cells, the first one the titles, in columns that line up; the same on a terminal and in a log."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        put("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def batch_size(text: str) -> int | None:
    """`--batch-size`: a number, or None for auto."""
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise usage(f"--batch-size {text!r} is not a number from 1 up, or auto")
    return int(text)


def pick_device(text: str) -> torch.device:
    """`--device` -> a device that is there, the process made ready to compute; a usage error if it is not."""
    import torch

    from visx.run.allocator import keep_freed_memory

    keep_freed_memory()
    gc.freeze()  # what was imported stays
    gc.set_threshold(_OFTEN)

    mps = torch.backends.mps.is_available()
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise usage(f"unknown device {text!r}", "auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise usage(
            f"device {text} is not there",
            f"CUDA devices found: {torch.cuda.device_count()}; --device auto takes what there is",
        )
    if device.type == "mps" and not mps:
        raise usage("device mps is not there", "--device auto takes what there is")
    if device.type not in ("cpu", "cuda", "mps"):
        raise usage(f"unknown device {text!r}", "auto, cpu, cuda, cuda:N or mps")
    return device


def say_outputs(model: Model, say: Callable[[str], None], kinds: Iterable[ScoreKind] = ()) -> None:
    """Tell what a model's output was found to mean, where it is not the plain case, and what that makes of the scores."""
    for text in model.remarks:
        say(text)
    if not model.outputs.plain:
        reason = f": {model.outputs.seen}" if model.outputs.seen else ""
        say(f"{model.name} gives {model.outputs}{reason}")
    for text in dict.fromkeys(filter(None, map(model.outputs.remark, kinds))):
        say(text)


def pick_methods(names: Sequence[str], model: Model | None = None) -> list[Method]:
    """`--method` names -> methods; `all` means every one that fits the model (torch-free until a model is given)."""
    from visx.methods import all_methods, get_method

    picked: list[Method] = []
    for name in names:
        if name != "all":
            picked.append(get_method(name))
        elif model is not None:
            from visx.engine.jobs import missing

            picked += [m for m in all_methods() if not missing(model, m, m.params())]
    return list(dict.fromkeys(picked))
