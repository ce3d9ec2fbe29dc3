"""Fixtures that iterate the registry: a method that is listed in `visx.methods.NAMES` is under test without more ado."""

from __future__ import annotations

import pytest
import torch

from visx.methods import NAMES, get_method
from visx.methods.contract import Method

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` are skipped, with the reason, where there is no such device."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(params=NAMES)
def method(request: pytest.FixtureRequest) -> Method:
    """Every registered method in turn."""
    return get_method(request.param)
