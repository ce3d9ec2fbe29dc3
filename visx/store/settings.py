"""What a run is asked for besides its model and its jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visx.targets.contract import Target


@dataclass(frozen=True)
class Settings:
    """Everything that a run's results follow from besides model and jobs, and how the run is carried out. `shard` is (I, N) of
    part I of N, counted from 1; `listed` is the number of images of all parts together."""

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
    listed: int | None = None

    @property
    def rendering(self) -> dict[str, Any] | None:
        """What decides the picture, given the map; None without one."""
        return {"colormap": self.colormap, "alpha": self.alpha} if self.overlay else None


def sharded(name: str, shard: tuple[int, int] | None) -> str:
    """The name of the file that a shard writes in place of the whole run's: `manifest.3-of-8.jsonl`."""
    stem, _, suffix = name.rpartition(".")
    return name if shard is None else f"{stem}.{shard[0]}-of-{shard[1]}.{suffix}"
