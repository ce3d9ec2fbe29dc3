"""Fixtures that iterate the registry: a method that is listed in `visx.methods.NAMES` is under test without more ado."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from oracles import of_transformers
from visx.methods import NAMES, get_method
from visx.methods.contract import Method
from visx.network.fast import plain

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` are skipped, with the reason, where there is no such device; those marked `accelerated` where
    `VISX_PLAIN` turns the faster ways off."""
    lacking = {
        "cuda": "" if torch.cuda.is_available() else "no CUDA device on this machine",
        "accelerated": "VISX_PLAIN is set" if plain() else "",
    }
    for item in items:
        for marker, reason in lacking.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Passes have two threads, as lanes need."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(params=NAMES)
def method(request: pytest.FixtureRequest) -> Method:
    """Every registered method in turn."""
    return get_method(request.param)


@pytest.fixture(params=[name for name in NAMES if not of_transformers(get_method(name))])
def cnn_method(request: pytest.FixtureRequest) -> Method:
    """Every registered method in turn that fits a network of convolutions."""
    return get_method(request.param)
