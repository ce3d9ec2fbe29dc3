"""The source contract: what a source of models declares and does. `load_model`, `visx models` and `visx layers` follow from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal

from torch import Tensor, nn

from visx.images.geometry import Preprocess
from visx.models.model import Weights
from visx.network.blackbox import BlackBox


class Source(ABC):
    """Where the models of one form of SPEC come from; an instance is one model, of which nothing is built yet.

    The members below have defaults that are right for any network; a source states what is known of its own. `load_model`
    makes the `Model` from them, freezes it, moves it to its device, and calls `build`, `build_for` and `default` with torch's
    random numbers seeded, so that weights that no file brings are the same in every run.
    """

    example: ClassVar[str]  # a SPEC that it takes
    # The prefix of its SPECs. `visx models` asks such a source for its names only where the pattern has the prefix or nothing
    # else fits, and its `__init__` gives near matches itself. Without a prefix, `listed` must be quick.
    prefix: ClassVar[str] = ""
    title: ClassVar[str] = ""  # the column "source" of `visx models`, up to 12 characters; empty if it lists nothing
    layers_weights: ClassVar[Literal["random", "default"]] = (
        "random"  # what `visx layers` loads: random saves a download
    )

    channels_last: bool = (
        False  # whether its networks run in that memory layout, which is the faster one on most devices
    )
    owned: bool = False  # whether its modules come from a library that visx knows and nobody else holds them: all may be accelerated
    rounding_safe: bool = False  # whether single gradients of its networks change little with rounding
    plain: bool = False  # whether its networks are known to give each picture its own output, the same in every pass
    resizable: bool = False  # whether `build_for` can build another number of classes
    code: Callable[[], str] | None = None  # returns a digest of a user's own sources; None for a library's models
    means: str | None = None  # what the output means, where the source knows; None: running the network shows it
    head: str | int | None = None  # which member of the output is explained, likewise
    # Arguments of `preprocessing.adapted` that the source cannot know and the user must give, and why, as a sentence
    unstated: tuple[str, ...] = ()
    why_unstated: str = ""
    remarks: tuple[str, ...] = ()  # about loading the default weights, one line each
    given: frozenset[str] = frozenset()  # what of `preprocess` the user has stated: `size`, `mean`, ...

    @abstractmethod
    def __init__(self, spec: str) -> None:
        """The model of a SPEC that it `takes`. Raises `VisxError`: usage (exit 2) with near matches for an unknown name or
        an extra that is not installed; unsupported (exit 4) for a model that cannot be explained."""

    @classmethod
    @abstractmethod
    def takes(cls, spec: str) -> bool:
        """Whether a SPEC has its form. Quick, without its library where it can be; an unknown name after a prefix counts."""

    @classmethod
    def listed(cls) -> Iterable[tuple[str, bool]]:
        """(SPEC, whether its default weights are on this machine) of each of its models; none where they cannot be listed,
        such as files, or where its library is not installed."""
        return ()

    @abstractmethod
    def build(self) -> nn.Module:
        """The network without trained weights. Raises `VisxError` (exit 4) where there is no such network."""

    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module:
        """The network that a checkpoint fits: with `classes` outputs where that is not None (only if `resizable`). `state`:
        the checkpoint's tensors by key; `digest`: the sha256 of its file. Its weights are filled in afterwards."""
        return self.build()

    @abstractmethod
    def preprocess(self) -> Preprocess:
        """How a picture becomes the input."""

    def sized(self, module: nn.Module) -> nn.Module:
        """A network that has its weights, made to take pictures of the size of `preprocess`, which the user may have changed.
        A network that takes any size, or one only, is returned as it is."""
        return module

    def labels(self, module: nn.Module | BlackBox) -> tuple[str, ...] | None:
        """The names of the classes of a network that the source has built; None where they are not known."""
        return None

    @abstractmethod
    def default(self) -> tuple[nn.Module | BlackBox, Weights]:
        """The network with its default weights, and their origin: trained ones where the source has some, else those that it
        was built with. What only scores is a `BlackBox`. Raises `VisxError` where the weights cannot be had."""
