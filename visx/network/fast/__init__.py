"""What exists for speed alone: faster ways to the same answers, behind `Accelerated`; and `Lanes`, threads in which the
batches of a run go through twins of a network side by side; and `Replay`, by which copies share what lies before a layer."""

from visx.network.fast.accelerated import Accelerated
from visx.network.fast.fold import agree
from visx.network.fast.lanes import MOST_LANES, Lanes, threads_of, twin
from visx.network.fast.passes import Passes, plain
from visx.network.fast.pending import Astray
from visx.network.fast.replay import Replay

__all__ = ["MOST_LANES", "Accelerated", "Astray", "Lanes", "Passes", "Replay", "agree", "plain", "threads_of", "twin"]
