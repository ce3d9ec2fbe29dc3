"""What `load_model` asks of a source of models."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from visx.images.geometry import Preprocess
from visx.models.model import Model
from visx.state import Folding


class Source(Protocol):
    """What `load_model` asks of a source."""

    channels_last: bool
    folding: Folding
    resizable: bool

    def build(self) -> nn.Module: ...
    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module: ...
    def preprocess(self) -> Preprocess: ...
    def labels(self, module: nn.Module) -> tuple[str, ...] | None: ...
    def default(self) -> Model: ...
