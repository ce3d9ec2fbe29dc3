"""The rooms of `visx/`: imports point only downwards, also those in functions and under TYPE_CHECKING."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "visx"
MOST_ENTRIES, MOST_FLOORS = 24, 15
# Top to bottom: a room may import from the rooms below it. `__init__` is `visx/__init__.py`, a face without code.
ROOMS = (
    "cli",
    "__init__",
    "api",
    "gallery",
    "sheet",
    "sensitivity",
    "drift",
    "evaluate",
    "run",
    "store",
    "engine",
    "metrics",
    "methods",
    "models",
    "targets",
    "network",
    "draw",
    "ops",
    "images",
    "params",
    "files",
    "seeds",
    "errors",
)


def imports(file: Path, house: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name without `visx.`) of all that a file takes from the package, by statement or by a string that
    names a module. A name taken from a module follows the module: `run.worker.Explainer`."""
    package = [house.name, *file.relative_to(house).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            names = [".".join(filter(None, [*start, node.module, alias.name])) for alias in node.names]
        elif (
            isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"visx(\.\w+)+", node.value)
        ):
            names = [node.value]
        for name in names:
            if name.split(".")[0] == house.name and name != f"{house.name}.__version__":  # a constant: it has no room
                yield node.lineno, name.partition(".")[2]


def room(name: str, house: Path) -> str:
    """The room of a dotted name without `visx.`: a folder or a file of the house, else the package's own face."""
    first = name.split(".")[0]
    return first if (first and (house / first).is_dir()) or (house / f"{first}.py").is_file() else "__init__"


def arrows(house: Path) -> Iterator[tuple[str, str, str]]:
    """(room, room that it imports from, where) of every import from another room."""
    for file in sorted(house.rglob("*.py")):
        path = file.relative_to(house)
        here = path.parts[0].removesuffix(".py")
        for line, name in imports(file, house):
            if room(name, house) != here:
                yield here, room(name, house), f"visx/{path.as_posix()}:{line} imports {name or 'visx'}"


def upward(house: Path) -> list[str]:
    """Where an import does not point downwards."""
    return [where for here, other, where in arrows(house) if ROOMS.index(here) >= ROOMS.index(other)]


def ties(edges: dict[str, set[str]]) -> set[str]:
    """What lies on a circle: whatever can be reached from itself."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        left = list(edges[start])
        while left:
            if (one := left.pop()) not in seen:
                seen.add(one)
                left += edges.get(one, ())
        return seen

    return {name for name in edges if name in reached(name)}


def files_imported(house: Path) -> dict[str, set[str]]:
    """Per file the files that it imports, both as dotted names; a package is its `__init__`."""
    names = {".".join(file.relative_to(house).with_suffix("").parts): file for file in house.rglob("*.py")}
    edges: dict[str, set[str]] = {}
    for own, file in names.items():
        edges[own] = set()
        for _, name in imports(file, house):
            module = name.rpartition(".")[0]
            candidates = (name, f"{name}.__init__", module, f"{module}.__init__")
            edges[own] |= {next((c for c in candidates if c in names), own)} - {own}
    return edges


def test_every_entry_is_a_room_and_they_are_few() -> None:
    entries = {path.name for path in HOUSE.iterdir() if path.name != "__pycache__"}
    assert {entry.removesuffix(".py") for entry in entries} - {"py.typed"} == set(ROOMS)
    assert len(entries) <= MOST_ENTRIES


def test_the_page_names_them_in_this_order() -> None:
    page = (HOUSE.parent / "docs" / "rooms.md").read_text(encoding="utf-8").split("## Old names")[0]
    shown = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", page, re.MULTILINE)
    assert shown == [name for name in ROOMS if name != "__init__"]


def test_imports_point_downwards() -> None:
    assert upward(HOUSE) == []


def test_floors() -> None:
    below = {name: {other for here, other, _ in arrows(HOUSE) if here == name} for name in ROOMS}
    floor: dict[str, int] = {}
    for name in reversed(ROOMS):
        floor[name] = 1 + max((floor.get(other, 0) for other in below[name]), default=0)
    assert max(floor.values()) <= MOST_FLOORS


def test_no_circle_of_files() -> None:
    assert ties(files_imported(HOUSE)) == set()


@pytest.mark.parametrize(
    "text",
    [
        "from visx.cli.talk import Talk",
        "import visx.cli.talk",
        "from visx import cli",
        "import visx",
        "from visx import explain",
        "from ..cli.talk import Talk",
        "from .. import cli",
        "def f():\n    from visx.cli import talk",
        "if TYPE_CHECKING:\n    from visx.cli.talk import Talk",
        'importlib.import_module("visx.cli.talk")',
    ],
)
def test_an_import_upwards_is_seen(text: str, tmp_path: Path) -> None:
    house = tmp_path / "visx"
    for name in ("cli/__init__.py", "cli/talk.py", "store/__init__.py", "errors.py", "__init__.py"):
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).touch()
    file = house / "store" / "read.py"
    file.write_text(
        "from visx import __version__\nfrom visx.errors import VisxError\nfrom visx.store import manifest\n"
    )
    assert upward(house) == []
    file.write_text(text)
    assert len(upward(house)) == 1 and upward(house)[0].startswith("visx/store/read.py:")


def test_a_circle_of_files_is_seen(tmp_path: Path) -> None:
    house = tmp_path / "visx"
    (house / "store").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "read": "from visx.store.manifest import records",
        "manifest": "def f():\n    from visx.store import record",
        "record": "from visx.store.read import target_of",
        "settings": "from visx.store import read",
    }.items():
        (house / "store" / f"{name}.py").write_text(text)
    assert ties(files_imported(house)) == {"store.read", "store.manifest", "store.record"}
