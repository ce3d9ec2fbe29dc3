"""`visx explain` called wrongly, with models that cannot be loaded or run, and with an error nobody expected."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from visx.errors import VisxError


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-m", "gradcm"], "gradcam"),
        (["-p", "rel=1"], "relu"),
        (["-p", "relu=7"], "bool"),
        (["-p", "relu"], "KEY=VALUE"),
        (["-p", "cam.relu=1"], "method"),
        (["-m", "all", "-p", "step=1"], "steps"),
        (["-m", "smoothgrad", "-p", "samples=0"], ">= 1"),
        (["-m", "smoothgrad", "-p", "spread=nan"], "spread"),
        (["--colormap", "jett"], "jet"),
        (["--batch-size", "0"], "from 1 up"),
        (["--alpha", "3"], "alpha"),
        (["--score", "loss"], "logprob"),
        (["--nope"], "No such option"),
        (["gone.png"], "no such file"),
        (["a" * 300], "no such file"),
    ],
)
def test_typos_are_told_before_a_model_is_loaded(
    explain: Any, monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.setattr("visx.models.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    run = explain("cat.png", *args)
    assert run.code == 2
    assert message in run.err
    assert len(run.err.splitlines()) <= 2
    assert not Path("visx-out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-l", "con"], "conv"),
        (["-t", "9"], "0 to 4"),
        (["-t", "top9"], "5 classes"),
        (["-t", "dgo"], "dog"),
        (["-t", "at"], "fits 2 labels"),
        (["-t", "gone.csv"], "No such file"),
        (["--device", "abacus"], "unknown device"),
        (["--device", "cuda:99"], "not there"),
        (["--labels", "gone"], "No such file"),
        (["-m", "backprop", "-l", "conv"], "looks at no layer"),
        (["-w", "gone.pth"], "no such checkpoint"),
    ],
)
def test_usage_errors(explain: Any, args: list[str], message: str) -> None:
    run = explain("cat.png", *args)
    assert run.code == 2
    assert message in run.err
    assert not Path("visx-out").exists()


@pytest.mark.parametrize(
    ("net", "code", "message"),
    [
        ("pair", 4, "returns a tuple"),
        ("forward", 1, "fails on an input of 1x3x32x32: ValueError: inner"),
        ("raising", 1, "RuntimeError: boom"),
        ("leaving", 1, "SystemExit: 7"),
        ("nothing", 2, "returned a NoneType"),
        ("mislabelled", 2, "1 labels for a model of 5"),
        ("goood", 2, "did you mean good"),
    ],
)
def test_odd_factories(explain: Any, net: str, code: int, message: str) -> None:
    run = explain("cat.png", net=net)
    assert run.code == code
    assert message in run.err
    assert "second line" not in run.err
    assert not Path("visx-out").exists()


def test_an_unexpected_error_is_one_line(explain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("visx.engine.explainer.explain_batch", broken)
    run = explain("cat.png")
    assert run.code == 1
    assert "RuntimeError: first" in run.err
    assert "second" not in run.err
    monkeypatch.setattr("visx.engine.explainer.explain_batch", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    run = explain("cat.png")
    assert run.code == 130
    assert "what was finished is kept" in run.err
    assert issubclass(VisxError, Exception)


def test_engine_ray_without_ray_says_what_installs_it(explain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "visx.run.ray.driver", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    run = explain("cat.png", "--engine", "ray")
    assert run.code == 2
    assert "pip install 'visx[ray]'" in run.err
    assert not Path("visx-out").exists()


def test_an_address_without_ray_is_a_mistake(explain: Any) -> None:
    run = explain("cat.png", "--address", "auto")
    assert run.code == 2
    assert "--engine ray" in run.err
