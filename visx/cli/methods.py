"""`visx methods`: the registry, for reading and for scripts. Imports no torch, and what checks parameters only when run."""

from __future__ import annotations

import json as jsonlib
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visx.cli.common import Json, Quiet
from visx.cli.output import put

if TYPE_CHECKING:
    from visx.methods.contract import Method


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One method in full.", show_default=False)
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """List the methods: what each needs of a model, its parameters and its paper."""
    from visx.methods import all_methods, get_method

    chosen = [get_method(name)] if name else all_methods()
    if json:
        for method in chosen:
            put(jsonlib.dumps(as_dict(method)))
    elif name:
        put(_full(chosen[0]))
    elif quiet:
        put("\n".join(m.name for m in chosen))
    else:
        _table(chosen)


def as_dict(method: Method) -> dict[str, Any]:
    """A method's declaration as JSON has it."""
    from visx.params import describe

    return {
        "name": method.name,
        "family": method.family,
        "title": method.title,
        "source": method.source,
        "needs": sorted(method.needs),
        "score": method.score,
        "signed": method.signed,
        "params": [
            {"name": o.name, "type": o.type, "default": o.default, "bounds": o.bounds, "help": o.help}
            for o in describe(method.params)
        ],
    }


def _full(method: Method) -> str:
    import inspect

    from visx.methods.contract import NEEDS
    from visx.params import describe

    lines = [f"{method.name}: {method.title}", f"  family  {method.family}", f"  source  {method.source}"]
    lines += [f"  needs   {NEEDS[need]}" for need in sorted(method.needs)] or ["  needs   scores alone"]
    lines += [f"  score   {method.score}{', signed map' if method.signed else ''}"]
    options = describe(method.params)
    if options:
        lines.append("  parameters (-p KEY=VALUE)")
    for o in options:
        bounds = f" {o.bounds}" if o.bounds else ""
        lines += [f"    {o.name} = {o.default}   ({o.type}{bounds})", f"        {o.help}"]
    doc = inspect.getdoc(inspect.getmodule(method.run)) or ""
    return "\n".join([*lines, "", doc])


def _table(chosen: list[Method]) -> None:
    """A line a method, and its parameters with their defaults below it: legible at 80 columns, greppable anywhere."""
    from visx.params import describe

    rows = [("method", "family", "needs", "score", "source")]
    rows += [(m.name, m.family, ",".join(sorted(m.needs)) or "scores", m.score, m.source) for m in chosen]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    put(_columns(rows[0], widths))
    for method, row in zip(chosen, rows[1:], strict=True):
        put(_columns(row, widths))
        defaults = "  ".join(f"{o.name}={o.default}" for o in describe(method.params))
        if defaults:
            put(textwrap.fill(defaults, 80, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))
    put("\n`visx methods NAME` shows one in full: parameters, bounds, theory, source.")


def _columns(row: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
