"""How a picture becomes the network's input: the options of every command that computes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, Literal

import typer

from visx.errors import usage

PANEL = "Pictures (default: as the model's own source says)"
_OPTIONS: dict[str, Any] = {
    "size": Annotated[
        str | None,
        typer.Option("--size", metavar="N|H,W", help="The network's input.", show_default=False, rich_help_panel=PANEL),
    ],
    "resize": Annotated[
        str | None,
        typer.Option(
            "--resize",
            metavar="N|H,W",
            help="The shorter side before the central crop, or what the picture is stretched to before it.",
            show_default=False,
            rich_help_panel=PANEL,
        ),
    ],
    "squash": Annotated[
        bool | None,
        typer.Option(
            "--squash/--crop",
            help="Stretch the whole picture to the input, or cut the middle out of it.",
            show_default=False,
            rich_help_panel=PANEL,
        ),
    ],
    "interpolation": Annotated[
        Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] | None,
        typer.Option("--interpolation", help="How it is resized.", show_default=False, rich_help_panel=PANEL),
    ],
    "mean": Annotated[
        str | None,
        typer.Option(
            "--mean",
            metavar="X[,X...]",
            help="Of pixels in 0..1, one number a channel of the network.",
            show_default=False,
            rich_help_panel=PANEL,
        ),
    ],
    "std": Annotated[
        str | None,
        typer.Option("--std", metavar="X[,X...]", help="As --mean.", show_default=False, rich_help_panel=PANEL),
    ],
    "layout": Annotated[
        Literal["NCHW", "NHWC"] | None,
        typer.Option(
            "--layout",
            help="NHWC: the network takes (batch, height, width, channels).",
            show_default=False,
            rich_help_panel=PANEL,
        ),
    ],
    "range": Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="LOW,HIGH",
            help="Values of a numeric picture (16-bit, signed, float) that are black and white.",
            show_default="by the file or its type, said",
            rich_help_panel=PANEL,
        ),
    ],
}


def with_pictures(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with these options besides its own; it gets those that were given as `pictures`, for `load_model`."""

    @wraps(command)
    def run(**given: Any) -> Any:
        asked = {name: given.pop(name) for name in _OPTIONS}
        return command(**given, pictures=_parsed(asked))

    own = inspect.signature(command, eval_str=True)
    kept = [parameter for name, parameter in own.parameters.items() if name != "pictures"]
    added = [
        inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=a) for n, a in _OPTIONS.items()
    ]
    run.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in kept] + added
    )
    run.__annotations__ = {p.name: p.annotation for p in (*kept, *added)}
    return run


def _parsed(asked: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as `load_model` takes them."""
    given = {name: value for name, value in asked.items() if value is not None}
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
