"""The recipe: everything that a result follows from, except its image, its layer and its target.

Resuming, the RECIPE in file names, the ledger of measured values and the manifest all use the recipe of this file. So
anything new that a result follows from is added here and nowhere else: in `of_model` if it belongs to the model (its
preprocessing, the meaning of its output), in `of_job` if it belongs to the run or the job.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from visx.engine.jobs import Job
from visx.files import digest
from visx.images.geometry import Preprocess
from visx.models import Model

# Fields that came later, with what they were before: left out where they are that, so that earlier results keep their names
_LATER = {"floor_crop": False, "bgr": False}


def of_preprocessing(preprocess: Preprocess) -> dict[str, Any]:
    """How a picture becomes the network's input, as JSON: every field, and the class where it is not `Preprocess`."""
    values = dataclasses.asdict(preprocess).items()
    fields = {key: _plain(value) for key, value in values if key not in _LATER or value != _LATER[key]}
    kind = type(preprocess)
    return fields if kind is Preprocess else {"kind": kind.__qualname__, **fields}


def of_model(model: Model) -> dict[str, Any]:
    """The model's part of a recipe, as JSON."""
    return {
        "model": model.name,
        "weights": model.weights.sha256,
        "code": model.fingerprint.code if model.fingerprint else None,
        "preprocessing": of_preprocessing(model.preprocess),
        "outputs": model.outputs.identity,
    }


def of_job(model: Model, job: Job, seed: int, precision: str) -> dict[str, Any]:
    """The whole recipe of a result, as JSON. The eight hex digits in file names are of its digest."""
    return {
        **of_model(model),
        "method": job.method.name,
        "params": job.params.model_dump(mode="json"),
        "score": job.kind,
        "seed": seed,
        "precision": precision,
    }


def is_default(model: Model, job: Job, seed: int, precision: str) -> bool:
    """Whether the recipe is the default one: the built-in model with its own weights and preprocessing, all options default."""
    return model.is_default and model.outputs.plain and job.default_params and seed == 0 and precision == "fp32"


def name_of(model: Model, job: Job, seed: int, precision: str) -> str:
    """The RECIPE of a file name: eight hex digits, or nothing where everything is the default."""
    return "" if is_default(model, job, seed, precision) else digest(of_job(model, job, seed, precision))[:8]


def _plain(value: Any) -> Any:
    """The value of a field as JSON: tuples become lists, numpy's numbers become Python's."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, str, float)):
        return float(value) if isinstance(value, float) else value
    return value.item() if hasattr(value, "item") else repr(value)
