"""The sources of models, one a file. To add a source: write `visx/models/sources/NAME.py` with a `Source` (`contract.py` says
what that is), and add one line to `FORMS`. Importing this list is light: torch comes with the first source that is asked for.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from visx.errors import unknown, usage

if TYPE_CHECKING:
    from visx.models.sources.contract import Source

DEFAULT_MODEL = "efficientnet_lite0"
# MODULE.CLASS -> the form of its SPECs, as help shows it. Where several sources take a SPEC, the last of them
# gets it. So files stand below names: `timm/net.py:make` is a file in a folder of one's own.
FORMS = {
    "builtin.BuiltIn": f"{DEFAULT_MODEL} (built in)",
    "torchvision.Torchvision": "a torchvision name",
    "timm.Timm": "timm/NAME",
    "huggingface.HuggingFace": "hf/NAME or hf/FOLDER",
    "onnx.Onnx": "FILE.onnx",
    "python.Factory": "FILE.py:FACTORY",
}
SPECS = ", ".join([*list(FORMS.values())[:-1], f"or {list(FORMS.values())[-1]}"])


def all_sources() -> list[type[Source]]:
    """Every source, in the order of `FORMS`."""
    pairs = (key.split(".") for key in FORMS)
    return [getattr(importlib.import_module(f"visx.models.sources.{module}"), name) for module, name in pairs]


def kind_of(spec: str) -> type[Source]:
    """The source that takes a SPEC. Raises `VisxError` (usage, exit 2) with near matches where none does."""
    from visx.models.checkpoint.read import FOREIGN, WEIGHTS

    every = all_sources()
    kind = next((source for source in reversed(every) if source.takes(spec)), None)
    if kind is not None:
        return kind
    suffix = Path(spec).suffix.lower()
    if suffix in FOREIGN:
        raise usage(f"--model {spec}: no network that visx reads", FOREIGN[suffix])
    if suffix in WEIGHTS:
        raise usage(
            f"--model {spec}: a file of weights",
            f"--model takes the network, --weights the file: -M resnet50 -w {spec}",
        )
    names = [name for source in every if not source.prefix for name, _ in source.listed()]
    raise unknown("model", spec, names, "`visx models` lists them")


def find(spec: str) -> Source:
    """The source of a SPEC, ready to build its model. Raises `VisxError` as `kind_of` does, and as the source does."""
    return kind_of(spec)(spec)
