"""Seeds: every random number of a run follows from `--seed`, the image, and the number of the item that needs it.

So results do not depend on the order of images, the batch size or the device.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor


def image_seed(seed: int, digest: str) -> int:
    """The seed of one image, 63 bits, from the run's seed and the sha256 of the image."""
    return _mix(f"{seed}:{digest}")


def generator(seed: int, *path: int | str) -> Generator:
    """A generator on the CPU for the item that `path` names (a number, or a word and a number).

    Its numbers depend on `seed` and `path` only, not on what was drawn before.
    """
    import torch

    return torch.Generator().manual_seed(_mix(":".join(map(str, (seed, *path)))))


def normal(seed: int, shape: tuple[int, ...], start: int, stop: int) -> Tensor:
    """Standard normal noise for the copies from number `start` to `stop`: (stop - start, *shape) float32 on the CPU.

    Each copy has its own generator, so that the noise of a copy does not depend on the batch size or on a retry.
    """
    import torch

    return torch.stack(
        [torch.randn(shape, generator=generator(seed, i), dtype=torch.float32) for i in range(start, stop)]
    )


def _mix(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
