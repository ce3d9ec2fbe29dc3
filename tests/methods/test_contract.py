"""Results: which maps are drawn about zero."""

from __future__ import annotations

import pytest

from visx.methods import get_method


@pytest.mark.parametrize(
    ("method", "params", "signed"),
    [
        ("gradcam", {"relu": True}, False),
        ("gradcam", {"relu": False}, True),
        ("cam", {}, True),
        ("backprop", {"reduce": "max_abs"}, False),
        ("backprop", {"reduce": "sum"}, True),
        ("integrated_gradients", {"reduce": "mean"}, True),
        ("integrated_gradients", {"reduce": "l2"}, False),
        ("occlusion", {}, True),
        ("rise", {}, False),
    ],
)
def test_a_map_is_signed_as_its_method_says_unless_its_parameters_say_otherwise(
    method: str, params: dict[str, object], signed: bool
) -> None:
    assert get_method(method).signed_with(params) is signed
