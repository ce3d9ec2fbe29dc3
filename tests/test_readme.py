"""The README says what the code does: its table of methods is the registry's, its options exist."""

from __future__ import annotations

import re
from pathlib import Path

from visx.methods import all_methods
from visx.metrics import all_metrics
from visx.metrics.contract import Metric

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


OF = {
    "pair": "two maps",
    "box": "a map and annotated boxes (`--boxes`)",
    "alone": "a map",
    "map": "a map and the model",
    "set": "a method over images",
}


def link(source: str) -> str:
    """A source as a link, where it is an arXiv id or a DOI."""
    source = re.sub(r"arXiv:([\d.]+)", r"[\1](https://arxiv.org/abs/\1)", source)
    return re.sub(r"doi:(\S+)", r"[\1](https://doi.org/\1)", source)


def span(metric: Metric) -> str:
    """The range of a metric's values."""
    if metric.low is None or metric.high is None:
        return "any" if metric.low is None else f"from {metric.low:g}"
    return f"{metric.low:g}..{metric.high:g}"


def table_of_metrics() -> str:
    """The table of metrics, from the registry."""
    rows = ["| metric | what it is | of | better | range | source |", "| --- | --- | --- | --- | --- | --- |"]
    for m in all_metrics():
        rows.append(f"| `{m.name}` | {m.title} | {OF[m.kind]} | {m.better} | {span(m)} | {link(m.source)} |")
    return "\n".join(rows)


def test_the_table_of_metrics_is_the_registrys() -> None:
    shown = README.split("<!-- metrics -->")[1].split("<!-- /metrics -->")[0].strip()
    assert shown == table_of_metrics()


def table() -> str:
    """The table of methods, from the registry."""
    rows = ["| method | what it is | needs | explains | source |", "| --- | --- | --- | --- | --- |"]
    for m in all_methods():
        needs = ", ".join(sorted(m.needs)) or "scores alone"
        rows.append(
            f"| `{m.name}` | {m.title}{', signed' if m.signed else ''} | {needs} | {m.score} | {link(m.source)} |"
        )
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
    section = README.split("\n## Dependencies\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")][2:]
    listed = {name.strip(): "" for row in rows if "(extra" not in row for name in row.split(",")}
    for row in rows:
        if found := re.fullmatch(r"(\S+) \(extra(?: `(\w+)`)?\)", row):
            listed[found[1]] = found[2] or found[1]
    needed = dict.fromkeys(names_in(pyproject.split("\ndependencies = [")[1].split("\n]")[0]), "")
    extras = pyproject.split("[project.optional-dependencies]")[1].split("\n[")[0]
    for extra, packages in re.findall(r"^(\w+) = \[(.*)\]$", extras, re.MULTILINE):
        if extra != "test":
            needed |= dict.fromkeys(names_in(packages), extra)
    assert len(needed) > 16
    assert listed == needed


def names_in(requirements: str) -> list[str]:
    """The packages of a list of requirements."""
    return re.findall(r'"([A-Za-z0-9-]+)', requirements)


def test_what_is_taken_is_one_table() -> None:
    from visx.images.formats import _OTHERS
    from visx.network.meaning import MEANS

    section = README.split("\n## What is taken\n")[1].split("\n## ")[0]
    table, said = section.strip().split("\n\n", 1)
    groups = re.findall(r"^\| \*\*(\w+)\*\*", table, re.MULTILINE)
    assert groups == ["Models", "Outputs", "Pictures"]
    assert all(line.startswith("|") and line.count(" | ") == 1 for line in table.splitlines()[2:])
    assert all(f"`{means}`" in said for means in MEANS)
    for extra in re.findall(r"visx\[(\w+)\]", " ".join(how for *_, how in _OTHERS)):
        assert f"`visx[{extra}]`" in table
