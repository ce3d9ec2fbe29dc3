"""The options that mean the same in every command: each declared once, and the groups that commands take as one value."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from visx.errors import usage
from visx.models.sources import DEFAULT_MODEL, SPECS

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT...",
        help="Images, directories (walked recursively), or - for paths on standard input.",
        show_default=False,
    ),
]
Nul = Annotated[bool, typer.Option("-0", "--null", help="Paths on standard input are separated by NUL.")]
ModelSpec = Annotated[str, typer.Option("-M", "--model", metavar="SPEC", help=f"{SPECS}.")]
ModelSpecs = Annotated[
    list[str] | None,
    typer.Option(
        "-M",
        "--model",
        metavar="SPEC[,SPEC]",
        help=f"{SPECS}; each gets its own rows. Repeatable.",
        show_default=DEFAULT_MODEL,
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
        help="Module path, a.0.b, a[0].b or a[-1] (`visx layers MODEL` lists them); one map a layer. A+B: one map of "
        "several layers, fused. Repeatable.",
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
Shard = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Only part I of N (from 1), for job arrays.", show_default=False),
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


# A group is a dataclass with a default for every option, in a module whose annotations are evaluated: `grouped` reads them.
# Methods that `dataclass` need not add would only cost start-up time.
@dataclass(repr=False, eq=False)
class MapOptions:
    """Which maps are asked for: the weights, how their network's output is read, and what of it is explained where."""

    weights: WeightsSpec = "default"
    layer: Layers = None
    target: Target = None
    score: Score = None
    labels: Labels = None
    means: Means = None
    head: Head = None
    param: Param = None


@dataclass(repr=False, eq=False)
class SensitivityOptions(MapOptions):
    """Which maps are compared: at one layer, which `--vary layer=A,B` may change."""

    layer: Annotated[
        list[str] | None,
        typer.Option(
            "-l",
            "--layer",
            metavar="NAME",
            help="Module path; A+B: one map of several layers, fused.",
            show_default="the last feature map on the way to the score",
        ),
    ] = None
    score: Annotated[
        Literal["logit", "prob", "logprob"] | None,
        typer.Option("--score", help="The scalar that is explained.", show_default="each method's own; presets: prob"),
    ] = None


@dataclass(repr=False, eq=False)
class ComputeOptions:
    """How the network is run."""

    device: Device = "auto"
    precision: Precision = "fp32"
    batch_size: BatchSize = "auto"
    seed: Seed = 0

    @property
    def size(self) -> int | None:
        """The batch size; None for `auto`. A usage error where it is neither."""
        if self.batch_size == "auto":
            return None
        if not self.batch_size.isdigit() or int(self.batch_size) < 1:
            raise usage(f"--batch-size {self.batch_size!r} is not a number from 1 up, or auto")
        return int(self.batch_size)


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with single options in place of each parameter that is a group of them (a dataclass), for typer."""
    signature = inspect.signature(command, eval_str=True)
    keyword = inspect.Parameter("option", inspect.Parameter.KEYWORD_ONLY)
    groups: dict[str, tuple[Any, list[str]]] = {}
    singles: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        group = parameter.annotation
        if is_dataclass(group):
            groups[name] = group, [field.name for field in fields(group)]
            singles += [keyword.replace(name=f.name, default=f.default, annotation=f.type) for f in fields(group)]
        else:
            singles.append(keyword.replace(name=name, default=parameter.default, annotation=group))

    @wraps(command)
    def run(**values: Any) -> Any:
        for name, (group, members) in groups.items():
            values[name] = group(**{member: values.pop(member) for member in members})
        return command(**values)

    run.__signature__ = signature.replace(parameters=singles)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in singles}
    return run
