"""Models: from a SPEC (a name or a file, see `sources`) to a `Model` that can be explained.

Importing this package is light, so that the commands' help can be made from `sources`; torch comes with the names below.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visx.models.load import load_model, wrap
    from visx.models.model import Model, Weights

__all__ = ["Model", "Weights", "load_model", "wrap"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'visx.models' has no attribute {name!r}")
    home = "visx.models.load" if name in ("load_model", "wrap") else "visx.models.model"
    return getattr(importlib.import_module(home), name)
