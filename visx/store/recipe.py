"""The recipe: everything that a result follows from, but for its image, its layer and its target.

There is one of it. Resuming, the RECIPE in file names, the ledger of measured values and the manifest all take it from
here, so whatever decides a result is added here and nowhere else: what belongs to the model (its preprocessing, what its
output means) in `of_model`, what belongs to the run or the job in `of_job`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from visx.engine.jobs import Job
from visx.files import digest
from visx.images.geometry import Preprocess
from visx.models import Model


def of_preprocessing(preprocess: Preprocess) -> dict[str, Any]:
    """How a picture becomes the network's input, as JSON: every field, and the class where it is not `Preprocess`."""
    fields = {key: _plain(value) for key, value in dataclasses.asdict(preprocess).items()}
    kind = type(preprocess)
    return fields if kind is Preprocess else {"kind": kind.__qualname__, **fields}


def of_model(model: Model) -> dict[str, Any]:
    """What of a model decides a result."""
    return {
        "model": model.name,
        "weights": model.weights.sha256,
        "code": model.fingerprint.code if model.fingerprint else None,
        "preprocessing": of_preprocessing(model.preprocess),
        "outputs": model.outputs.identity,
    }


def of_job(model: Model, job: Job, seed: int, precision: str) -> dict[str, Any]:
    """What of a model, a job and a run decides a result: the eight hex digits in file names stand for it."""
    return {
        **of_model(model),
        "method": job.method.name,
        "params": job.params.model_dump(mode="json"),
        "score": job.kind,
        "seed": seed,
        "precision": precision,
    }


def is_default(model: Model, job: Job, seed: int, precision: str) -> bool:
    """Whether nothing was asked for that decides a result: the built-in model as it comes, and every default."""
    return model.is_default and model.outputs.plain and job.default_params and seed == 0 and precision == "fp32"


def name_of(model: Model, job: Job, seed: int, precision: str) -> str:
    """The RECIPE of a file name: eight hex digits, or nothing where everything is the default."""
    return "" if is_default(model, job, seed, precision) else digest(of_job(model, job, seed, precision))[:8]


def _plain(value: Any) -> Any:
    """A value of a field as JSON has it: tuples as lists, numbers of numpy as Python's."""
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, str, float)):
        return float(value) if isinstance(value, float) else value
    return value.item() if hasattr(value, "item") else repr(value)
