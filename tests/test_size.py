"""Files and functions stay short enough to be read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "visx"
MOST_LINES, MOST_BODY = 300, 60


def long_functions(text: str) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function whose body, its docstring not counted, is longer than `MOST_BODY` lines."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
            if lines > MOST_BODY:
                yield node.name, lines


def test_files_are_short() -> None:
    lines = {path.relative_to(HOUSE).as_posix(): len(path.read_bytes().splitlines()) for path in HOUSE.rglob("*.py")}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_functions_are_short() -> None:
    functions = {
        f"{path.relative_to(HOUSE).as_posix()}: {name}": lines
        for path in HOUSE.rglob("*.py")
        for name, lines in long_functions(path.read_text(encoding="utf-8"))
    }
    assert functions == {}


@pytest.mark.parametrize(
    ("lines", "docstring", "name", "long"),
    [
        (60, 0, "def", False),
        (61, 0, "def", True),
        (60, 9, "def", False),
        (61, 9, "def", True),
        (61, 0, "async def", True),
    ],
)
def test_a_long_body_is_seen(lines: int, docstring: int, name: str, long: bool) -> None:
    text = f"{name} f(\n    a,\n    b,\n):\n"
    text += '    """' + "\n    text" * docstring + '"""\n' if docstring else ""
    assert list(long_functions(text + "    a += 1\n" * lines)) == ([("f", lines)] if long else [])
