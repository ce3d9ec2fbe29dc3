"""Random weights, the same at every run."""

from __future__ import annotations

from typing import Any

import torch


def seeded(build: Any) -> Any:
    """Run `build` under a fixed seed, the global random state left alone: random weights are always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()
