"""A result as the manifest has it."""

from __future__ import annotations

from typing import Any

from visx.engine.batch import Answer
from visx.engine.jobs import Job
from visx.files import SCHEMA_VERSION
from visx.images.geometry import Placement
from visx.models import Model
from visx.network.network import Network
from visx.store import recipe


def record_of(
    model: Model, job: Job, answer: Answer, image: str, place: Placement, seed: int, precision: str, network: Network
) -> dict[str, Any]:
    """A result as the manifest has it, but for what the run adds (files, recipe, time)."""
    shapes = (layer.shape for layer in model.anatomy.layers if layer.name == job.layer)
    return {
        "schema_version": SCHEMA_VERSION,
        "image": image,
        "method": job.method.name,
        "params": job.params.model_dump(mode="json"),
        "model": model.name,
        "weights": {"name": model.weights.name, "sha256": model.weights.sha256},
        "outputs": model.outputs.identity,
        "preprocessing": recipe.of_preprocessing(model.preprocess),
        "layer": job.layer,
        "layer_shape": next((list(shape) for shape in shapes if shape), None),
        "target": answer.target if model.outputs.kind != "regression" else None,
        **({"objective": {"kind": "out", "index": answer.target}} if model.outputs.kind == "regression" else {}),
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
