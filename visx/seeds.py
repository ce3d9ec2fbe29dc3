"""Seeds: everything random derives from `--seed` and the image, and is addressed by number, never by order of drawing."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


def image_seed(seed: int, digest: str) -> int:
    """The random stream of one image: 63 bits from the run's seed and the image's sha256."""
    return _mix(f"{seed}:{digest}")


def generator(seed: int, *path: int | str) -> Generator:
    """A CPU generator for item `path` of a stream: the same numbers whatever else was drawn, on any device."""
    import torch

    return torch.Generator().manual_seed(_mix(":".join(map(str, (seed, *path)))))


def normal(seed: int, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
    """Standard normal noise for copies `start`..`stop` of a stream, (stop - start, *shape) float32 on the CPU.

    Each copy has its own generator, so neither the batch size nor a retry changes what a copy receives.
    """
    import torch

    return torch.stack(
        [torch.randn(shape, generator=generator(seed, i), dtype=torch.float32) for i in range(start, stop)]
    )


def _mix(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
