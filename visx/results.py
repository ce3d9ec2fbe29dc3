"""Results: an answer as the picture that is drawn of it and as the record that the manifest keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from visx.artifacts import SCHEMA_VERSION

if TYPE_CHECKING:
    import numpy as np

    from visx.contract import Method
    from visx.engine import Answer, Job
    from visx.images import Placement
    from visx.models import Model
    from visx.state import Network


def draw(
    rgb: np.ndarray,
    place: Placement,
    job: Job,
    values: np.ndarray,
    channels: np.ndarray | None,
    colormap: str,
    alpha: float,
    scale: tuple[float, float] | None = None,
) -> np.ndarray:
    """A result's picture (H, W, 3) uint8: a gradient picture where the method declares one, else an overlay.

    `scale` replaces the limits of the map (of the gradient, where that is drawn)."""
    from visx import render

    if job.method.picture == "gradient" and channels is not None:
        return render.gradient_picture(rgb, channels, place, scale)
    return render.overlay(rgb, values, place, is_signed(job), colormap, alpha, scale)


def is_signed(job: Job) -> bool:
    """Whether negative values of this job's maps mean something."""
    return has_sign(job.method, job.params.model_dump())


def has_sign(method: Method, params: Mapping[str, Any]) -> bool:
    """Whether negative values mean something: as the method declares, or because `relu=false`/`reduce` says so."""
    if params.get("relu") is False:
        return True
    if "reduce" in params:
        return params["reduce"] in ("sum", "mean")
    return method.signed


def record_of(
    model: Model, job: Job, answer: Answer, image: str, place: Placement, seed: int, precision: str, network: Network
) -> dict[str, Any]:
    """A result as the manifest has it, but for what the run adds (files, recipe, time)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "image": image,
        "method": job.method.name,
        "params": job.params.model_dump(mode="json"),
        "model": model.name,
        "weights": {"name": model.weights.name, "sha256": model.weights.sha256},
        "layer": job.layer,
        "layer_shape": list(answer.native.shape) if answer.native is not None else None,
        "target": answer.target,
        "label": answer.label,
        "score": answer.score,
        "score_kind": answer.score_kind,
        "probability": answer.probability,
        "seed": seed,
        "device": str(network.device),
        "precision": precision,
        "input_size": list(model.input_size),
        "crop": [round(v, 3) for v in place.box],
        "min": float(answer.map.min()),
        "max": float(answer.map.max()),
        "extras": answer.extras,
        "warnings": answer.warnings,
    }
