"""What exists for speed alone: faster ways to the same answers, behind `Accelerated`; and `Lanes`, threads in which the
batches of a run go through twins of a network side by side."""

from visx.network.fast.accelerated import Accelerated
from visx.network.fast.lanes import MOST_LANES, Lanes, threads_of, twin
from visx.network.fast.passes import Passes, plain

__all__ = ["MOST_LANES", "Accelerated", "Lanes", "Passes", "plain", "threads_of", "twin"]
