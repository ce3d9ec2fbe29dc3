"""What a run is asked for besides its model and its jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visx.targets.contract import Target


@dataclass(frozen=True)
class Settings:
    """Everything a run's results depend on besides model and jobs, and how the run is to be carried out."""

    out: Path
    target: Target
    seed: int = 0
    precision: str = "fp32"
    batch_size: int | None = None
    colormap: str = "turbo"
    alpha: float = 0.5
    overlay: bool = True
    raw_channels: bool = False
    resume: bool = True
    fail_fast: bool = False
    shard: tuple[int, int] | None = None

    @property
    def rendering(self) -> dict[str, Any] | None:
        """What decides the picture, given the map; None without one."""
        return {"colormap": self.colormap, "alpha": self.alpha} if self.overlay else None
