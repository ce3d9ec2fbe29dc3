"""`FILE.py:FACTORY`: the user's own model, a module or a callable that scores."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from visx.errors import VisxError, said_by, unknown, unsupported, usage
from visx.images.geometry import Preprocess
from visx.models import checkpoint
from visx.models.model import Model, Weights
from visx.models.seeded import seeded
from visx.models.sources.contract import Source
from visx.models.sources.neighbours import Neighbours
from visx.network.blackbox import BlackBox
from visx.network.called import Called
from visx.network.function import Function
from visx.network.probe import complete

_EXAMPLE = "def make(): return Net()"
_OF_SCORES = "def make(): return visx.wrap({}, size=224)"


class Factory(Source):
    """The user's module from a Python file: a callable without arguments that returns it, or the module itself.

    The callable may return an `nn.Module` (with an input of 224 pixels and ImageNet's mean and standard deviation), a
    callable that scores a batch (of a size that the user states), or the result of `visx.wrap`. The file is loaded apart from the rest of the process (see `neighbours`). Raises `VisxError`
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
        elif isinstance(self.made, Called):
            self.unstated, self.why_unstated = (
                ("size",),
                "the size of the pictures that its callable takes is not known",
            )

    @classmethod
    def takes(cls, spec: str) -> bool:
        return ".py:" in spec or spec.endswith(".py")

    def _call(self, path: Path, attribute: str) -> nn.Module | Called | Model:
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
        weakref.finalize(made.source if isinstance(made, Model) else made, neighbours.forget)
        return made

    def _made_by(self, module: ModuleType, path: Path, attribute: str) -> nn.Module | Called | Model:
        """The result of the factory. Raises `VisxError` (usage, exit 2) where it is no module, `Model` or callable."""
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
                f"give them defaults, or write another one: {_EXAMPLE}; if it scores pictures: {_OF_SCORES.format(attribute)}",
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
        if callable(made):
            return Called(self.name, made)
        raise usage(
            f"{self.name} returned a {type(made).__name__}",
            "return a torch.nn.Module, a callable that scores, or visx.wrap(module, ...)",
        )

    @property
    def source(self) -> nn.Module | BlackBox:
        """What the factory has made: a module, or what scores."""
        return self.made.source if isinstance(self.made, Model) else self.made

    def build(self) -> nn.Module:
        if isinstance(self.source, BlackBox):
            raise unsupported(f"{self.name} scores by a callable, which has no weights", "--weights default")
        return self.source

    def preprocess(self) -> Preprocess:
        return self.made.preprocess if isinstance(self.made, Model) else Preprocess(256, (224, 224))

    def labels(self, module: nn.Module | BlackBox) -> tuple[str, ...] | None:
        return self.made.labels if isinstance(self.made, Model) else None

    def default(self) -> tuple[nn.Module | BlackBox, Weights]:
        if isinstance(self.source, Function):
            self.source.name, self.source.nhwc = self.name, self.preprocess().layout == "NHWC"
            return self.source, Weights("factory", "")
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
