"""`visx methods`: the registry, for reading and for scripts. Imports no torch."""

from __future__ import annotations

import json as jsonlib
from typing import Annotated, Any

import typer

from visx.cli.common import Json, Quiet
from visx.contract import NEEDS, Method
from visx.options import describe


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
            print(jsonlib.dumps(as_dict(method)))
    elif name:
        print(_full(chosen[0]))
    elif quiet:
        print("\n".join(m.name for m in chosen))
    else:
        _table(chosen)


def as_dict(method: Method) -> dict[str, Any]:
    """A method's declaration as JSON has it."""
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
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("method", "family", "needs", "explains", "parameters", "source"):
        table.add_column(title, no_wrap=title in ("method", "source"))
    for m in chosen:
        defaults = ", ".join(f"{o.name}={o.default}" for o in describe(m.params))
        table.add_row(m.name, m.family, ", ".join(sorted(m.needs)) or "scores", m.score, defaults, m.source)
    Console().print(table)
