"""`FILE.py:FACTORY`: a model of the user's own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from torch import Tensor, nn

from visx.errors import VisxError, said_by, unknown, usage
from visx.images.geometry import Preprocess
from visx.models import checkpoint
from visx.models.model import Model, Weights
from visx.network.probe import complete
from visx.state import Folding


class Factory:
    """`FILE.py:FACTORY`: a module of the user's own, from a callable without arguments (or a module) in a Python file.

    The factory may return a plain `nn.Module` (input 224, ImageNet's mean and deviation) or the result of `visx.wrap`.
    """

    channels_last = False  # a forward of one's own may call .view, which another memory layout breaks
    folding: Folding = "none"
    resizable = False

    def __init__(self, spec: str) -> None:
        file, _, attribute = spec.rpartition(":")
        if not file or not attribute:
            raise usage(f"model {spec!r}: which function builds it?", "FILE.py:FACTORY")
        path = Path(file)
        if not path.is_file():
            raise usage(f"no such file: {file}", "FILE.py:FACTORY")
        self.name = spec
        self.made = self._call(path, attribute)

    def _call(self, path: Path, attribute: str) -> nn.Module | Model:
        from visx.models.load import seeded

        spec = importlib.util.spec_from_file_location(f"visx_user_{path.stem}", path.resolve())
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        sys.path.insert(0, str(path.resolve().parent))  # so that the file can import its neighbours
        try:
            spec.loader.exec_module(module)
            if not hasattr(module, attribute):
                names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
                raise unknown(f"factory in {path}", attribute, names)
            factory = getattr(module, attribute)
            made = factory if isinstance(factory, nn.Module) else seeded(factory)
        except VisxError:
            raise
        except (Exception, SystemExit) as error:  # whatever a user's own code raises
            raise VisxError(f"{self.name} failed: {said_by(error)}", hint="VISX_DEBUG=1 shows the traceback") from error
        finally:
            sys.path.remove(str(path.resolve().parent))
        if not isinstance(made, (nn.Module, Model)):
            raise usage(
                f"{self.name} returned a {type(made).__name__}", "return a torch.nn.Module, or visx.wrap(module, ...)"
            )
        return made

    def build(self) -> nn.Module:
        return self.made.module if isinstance(self.made, Model) else self.made

    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module:
        return self.build()

    def preprocess(self) -> Preprocess:
        return self.made.preprocess if isinstance(self.made, Model) else Preprocess(256, (224, 224))

    def labels(self, module: nn.Module) -> tuple[str, ...] | None:
        return self.made.labels if isinstance(self.made, Model) else None

    def default(self) -> Model:
        module, preprocess = self.build(), self.preprocess()
        complete(self.name, module, (len(preprocess.mean), *preprocess.crop))
        weights = Weights("factory", checkpoint.digest_state(module))
        return Model(self.name, module, preprocess, weights, self.labels(module), self.channels_last, self.folding)
