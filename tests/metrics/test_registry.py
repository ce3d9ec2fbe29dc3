"""The metrics' registry: declarations are complete, and naming metrics imports nothing heavy."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

import visx.metrics
from metric_toys import Mean
from visx.errors import VisxError
from visx.metrics import all_metrics, get_metric, split_params
from visx.metrics.contract import Trial
from visx.metrics.names import METRICS, listed, of_values
from visx.network.outputs import Outputs
from visx.targets.classes import Column
from visx.targets.contract import Objectives


def test_every_module_is_listed_and_declares_its_name() -> None:
    helpers = {"__init__", "contract", "names"}
    modules = {p.stem for p in Path(visx.metrics.__file__).parent.glob("*.py")} - helpers
    assert modules == set(METRICS)
    assert {m.name: m.run.__module__ for m in all_metrics()} == {name: f"visx.metrics.{name}" for name in METRICS}
    assert {m.name: m.kind for m in all_metrics()} == {name: metric.kind for name, metric in METRICS.items()}
    for metric in all_metrics():
        assert metric.title and metric.source
        assert metric.better in ("higher", "lower")
        assert metric.low is None or metric.high is None or metric.low < metric.high


def test_defaults_are_those_that_the_sources_name() -> None:
    """SAM's SSIM, HOG and thresholds, RISE's steps, ROAD's parts and noise: another default is another metric."""
    named = {
        "ssim": {"window": 5, "scale": "max_abs", "data_range": 2.0},
        "spearman": {"absolute": False},
        "hog": {"cell": 16, "block": 3, "orientations": 9},
        "top_k": {"part": 0.1},
        "iou": {"threshold": 0.5},
        "localisation": {"best": False},
        "pointing_game": {"tolerance": 15.0},
        "insertion": {"steps": 224, "blur_radius": 5.0},
        "deletion": {"steps": 224},
        "road": {"steps": 4, "noise": 0.01},
        "infidelity": {"samples": 64, "noise": 0.2, "rescale": True},
        "max_sensitivity": {"samples": 10, "radius": 0.02},
        "grid_pointing": {"grid": 2, "confidence": 0.9, "mosaics": 500, "cells": "whole"},
        "randomization": {"stages": 5},
    }
    assert {m.name: m.params().model_dump() for m in all_metrics() if m.params.model_fields} == named
    assert [m.name for m in all_metrics() if m.average == "class"] == ["pointing_game"]


def test_declarations_import_nothing_heavy() -> None:
    code = (
        "import sys, visx.metrics as m; m.all_metrics(); import visx.cli.app;"
        "print([n for n in ('torch', 'skimage', 'sklearn', 'scipy', 'cv2') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["evaluate", "sensitivity"])
def test_help_names_every_metric_that_the_command_takes(command: str) -> None:
    from typer.main import get_command

    from visx.cli.app import app

    (option,) = [p for p in get_command(app).commands[command].params if "--metrics" in p.opts]  # type: ignore[attr-defined]
    taken = set(METRICS) - set(listed("pair" if command == "evaluate" else "set").split(", "))
    assert {name for name in METRICS if re.search(rf"\b{name}\b", option.help)} == taken


def test_the_list_says_which_metrics_need_a_probability(make_trial: Callable[..., Trial], pixels: Tensor) -> None:
    """Those are refused for a regression, with a hint that names the others; the others give a value."""
    values = pixels.mean(0).numpy()
    outputs = Outputs("regression")
    objectives = Objectives([[Column.of(0, outputs, None)]], outputs)
    for name, metric in METRICS.items():
        if metric.kind == "map":
            explain = lambda x: np.broadcast_to(values, (len(x), *values.shape))  # noqa: E731
            trial = dataclasses.replace(make_trial(Mean(), pixels, values, explain), objectives=objectives)
            run = get_metric(name).run
            if metric.probability:
                with pytest.raises(VisxError) as refused:
                    run(trial, get_metric(name).params())
                assert refused.value.hint == f"{of_values()} measure values", name
            else:
                assert np.isfinite(run(trial, get_metric(name).params()).value), name
    assert of_values() == "completeness, infidelity, max_sensitivity and randomization"


def test_unknown_and_unfit_metrics_are_usage_errors() -> None:
    with pytest.raises(VisxError, match=r"unknown metric 'spearmen'.*spearman"):
        get_metric("spearmen")
    with pytest.raises(VisxError, match="evaluate cannot use the metric ssim"):
        get_metric("ssim", ("map",), "evaluate")


def test_params_of_metrics_are_told_from_those_of_methods() -> None:
    rest, params = split_params(["samples=3", "ssim.window=7", "lime.samples=9"], [get_metric("ssim")])
    assert rest == ["samples=3", "lime.samples=9"]
    assert params["ssim"].model_dump()["window"] == 7
    with pytest.raises(VisxError, match="unknown parameter of ssim 'windw'"):
        split_params(["ssim.windw=7"], [get_metric("ssim")])
