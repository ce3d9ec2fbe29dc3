"""`visx methods`: the registered methods, for people and for scripts. Imports neither torch nor, before it is run, pydantic."""

from __future__ import annotations

import json as jsonlib
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visx.cli.options import Json, Quiet
from visx.cli.output import columns_of, put

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
        _put_table(chosen)


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
    """A method's declaration, parameters and theory for people."""
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


def _put_table(chosen: list[Method]) -> None:
    """Print a line a method, and its parameters with their defaults below it, within 80 columns."""
    from visx.params import describe

    rows = [("method", "family", "needs", "score", "source")]
    rows += [(m.name, m.family, ",".join(sorted(m.needs)) or "scores", m.score, m.source) for m in chosen]
    title, *lines = columns_of(rows)
    put(title)
    for method, line in zip(chosen, lines, strict=True):
        put(line)
        defaults = "  ".join(f"{o.name}={o.default}" for o in describe(method.params))
        if defaults:
            put(textwrap.fill(defaults, 80, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False))
    put("\n`visx methods NAME` shows one in full: parameters, bounds, theory, source.")
