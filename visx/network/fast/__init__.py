"""What exists for speed alone: faster ways to the same answers, behind `Accelerated`."""

from visx.network.fast.accelerated import Accelerated
from visx.network.fast.passes import Passes, plain

__all__ = ["Accelerated", "Passes", "plain"]
