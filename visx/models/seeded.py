"""Random weights that are the same in every run."""

from __future__ import annotations

from typing import Any

import torch


def seeded(build: Any) -> Any:
    """The result of `build()` under a fixed seed. The global random state is restored afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()
