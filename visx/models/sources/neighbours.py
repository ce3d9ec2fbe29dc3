"""Loading a user's Python file together with the files in its folder (its neighbours), apart from the rest of the process.

Two files of one name (`v1/model.py`, `v2/model.py`), each with its own `blocks.py`, must not run each other's code. A neighbour
with the name of an installed package (`timm.py`) must not hide that package from others. So a file and its neighbours are
loaded under names of their own, such as `visx_user_1.blocks`. These names stay in `sys.modules` as long as the model lives,
because `inspect`, `dataclasses`, `typing`, `pickle` and `torch.jit` look there. The files get an `__import__` of their own,
which looks among the neighbours first, also where a forward pass imports something. Other modules of the process are not
affected.

Sources are always compiled anew: Python's cache of compiled files does not notice a change within the same second.
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
_by_root: dict[str, Neighbours] = {}  # those whose model lives


class Neighbours:
    """A Python file and its neighbours, loaded under names that begin with `root`."""

    def __init__(self, file: Path) -> None:
        self.file = file.resolve()
        self.folder = self.file.parent
        self.root = f"{PREFIX}{next(_numbers)}"
        self._package = _package_of(
            self.folder
        )  # the package's dotted name and the folder that holds it; an empty name where the folder is no package
        self._paths = [str(self.folder)]
        self._before: tuple[str, ...] = ()
        self._alias: _Alias | None = None
        self._read: dict[str, str] = {}  # relative path -> sha256 of the files that were loaded
        self._known: dict[str, bool] = {}  # answers of `has`
        self.builtins = {**vars(builtins), "__import__": self._import}

    def load(self) -> ModuleType:
        """The file's module, executed. Call it inside `loading`. Raises whatever the file raises."""
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
        """The context in which the file and its factory run.

        Inside it `importlib.import_module` and unpickling find neighbours by their plain names, where no other module has
        that name. Folders that the file adds to `sys.path` are removed from it at the end, and count as folders of
        neighbours. After an exception no module of the file remains.
        """
        _by_root[self.root] = self
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
            self._add_paths()
            self._before, self._alias = (), None
            sys.meta_path.remove(alias)
            sys.path[:] = path
            for name in alias.added:
                sys.modules.pop(name, None)

    def forget(self) -> None:
        """Remove the file's and its neighbours' modules from `sys.modules`."""
        _by_root.pop(self.root, None)
        for name in [n for n in sys.modules if n == self.root or n.startswith(f"{self.root}.")]:
            del sys.modules[name]

    def digest(self) -> str:
        """The sha256 over the relative paths and contents of all files loaded so far."""
        return hashlib.sha256(repr(sorted(self._read.items())).encode("utf-8", "surrogateescape")).hexdigest()

    def note(self, path: str, data: bytes) -> None:
        """Record the content of a loaded file for `digest`."""
        name = os.path.relpath(path, self.folder).replace(os.sep, "/")
        self._read[name] = hashlib.sha256(data).hexdigest()

    def find(self, name: str) -> ModuleSpec | None:
        """The spec of a module by its full name (`visx_user_1.nets.blocks`); None where there is no such file."""
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
        file_spec = PathFinder.find_spec(name, list(paths))
        if file_spec is None:
            return None
        if isinstance(file_spec.loader, SourceFileLoader):
            assert file_spec.origin is not None
            file_spec.loader = _Source(name, file_spec.origin, self)
        elif file_spec.origin and Path(file_spec.origin).is_file():  # compiled
            self.note(file_spec.origin, Path(file_spec.origin).read_bytes())
        return file_spec

    def has(self, top: str) -> bool:
        """Whether `import TOP` in one of these files means a neighbour.

        A folder without `__init__.py` is a neighbour only where no package of its name is installed, as in Python.
        """
        self._add_paths()
        if top not in self._known:
            spec = self.find(f"{self.root}.{top}")
            if spec is None or (spec.origin is None and _installed(top)):
                self._known[top] = False
            else:
                self._known[top] = not self._loaded_already(top, spec.origin)
        return self._known[top]

    def _loaded_already(self, top: str, origin: str | None) -> bool:
        """Whether the process has loaded the same file under its plain name; then that module is the one to import."""
        loaded = getattr(_outside(top), "__file__", None)
        same = origin is not None and loaded is not None and os.path.realpath(loaded) == os.path.realpath(origin)
        if same and origin is not None:
            self.note(origin, Path(origin).read_bytes())
        return same

    def _add_paths(self) -> None:
        """Count the folders that the files have added to `sys.path` while they are loaded as folders of neighbours."""
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
        """The `__import__` of these files: the neighbours come first."""
        top = name.partition(".")[0]
        if level or not self._means_neighbour(top, globals or {}, fromlist or ()):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = builtins.__import__(f"{self.root}.{name}", globals, locals, fromlist or (), 0)
        if self._alias is not None and not _installed(top):
            self._alias.add(name)  # unpickling imports by this function, then looks into `sys.modules`
        return module if fromlist else sys.modules[f"{self.root}.{top}"]

    def _means_neighbour(self, top: str, importer: Mapping[str, Any], wanted: Sequence[str]) -> bool:
        """Whether `from TOP import WANTED` in a file with the globals `importer` means a neighbour."""
        if not self.has(top):
            return False
        if (
            top in sys.stdlib_module_names
        ):  # a neighbour `types.py` counts only for names that Python's own `types` lacks
            own = builtins.__import__(top)
            return bool(wanted) and not all(n == "*" or hasattr(own, n) for n in wanted)
        file = importer.get("__file__")
        own_name = bool(file) and Path(str(file)).resolve() == self.folder / f"{top}.py"
        return not (own_name and _installed(top))  # `import timm` in a file `timm.py` means the package


class _Source(SourceFileLoader):
    """Loads a neighbour's source: always compiled anew, with the `__import__` of its `Neighbours`."""

    def __init__(self, name: str, path: str, neighbours: Neighbours) -> None:
        super().__init__(name, path)
        self._neighbours = neighbours

    def get_code(self, fullname: str) -> CodeType:
        data = self.get_data(self.path)
        self._neighbours.note(self.path, data)
        code: CodeType = self.source_to_code(data, self.path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = self._neighbours.builtins
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds neighbours by their full names, also for relative imports and at any later time."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        neighbours = _by_root.get(fullname.partition(".")[0]) if fullname.startswith(PREFIX) else None
        return neighbours.find(fullname) if neighbours else None


class _Alias(MetaPathFinder, Loader):
    """Finds neighbours by their plain names, where no other module has the name, while a file is being loaded.

    Only the thread that loads the file finds them. `added` holds the names that must leave `sys.modules` afterwards.
    """

    def __init__(self, neighbours: Neighbours, thread: int) -> None:
        self._neighbours, self._thread = neighbours, thread
        self.added: list[str] = []

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if threading.get_ident() != self._thread or not self._neighbours.has(fullname.partition(".")[0]):
            return None
        if self._neighbours.find(f"{self._neighbours.root}.{fullname}") is None:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(f"{self._neighbours.root}.{spec.name}")
        spec.loader_state = module.__spec__
        self.added.append(spec.name)
        return module

    def add(self, name: str) -> None:
        """Put a neighbour and the packages that hold it into `sys.modules` under their plain names."""
        while name:
            if name not in sys.modules:
                sys.modules[name] = sys.modules[f"{self._neighbours.root}.{name}"]
                self.added.append(name)
            name = name.rpartition(".")[0]

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec. (`create_module` has executed the module already.)"""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


_finder = _Finder()


def _installed(top: str) -> bool:
    """Whether a module of this top-level name exists outside of all neighbours, loaded or not."""
    if _outside(top) is not None:
        return True
    try:
        spec = PathFinder.find_spec(top)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None


def _outside(top: str) -> ModuleType | None:
    """The module that the process has loaded under a top-level name; None where there is none or it is a neighbour."""
    module = sys.modules.get(top)
    return None if module is None or str(getattr(module, "__name__", "")).startswith(PREFIX) else module


def _package_of(folder: Path) -> tuple[str, str]:
    """The dotted name of the package in a folder, and the folder that holds the outermost package.

    The name is empty where the folder is no package.
    """
    parts: list[str] = []
    while (folder / "__init__.py").is_file() and folder.parent != folder:
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), str(folder)
