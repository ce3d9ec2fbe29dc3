"""The parameters of methods and metrics: each is declared once, and casting, bounds, help, docs and manifest use the declaration.

A parameter set is a pydantic model that inherits from `Params`. This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from visx.errors import unknown, usage

__all__ = ["Field", "Option", "Params", "assign", "describe", "parse"]

P = TypeVar("P", bound="Params")


class Params(BaseModel):
    """The base class of all parameter sets: immutable; unknown names, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def extra_needs(self) -> frozenset[str]:
        """The needs of a method with these values, beyond those it declares (a unit projection needs a layer)."""
        return frozenset()

    def of_a_class(self) -> bool:
        """Whether the map explains the target. (A unit projection explains the unit instead.)"""
        return True


@dataclass(frozen=True)
class Option:
    """One parameter in words, for help, documentation and completion."""

    name: str
    type: str
    default: Any
    bounds: str
    help: str


def parse(params: type[P], values: Mapping[str, Any] | P, owner: str) -> P:
    """The parameters in `values` (strings from a shell, or Python values), cast and checked.

    A parameter set that is parsed already is returned as it is. `owner` is the name of the method or metric, for messages.
    Raises `VisxError` (usage, exit 2) for the first unknown name or bad value.
    """
    if isinstance(values, params):
        return values
    assert isinstance(values, Mapping)
    for key in values:
        if key not in params.model_fields:
            none = "" if params.model_fields else f"{owner} has no parameters"
            raise unknown(f"parameter of {owner}", key, params.model_fields, none)
        if isinstance(values[key], bool) and "bool" not in _type_name(params.model_fields[key].annotation).split("|"):
            raise usage(f"{owner}: {key}={values[key]}: no truth value is wanted", _allowed(params, key))
    try:
        return params.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else "?"
        reason = first["msg"].removeprefix("Value error, ")
        raise usage(f"{owner}: {key}={first['input']!r}: {reason}", _allowed(params, key)) from None


def _allowed(params: type[Params], key: str) -> str:
    """The type, bounds and default of a parameter in words, for the hint of an error."""
    option = next((o for o in describe(params) if o.name == key), None)
    return f"{key}: {option.type} {option.bounds}, default {option.default}".replace(" ,", ",") if option else ""


def describe(params: type[Params]) -> list[Option]:
    """The parameters of a set in words, in the order of their declaration."""
    return [
        Option(
            name, _type_name(field.annotation), field.get_default(), _bounds(field.metadata), field.description or ""
        )
        for name, field in params.model_fields.items()
    ]


def assign(pairs: Iterable[str], owners: Mapping[str, type[Params]]) -> dict[str, dict[str, str]]:
    """The values of `KEY=VALUE` and `OWNER.KEY=VALUE` pairs by owner, the methods or metrics that run.

    `KEY=VALUE` is for every owner that has KEY. Raises `VisxError` (usage, exit 2) for a key that no owner has.
    """
    assigned: dict[str, dict[str, str]] = {owner: {} for owner in owners}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise usage(f"--param {pair!r} is not KEY=VALUE", "for instance -p patch=53")
        owner, dot, name = key.partition(".")
        if dot:
            if owner not in owners:
                raise unknown(f"method in --param {pair!r}", owner, owners)
            takers = [owner]
        else:
            name = key
            takers = [o for o, params in owners.items() if name in params.model_fields]
        if not takers or name not in owners[takers[0]].model_fields:
            asked = takers or list(owners)
            raise unknown(
                f"parameter of {', '.join(asked)}",
                name,
                [field for o in asked for field in owners[o].model_fields],
                f"see `visx methods {asked[0]}`",
            )
        for taker in takers:
            assigned[taker][name] = value
    return assigned


def _type_name(annotation: Any) -> str:
    """The name of a parameter's type, such as "int|none"."""
    if get_origin(annotation) is Literal:
        return "|".join(str(a) for a in get_args(annotation))
    if get_origin(annotation) is Annotated:  # a bounded member of a union; the help states its bounds
        return _type_name(get_args(annotation)[0])
    if get_args(annotation):
        return "|".join(_type_name(a) for a in get_args(annotation))
    return "none" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _bounds(metadata: Iterable[Any]) -> str:
    """The bounds of a parameter, such as ">= 0, <= 1"."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return ", ".join(f"{sign} {getattr(m, key)}" for m in metadata for key, sign in signs.items() if hasattr(m, key))
