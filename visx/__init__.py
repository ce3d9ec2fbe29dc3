"""visx: see why a vision model said what it said.

`import visx` is light; torch is imported when a name that needs it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Model", "Result", "VisxError", "__version__", "explain", "load_model", "wrap"]

if TYPE_CHECKING:
    from visx.api import Result, explain
    from visx.errors import VisxError
    from visx.models import Model, load_model, wrap

_HOMES = {
    "explain": "visx.api",
    "Result": "visx.api",
    "load_model": "visx.models",
    "wrap": "visx.models",
    "Model": "visx.models",
    "VisxError": "visx.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'visx' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
