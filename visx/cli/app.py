"""The `visx` application: its commands and what they share."""

from __future__ import annotations

from typing import Annotated

import typer

from visx import __version__
from visx.cli import compare, diff, evaluate, explain, layers, methods, models, predict, report, sensitivity
from visx.cli.output import owning_output

app = typer.Typer(
    name="visx",
    help="See why a vision model said what it said: overlays to look at, raw maps to compute with.",
    epilog="visx explain --method gradcam --model resnet50 --layer layer4 img.jpg\n\n"
    "Environment: VISX_PLAIN=1 turns off all that exists for speed alone, VISX_DEBUG=1 shows tracebacks.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"visx {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """See why a vision model said what it said: overlays to look at, raw maps to compute with."""


app.command("explain")(owning_output(explain.explain))
app.command("methods")(owning_output(methods.methods))
app.command("models")(owning_output(models.models))
app.command("layers")(owning_output(layers.layers))
app.command("predict")(owning_output(predict.predict))
app.command("sensitivity")(owning_output(sensitivity.sensitivity))
app.command("evaluate")(owning_output(evaluate.evaluate))
app.command("diff")(owning_output(diff.diff))
app.command("compare")(owning_output(compare.compare))
app.command("report")(owning_output(report.report))


def usage_error(error: Exception) -> tuple[str, str] | None:
    """(message, hint) if this is the option parser's own usage error, else None; an empty message needs no printing."""
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    message = str(error.format_message()).rstrip(".").replace("Value error, ", "")
    if not message.strip():  # no command given: the help has been shown
        return "", ""
    return message, f"try: {context.command_path} --help" if context else ""
