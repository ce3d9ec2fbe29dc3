"""What `load_model` asks of a source of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from visx.images.geometry import Preprocess
from visx.models.model import Model


class Source(Protocol):
    """What `load_model` asks of a source."""

    channels_last: bool
    owned: bool  # whether its modules are visx's own: built by a library that visx knows
    rounding_safe: bool  # whether single gradients of its networks bear rounding
    resizable: bool
    plain: bool  # whether its networks are known to give each picture its own output, the same in every pass

    @property
    def code(self) -> Callable[[], str] | None: ...  # a digest of a user's own sources; None for a library's
    def build(self) -> nn.Module: ...
    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module: ...
    def preprocess(self) -> Preprocess: ...
    def labels(self, module: nn.Module) -> tuple[str, ...] | None: ...
    def default(self) -> Model: ...
