"""Options: one declaration casts, bounds and describes; every mistake is a usage error with a way on."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from visx.errors import VisxError
from visx.params import Field, Params, assign, describe, parse


class Some(Params):
    steps: int = Field(5, ge=1, le=9, description="how many")
    rate: float = Field(0.5, gt=0)
    kind: Literal["a", "b"] = Field("a")
    on: bool = Field(True)
    fill: float | None = Field(None)


class Other(Params):
    steps: int = Field(1)


def test_strings_are_cast() -> None:
    found = parse(Some, {"steps": "3", "rate": "1e-2", "kind": "b", "on": "false", "fill": "0.25"}, "some")
    assert found == Some(steps=3, rate=0.01, kind="b", on=False, fill=0.25)
    assert parse(Some, {}, "some") == Some()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": "0"}, ["steps='0'", ">= 1, <= 9", "default 5"]),
        ({"steps": "10"}, ["<= 9"]),
        ({"steps": "2.5"}, ["int"]),
        ({"rate": "0"}, ["> 0"]),
        ({"rate": "nan"}, ["rate"]),
        ({"rate": "inf"}, ["rate"]),
        ({"kind": "c"}, ["a|b"]),
        ({"on": "7"}, ["bool"]),
        ({"step": "1"}, ["did you mean steps"]),
        ({"xyz": "1"}, ["known: steps, rate"]),
    ],
)
def test_mistakes(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(VisxError) as error:
        parse(Some, values, "some")
    assert error.value.code == 2
    assert all(word in str(error.value) for word in words), str(error.value)


def test_params_are_dealt_to_those_that_have_them() -> None:
    owners = {"some": Some, "other": Other}
    assert assign(["steps=2", "some.rate=1", "fill=a=b"], owners) == {"some": {"steps": "2", "rate": "1", "fill": "a=b"}, "other": {"steps": "2"}}  # fmt: skip
    for pair in ("steps", "=1", "smoe.rate=1", "other.rate=1", "rat=1"):
        with pytest.raises(VisxError) as error:
            assign([pair], owners)
        assert error.value.code == 2


def test_description() -> None:
    first = describe(Some)[0]
    assert (first.name, first.type, first.default, first.bounds, first.help) == (
        "steps",
        "int",
        5,
        ">= 1, <= 9",
        "how many",
    )
