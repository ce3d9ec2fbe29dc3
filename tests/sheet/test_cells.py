"""A comparison: methods x models x targets computed by the engine, on one scale where that is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from visx.draw import colours
from visx.errors import ExitCode, VisxError
from visx.images.decode import as_picture
from visx.methods import get_method
from visx.models import wrap
from visx.sheet.cells import Comparison, Style, compute, draw_rows, duration, number, percent, short_title


def net(act: type[nn.Module] = nn.ReLU, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), act(), nn.Conv2d(6, 8, 3, padding=1), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )  # fmt: skip


def model(act: type[nn.Module] = nn.ReLU, seed: int = 0):
    return wrap(net(act, seed), size=32, labels=["cat", "dog", "cup", "car"])


@pytest.fixture
def picture():
    return as_picture(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def ask(*methods: str, target: str = "top2", **changed) -> Comparison:
    return Comparison(
        **{"methods": [get_method(m) for m in methods], "layers": [], "params": {}, "targets": [target], **changed}
    )


def test_rows_are_models_and_targets_and_columns_are_methods_and_layers(picture):
    models = [model(), model(seed=1)]
    rows = compute(models, picture, "a.png", ask("backprop", "gradcam", layers=["1", "3"], target="top3"))
    assert [row.model for row in rows] == [models[0]] * 3 + [models[1]] * 3
    for row in rows:
        assert list(row.maps) == [("backprop", 0), ("gradcam", 0), ("gradcam", 1)]
        assert len({f.answer.objective.index for f in row.maps.values()}) == 1
        assert [f.job.layer for f in row.maps.values()] == [None, "1", "3"]
    assert len({row.maps["backprop", 0].answer.objective.index for row in rows[:3]}) == 3


def test_maps_are_those_of_the_python_api(picture):
    from visx import explain

    m = model()
    rows = compute(
        [m], picture, "a.png", ask("integrated_gradients", target="cup", params={"integrated_gradients": {"steps": 4}})
    )
    [result] = rows[0].maps.values()
    expected = explain(m, picture.rgb, "integrated_gradients", target="cup", steps=4)
    assert np.array_equal(result.answer.map, expected.map) and result.answer.score == expected.score
    cells = draw_rows(rows, picture, Style(cut=False))
    assert np.array_equal(cells[0][1].picture, expected.overlay())
    [result] = compute(
        [m], picture, "a.png", ask("smoothgrad", target="cup", params={"smoothgrad": {"samples": 2}}, seed=5)
    )[0].maps.values()
    assert np.array_equal(result.answer.map, explain(m, picture.rgb, "smoothgrad", target="cup", samples=2, seed=5).map)


def test_cells_say_class_probability_layer_and_time(picture):
    rows = compute([model()], picture, "a.png", ask("gradcam"))
    [[first, cell], _] = draw_rows(rows, picture, Style())
    answer = rows[0].maps["gradcam", 0].answer
    assert (
        first.heading == answer.objective.label
        and f"class {answer.objective.index}" in first.lines[0]
        and first.bar is None
    )
    assert np.array_equal(first.picture, picture.rgb)
    assert cell.heading == "Grad-CAM" and cell.lines[0] == f"{answer.objective.label} {percent(answer.probability)}"
    assert cell.lines[1].startswith(rows[0].maps["gradcam", 0].job.layer) and cell.lines[1].endswith("s")
    [[_, quiet], _] = draw_rows(rows, picture, Style(times=False))
    assert quiet.lines[1] == rows[0].maps["gradcam", 0].job.layer


def test_a_shared_scale_is_the_widest_of_its_column_and_a_cells_own_otherwise(picture):
    rows = compute(
        [model()],
        picture,
        "a.png",
        ask("backprop", "cam", "occlusion" if "occlusion" in _names() else "input_x_gradient", target="top4"),
    )
    cams = [row.maps["cam", 0].answer.map for row in rows]
    own = draw_rows(rows, picture, Style())
    assert [r[2].bar.high for r in own] == [number(colours.limits(m, True)[1]) for m in cams]
    shared = draw_rows(rows, picture, Style(shared=True))
    widest = max(colours.limits(m, True)[1] for m in cams)
    assert {r[2].bar.high for r in shared} == {number(widest)} and {r[2].bar.low for r in shared} == {number(-widest)}
    assert len({r[1].bar.high for r in shared}) == 1 and shared[0][1].bar.high != shared[0][2].bar.high
    weakest = min(range(4), key=lambda n: colours.limits(cams[n], True)[1])
    assert not np.array_equal(own[weakest][2].picture, shared[weakest][2].picture)


def _names():
    from visx.methods import NAMES

    return NAMES


def test_cut_shows_only_what_the_network_saw(picture):
    rows = compute([model()], picture, "a.png", ask("gradcam"))
    whole, cut = draw_rows(rows, picture, Style()), draw_rows(rows, picture, Style(cut=True))
    left, top, right, bottom = (round(v) for v in rows[0].place.box)
    for n in (0, 1):
        assert np.array_equal(cut[0][n].picture, whole[0][n].picture[top:bottom, left:right])


def test_a_method_that_fits_one_model_leaves_the_others_place_empty_with_the_reason(picture):
    rows = compute([model(), model(nn.GELU)], picture, "a.png", ask("guided_backprop", "gradcam", target="top1"))
    cells = draw_rows(rows, picture, Style())
    assert cells[0][1].picture is not None and cells[1][1].picture is None
    assert "no ReLU" in cells[1][1].note and cells[1][1].heading == "Guided backpropagation"
    assert cells[1][2].picture is not None


def test_a_method_that_fits_no_model_is_refused_before_anything_is_computed(picture):
    with pytest.raises(VisxError) as caught:
        compute([model(nn.GELU)], picture, "a.png", ask("gradcam", "guided_backprop"))
    assert caught.value.code == ExitCode.UNSUPPORTED


def test_a_gradient_picture_has_a_grey_bar_about_zero(picture):
    rows = compute([model()], picture, "a.png", ask("backprop", target="top1"))
    bar = draw_rows(rows, picture, Style())[0][1].bar
    assert bar.middle == "0" and bar.low == f"-{bar.high}"
    assert (
        (bar.colours[..., 0] == bar.colours[..., 1]).all()
        and bar.colours[0, 0, 0] == 0
        and bar.colours[0, -1, 0] == 255
    )


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0.0%"), (0.0004, "<0.1%"), (0.5, "50.0%"), (0.99999, "99.9%"), (1.0, "100.0%")]
)
def test_probabilities_are_never_rounded_to_certainty(value, shown):
    assert percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (-0.123, "-0.12"), (1.2e-10, "1.2e-10"), (3.4e-5, "3.4e-5"), (34.0, "34"), (1.5e7, "1.5e7")],
)
def test_ends_of_bars_are_short(value, shown):
    assert number(value) == shown


def test_times_and_titles_are_short():
    assert (duration(0.0123), duration(1.26)) == ("12 ms", "1.3 s")
    assert short_title(get_method("deconvnet")) == "Deconvnet"
    assert short_title(get_method("backprop")) == "Gradient of the score"
