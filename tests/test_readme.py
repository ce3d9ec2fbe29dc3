"""The README says what the code does: its table of methods is the registry's, its options exist."""

from __future__ import annotations

import re
from pathlib import Path

from visx.methods import all_methods

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def table() -> str:
    """The table of methods, from the registry."""
    rows = ["| method | what it is | needs | explains | source |", "| --- | --- | --- | --- | --- |"]
    for m in all_methods():
        needs = ", ".join(sorted(m.needs)) or "scores alone"
        link = re.sub(r"arXiv:([\d.]+)", r"[\1](https://arxiv.org/abs/\1)", m.source)
        rows.append(f"| `{m.name}` | {m.title}{', signed' if m.signed else ''} | {needs} | {m.score} | {link} |")
    return "\n".join(rows)


def test_the_table_of_methods_is_the_registrys() -> None:
    shown = README.split("<!-- methods -->")[1].split("<!-- /methods -->")[0].strip()
    assert shown == table()


def test_commands_and_options_exist() -> None:
    from typer.main import get_command

    from visx.cli.app import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"^visx (\w+) (.*)$", README, re.MULTILINE):
        name, rest = line
        assert name in commands, name
        options = {o for p in commands[name].params for o in (*p.opts, *p.secondary_opts)}
        for option in re.findall(r"(?<!\S)(--?[a-z][\w-]*)", rest.split("#")[0]):
            assert option in options, f"visx {name} {option}"


def test_every_dependency_has_its_line() -> None:
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    block = pyproject.split("dependencies = [")[1].split("]")[0]
    for name in re.findall(r'"([a-z0-9-]+)', block):
        assert name in README.split("## Dependencies")[1], name
