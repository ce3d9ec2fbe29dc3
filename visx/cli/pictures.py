"""How a picture becomes the network's input: the options of every command that computes."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any, Literal

import typer

from visx.errors import usage

_option = partial(
    typer.Option, show_default=False, rich_help_panel="Pictures (default: as the model's own source says)"
)


@dataclass(repr=False, eq=False)
class PictureOptions:
    """How a picture becomes the network's input, where the model's own source says nothing or something else."""

    size: Annotated[str | None, _option("--size", metavar="N|H,W", help="The network's input.")] = None
    resize: Annotated[
        str | None,
        _option(
            "--resize",
            metavar="N|H,W",
            help="The shorter side before the central crop, or what the picture is stretched to before it.",
        ),
    ] = None
    squash: Annotated[
        bool | None,
        _option("--squash/--crop", help="Stretch the whole picture to the input, or cut the middle out of it."),
    ] = None
    interpolation: Annotated[
        Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] | None,
        _option("--interpolation", help="How it is resized."),
    ] = None
    mean: Annotated[
        str | None,
        _option("--mean", metavar="X[,X...]", help="Of pixels in 0..1, one number a channel of the network."),
    ] = None
    std: Annotated[str | None, _option("--std", metavar="X[,X...]", help="As --mean.")] = None
    layout: Annotated[
        Literal["NCHW", "NHWC"] | None,
        _option("--layout", help="NHWC: the network takes (batch, height, width, channels)."),
    ] = None
    range: Annotated[
        str | None,
        _option(
            "--range",
            metavar="LOW,HIGH",
            help="Values of a numeric picture (16-bit, signed, float) that are black and white.",
            show_default="by the file or its type, said",
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """The options that were given, as `load_model` takes them. A usage error where one is malformed."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        for name in ("size", "resize"):
            if name in given:
                numbers = _numbers(name, given[name].replace("x", ","), int)
                if len(numbers) > 2:
                    raise usage(f"--{name} {given[name]!r} is not N or H,W", f"for instance --{name} 384")
                given[name] = numbers[0] if len(numbers) == 1 else numbers
        for name in ("mean", "std", "range"):
            if name in given:
                text, given[name] = given[name], _numbers(name, given[name], float)
                if name == "range" and len(given[name]) != 2:
                    raise usage(f"--range {text!r} is not LOW,HIGH", "for instance --range 0,4095")
        return given


def _numbers(name: str, text: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise usage(f"--{name} {text!r} is not numbers separated by commas") from None
