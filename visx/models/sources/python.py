"""`FILE.py:FACTORY`: the user's own model."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from visx.errors import VisxError, said_by, unknown, usage
from visx.images.geometry import Preprocess
from visx.models import checkpoint
from visx.models.model import Model, Weights
from visx.models.seeded import seeded
from visx.models.sources.contract import Source
from visx.models.sources.neighbours import Neighbours
from visx.network.blackbox import BlackBox
from visx.network.probe import complete

_EXAMPLE = "def make(): return Net()"


class Factory(Source):
    """The user's module from a Python file: a callable without arguments that returns it, or the module itself.

    The callable may return an `nn.Module` (with an input of 224 pixels and ImageNet's mean and standard deviation) or the
    result of `visx.wrap`. The file is loaded apart from the rest of the process (see `neighbours`). Raises `VisxError`
    where the file or the callable fails or returns something else.
    """

    example = "net.py:make"
    layers_weights = "default"
    channels_last = False  # the user's forward may call .view, which fails in another memory layout

    def __init__(self, spec: str) -> None:
        file, _, attribute = spec.rpartition(":")
        if not file or not attribute:
            raise usage(f"model {spec!r}: which function builds it?", "FILE.py:FACTORY")
        path = Path(file)
        if not path.is_file():
            raise usage(f"no such file: {file}", "FILE.py:FACTORY")
        self.name = spec
        self.made = self._call(path, attribute)
        if isinstance(self.made, Model):  # it may state what its outputs mean
            self.means, self.head = self.made.means, self.made.head

    @classmethod
    def takes(cls, spec: str) -> bool:
        return ".py:" in spec or spec.endswith(".py")

    def _call(self, path: Path, attribute: str) -> nn.Module | Model:
        """The result of the factory `attribute` in the file `path`, loaded with its neighbours."""
        neighbours = Neighbours(path)
        self.code = neighbours.digest
        try:
            with neighbours.loading():
                made = self._made_by(neighbours.load(), path, attribute)
        except VisxError:
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            message = (
                said_by(error).replace(f"{neighbours.root}.", "").replace(neighbours.root, path.resolve().parent.name)
            )
            raise VisxError(f"{self.name} failed: {message}", hint="VISX_DEBUG=1 shows the traceback") from error
        module = made.module if isinstance(made, Model) else made
        weakref.finalize(module, neighbours.forget)
        return made

    def _made_by(self, module: ModuleType, path: Path, attribute: str) -> nn.Module | Model:
        """The result of the factory. Raises `VisxError` (usage, exit 2) where it is neither a module nor a `Model`."""
        if not hasattr(module, attribute):
            names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise unknown(f"factory in {path}", attribute, names)
        factory = getattr(module, attribute)
        if isinstance(factory, (nn.Module, Model)):
            return factory
        if not callable(factory):
            raise usage(f"{self.name} is a {type(factory).__name__}", f"a function that builds the network: {_EXAMPLE}")
        needed = _needed(factory)
        if needed:
            raise usage(
                f"{self.name} needs arguments ({', '.join(needed)}), and a factory is called without any",
                f"give them defaults, or write another one: {_EXAMPLE}",
            )
        made = seeded(factory)
        if isinstance(made, (nn.Module, Model)):
            return made
        if inspect.iscoroutine(made):
            made.close()
            raise usage(f"{self.name} is async", f"a plain function: {_EXAMPLE}")
        if isinstance(made, type):
            raise usage(
                f"{self.name} returned the class {made.__name__}, no instance of it", f"return {made.__name__}()"
            )
        raise usage(
            f"{self.name} returned a {type(made).__name__}", "return a torch.nn.Module, or visx.wrap(module, ...)"
        )

    def build(self) -> nn.Module:
        return self.made.module if isinstance(self.made, Model) else self.made

    def preprocess(self) -> Preprocess:
        return self.made.preprocess if isinstance(self.made, Model) else Preprocess(256, (224, 224))

    def labels(self, module: nn.Module | BlackBox) -> tuple[str, ...] | None:
        return self.made.labels if isinstance(self.made, Model) else None

    def default(self) -> tuple[nn.Module, Weights]:
        module = self.build()
        complete(self.name, module, (len(self.preprocess().mean), *self.preprocess().crop))
        return module, Weights("factory", checkpoint.digest_state(module))


def _needed(factory: Callable[..., Any]) -> list[str]:
    """The names of a factory's arguments that have no default."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # written in C: the call will show
        return []
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in free]
