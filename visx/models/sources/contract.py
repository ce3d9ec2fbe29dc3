"""The source contract: what `load_model` needs of a source of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from visx.images.geometry import Preprocess
from visx.models.model import Model


class Source(Protocol):
    """A source for one SPEC.

    `build` returns the network without trained weights, `build_for` the network that a checkpoint `state` fits: with `classes`
    outputs where that is not None; `digest` is the sha256 of the checkpoint's file. `labels` returns the class names of a
    network, or None. `default` returns the model with its default weights, and raises `VisxError` where it cannot get them.
    """

    channels_last: bool
    owned: bool  # whether visx builds its modules, by a library that it knows
    rounding_safe: bool  # whether single gradients of its networks change little with rounding
    resizable: bool  # whether `build_for` can build another number of classes
    plain: bool  # whether its networks are known to give each picture its own output, the same in every pass

    @property
    def code(self) -> Callable[[], str] | None: ...  # a digest of a user's own sources; None for a library's
    def build(self) -> nn.Module: ...
    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module: ...
    def preprocess(self) -> Preprocess: ...
    def labels(self, module: nn.Module) -> tuple[str, ...] | None: ...
    def default(self) -> Model: ...
