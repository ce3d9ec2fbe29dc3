"""What a user is told of a model: what to know of it, and how it computes where it is no torch module of its own."""

from __future__ import annotations

from visx.models.model import Model
from visx.network.blackbox import BlackBox


def notes(model: Model) -> tuple[str, ...]:
    """What a user has to know of its loading, and of a black box, one line each."""
    return (*model.remarks, *(model.source.remarks if isinstance(model.source, BlackBox) else ()))


def ways(model: Model) -> tuple[str, ...]:
    """How a black box computes, and why it is no torch module; how a module was had that was converted: a line each."""
    if isinstance(model.source, BlackBox):
        return tuple(filter(None, (model.source.about, model.closed)))
    return tuple(filter(None, (model.about,)))
