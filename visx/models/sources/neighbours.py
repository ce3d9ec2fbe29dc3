"""The neighbours of a Python file: what it imports from its own folder is its own, whatever else the process has loaded.

Two files of one name (`v1/model.py`, `v2/model.py`), each with its `blocks.py`, must not run each other's code, and a
neighbour named like an installed package (`timm.py`) must not stand in its way afterwards. So a file and its neighbours
are loaded under names of their own (`visx_user_1.blocks`), which stay in `sys.modules` as long as the model lives:
`inspect`, `dataclasses`, `typing`, `pickle` and `torch.jit` look there. They have an `__import__` of their own, which
knows the neighbours first, also when a forward pass imports. Nothing else in the process sees any of this.

Sources are compiled as they lie on the disk: Python's cache of compiled files takes a change within one second for none.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.util
import itertools
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

PREFIX = "visx_user_"
_numbers = itertools.count(1)
_rooms: dict[str, Neighbours] = {}


class Neighbours:
    """A Python file and what lies beside it, loaded apart from everything else.

    `root` is the name they are loaded under; `digest` says what has been loaded so far.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.resolve()
        self.folder = self.file.parent
        self.root = f"{PREFIX}{next(_numbers)}"
        self._package = _package_of(self.folder)  # its dotted name and where that begins, if the folder is in one
        self._paths = [str(self.folder)]
        self._before: tuple[str, ...] = ()
        self._alias: _Alias | None = None
        self._read: dict[str, str] = {}
        self._known: dict[str, bool] = {}
        self.builtins = {**vars(builtins), "__import__": self._import}

    def load(self) -> ModuleType:
        """Execute the file; returns its module. Raises whatever it raises. Call inside `loading`."""
        whole = self.file.stem == "__init__"
        name = ".".join(filter(None, (self.root, self._package[0], "" if whole else self.file.stem.replace(".", "_"))))
        loader = _Source(name, str(self.file), self)
        inside = [str(self.folder)] if whole else None
        spec = importlib.util.spec_from_file_location(name, self.file, loader=loader, submodule_search_locations=inside)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While the file and its factory run: `importlib.import_module` and unpickling find the neighbours too, where
        nothing else has their name; folders that the file puts on `sys.path` are its own afterwards. If it fails, nothing
        of it stays."""
        _rooms[self.root] = self
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)
        importlib.invalidate_caches()
        path = list(sys.path)
        self._before = tuple(path)
        alias = self._alias = _Alias(self, threading.get_ident())
        sys.meta_path.append(alias)
        try:
            importlib.import_module(self.root)
            yield
        except BaseException:
            self.forget()
            raise
        finally:
            self._look_around()
            self._before, self._alias = (), None
            sys.meta_path.remove(alias)
            sys.path[:] = path
            for name in alias.given:
                sys.modules.pop(name, None)

    def forget(self) -> None:
        """Drop the modules: nothing of the model is left."""
        _rooms.pop(self.root, None)
        for name in [n for n in sys.modules if n == self.root or n.startswith(f"{self.root}.")]:
            del sys.modules[name]

    def digest(self) -> str:
        """The sha256 of every file that has been loaded from here, and of where it lies: another name, another program."""
        return hashlib.sha256(repr(sorted(self._read.items())).encode("utf-8", "surrogateescape")).hexdigest()

    def note(self, path: str, data: bytes) -> None:
        """Remember what was read from a file."""
        name = os.path.relpath(path, self.folder).replace(os.sep, "/")
        self._read[name] = hashlib.sha256(data).hexdigest()

    def find(self, name: str) -> ModuleSpec | None:
        """Where the module of a full name (`visx_user_1.nets.blocks`) lies, with a loader that keeps it apart."""
        if name == self.root:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = []
            return spec
        parent, _, last = name.rpartition(".")
        dotted, top = self._package
        if parent != self.root:
            paths = getattr(sys.modules.get(parent), "__path__", [])
        else:
            paths = [top] if last == dotted.partition(".")[0] else self._paths
        found = PathFinder.find_spec(name, list(paths))
        if found is None:
            return None
        if isinstance(found.loader, SourceFileLoader):
            assert found.origin is not None
            found.loader = _Source(name, found.origin, self)
        elif found.origin and Path(found.origin).is_file():  # compiled
            self.note(found.origin, Path(found.origin).read_bytes())
        return found

    def has(self, top: str) -> bool:
        """Whether `import TOP` in one of these files means a neighbour. A plain folder is one only where no package of its
        name is installed, as Python has it."""
        self._look_around()
        if top not in self._known:
            spec = self.find(f"{self.root}.{top}")
            if spec is None or (spec.origin is None and _installed(top)):
                self._known[top] = False
            else:
                self._known[top] = not self._loaded_already(top, spec.origin)
        return self._known[top]

    def _loaded_already(self, top: str, origin: str | None) -> bool:
        """Whether the process has a neighbour's very file under its plain name: then that is what everybody means."""
        loaded = getattr(_outside(top), "__file__", None)
        same = origin is not None and loaded is not None and os.path.realpath(loaded) == os.path.realpath(origin)
        if same and origin is not None:
            self.note(origin, Path(origin).read_bytes())
        return same

    def _look_around(self) -> None:
        """Folders that the files have put on `sys.path`, while they are loaded, hold neighbours too."""
        added = [p for p in sys.path if p not in self._before and p not in self._paths] if self._before else []
        if added:
            self._paths += added
            self._known.clear()

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """What `import` means in these files: their neighbours first."""
        top = name.partition(".")[0]
        if level or not self._means_neighbour(top, globals or {}, fromlist or ()):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = builtins.__import__(f"{self.root}.{name}", globals, locals, fromlist or (), 0)
        if self._alias is not None and not _installed(top):
            self._alias.give(name)  # unpickling comes here, and looks into `sys.modules` afterwards
        return module if fromlist else sys.modules[f"{self.root}.{top}"]

    def _means_neighbour(self, top: str, importer: Mapping[str, Any], wanted: Sequence[str]) -> bool:
        if not self.has(top):
            return False
        if top in sys.stdlib_module_names:  # `types.py` beside: Python's own, unless what is asked for is not in that
            own = builtins.__import__(top)
            return bool(wanted) and not all(n == "*" or hasattr(own, n) for n in wanted)
        file = importer.get("__file__")
        own_name = bool(file) and Path(str(file)).resolve() == self.folder / f"{top}.py"
        return not (own_name and _installed(top))  # `import timm` in a file `timm.py` does not mean that file


class _Source(SourceFileLoader):
    """Loads a neighbour: compiled anew, with the neighbours' own `__import__`."""

    def __init__(self, name: str, path: str, room: Neighbours) -> None:
        super().__init__(name, path)
        self._room = room

    def get_code(self, fullname: str) -> CodeType:
        data = self.get_data(self.path)
        self._room.note(self.path, data)
        code: CodeType = self.source_to_code(data, self.path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._room.builtins
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds the neighbours by their full names, for whoever imports them, also relatively and later."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        room = _rooms.get(fullname.partition(".")[0]) if fullname.startswith(PREFIX) else None
        return room.find(fullname) if room else None


class _Alias(MetaPathFinder, Loader):
    """Finds the neighbours by their plain names, where nothing else has these; used while a file is being loaded."""

    def __init__(self, room: Neighbours, thread: int) -> None:
        self._room, self._thread = room, thread
        self.given: list[str] = []

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if threading.get_ident() != self._thread or not self._room.has(fullname.partition(".")[0]):
            return None
        if self._room.find(f"{self._room.root}.{fullname}") is None:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{self._room.root}.{spec.name}")
        spec.loader_state = module.__spec__
        self.given.append(spec.name)
        return module

    def give(self, name: str) -> None:
        """Let a neighbour and the packages it is in be found under their plain names."""
        while name:
            if name not in sys.modules:
                sys.modules[name] = sys.modules[f"{self._room.root}.{name}"]
                self.given.append(name)
            name = name.rpartition(".")[0]

    def exec_module(self, module: ModuleType) -> None:
        """It has been executed; its own spec goes back to its place."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


_finder = _Finder()


def _installed(top: str) -> bool:
    """Whether a top-level name is that of a module outside, loaded or not."""
    if _outside(top) is not None:
        return True
    try:
        found = PathFinder.find_spec(top)
    except (ImportError, ValueError):
        return False
    return found is not None and found.origin is not None


def _outside(top: str) -> ModuleType | None:
    """The module that the process has loaded under a top-level name, unless it is somebody's neighbour."""
    module = sys.modules.get(top)
    return None if module is None or str(getattr(module, "__name__", "")).startswith(PREFIX) else module


def _package_of(folder: Path) -> tuple[str, str]:
    """The dotted name of the package that a folder is, and the folder that holds it; an empty name where it is none."""
    parts: list[str] = []
    while (folder / "__init__.py").is_file() and folder.parent != folder:
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), str(folder)
