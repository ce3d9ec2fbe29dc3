"""Layers by path: `a.0.b`, with indices as in Python, `a[0].b` and `a[-1]`; `a+b` is several layers of one map."""

from __future__ import annotations

import re

from torch import nn

from visx.errors import unknown, usage
from visx.network.forms import named_modules, unwrapped

_PLUS = re.compile(r"\+(?![^\[]*\])")  # outside of an index
_STEP = re.compile(r"\.?([^.\[\]]+)|\[\s*(-?\d+|\"[^\"\]]*\"|'[^'\]]*')\s*\]")


def layer_path(module: nn.Module, path: str) -> str:
    """A path with every index resolved: `features[-1].conv` is `features.8.conv`; a path without one is as it was.

    An index counts the children of a `Sequential`, `ModuleList` or the like from the front, or from the back where it is
    negative; `a["key"]` is a `ModuleDict`'s. Raises a usage error with near matches where there is none.
    """
    if "[" not in path:
        return path
    names = dict(named_modules(module))
    result = ""
    place = 0
    while place < len(path):
        step = _STEP.match(path, place)
        if step is None or (step[0].startswith(".") and not result):
            raise usage(
                f"layer {path!r} is no path", "for instance layer4, layer4.0.conv1, layer4[0].conv1 or layer4[-1]"
            )
        place = step.end()
        here = unwrapped(names[result])
        child = step[1] or _indexed(here, step[2].strip("\"'"))
        result = f"{result}.{child}" if result else child
        if result not in names:
            raise unknown("layer", path, [n for n in names if n], "`visx layers MODEL` lists them")
    return result


def layer_paths(module: nn.Module, text: str) -> list[str]:
    """The paths of `A+B`, the layers of one fused map, each once and with every index resolved; one path where `text` has no
    plus, or is itself the path of a module."""
    if "+" not in text or text in dict(named_modules(module)):
        return [layer_path(module, text)]
    parts = [part.strip() for part in _PLUS.split(text)]
    if not all(parts):
        raise usage(f"layer {text!r} has a plus with no layer beside it", "for instance layer3+layer4")
    return list(dict.fromkeys(layer_path(module, part) for part in parts))


def layer_name(module: nn.Module, layer: nn.Module) -> str:
    """The path of one of a module's own modules; a usage error where it is none, or the module itself."""
    inner = unwrapped(layer)
    for name, child in named_modules(module):
        if unwrapped(child) is inner:
            if not name:
                raise usage(
                    "layer is the model itself", "one of its modules, or its path (`visx layers MODEL` lists them)"
                )
            return name
    raise usage(
        f"layer is a {type(layer).__name__} that is not in the model", "a module of the very model that is explained"
    )


def _indexed(parent: nn.Module, key: str) -> str:
    """The name of the child that an index means, or the key itself."""
    children = [name for name, _ in parent.named_children()]
    if key in children or not re.fullmatch(r"-?\d+", key):
        return key
    index = int(key)
    counted = isinstance(parent, (nn.Sequential, nn.ModuleList)) or children == [str(n) for n in range(len(children))]
    return children[index] if counted and -len(children) <= index < len(children) else key
