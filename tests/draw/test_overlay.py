"""Rendering: colours say what values mean, and the map lies where the network looked, whatever the geometry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visx.draw.colours import check_colormap, colorbar, colorize, limits, to_levels
from visx.draw.overlay import gradient_picture, overlay
from visx.errors import VisxError
from visx.images.decode import decode, read
from visx.images.geometry import Placement, Preprocess

CASES = {  # picture height and width, marked block (top, left, size), preprocessing
    "landscape": ((240, 400), (80, 180, 40), Preprocess(256, (224, 224))),
    "portrait": ((400, 240), (180, 80, 40), Preprocess(256, (224, 224))),
    "off centre": ((300, 500), (60, 330, 30), Preprocess(256, (224, 224))),
    "upscaled": ((60, 90), (20, 50, 14), Preprocess(256, (224, 224))),
    "padded": ((100, 140), (20, 90, 20), Preprocess(None, (224, 224))),
    "squashed": ((200, 400), (90, 40, 40), Preprocess((224, 224), (224, 224))),
    "inside": ((200, 400), (90, 40, 40), Preprocess((224, 224), (224, 224), fit="inside", fill=(9, 9, 9))),
}


@pytest.mark.parametrize("case", CASES)
def test_the_map_lies_on_what_the_network_saw(case: str) -> None:
    """The network's own view of a marked block, as a map, comes back onto that block: to less than two input pixels."""
    (height, width), (top, left, size), preprocess = CASES[case]
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[top : top + size, left : left + size] = 255
    x, place = preprocess(rgb)
    values = (x[0] > (x[0].min() + x[0].max()) / 2).astype(np.float32)  # the block, as the network sees it
    assert 20 < values.sum() < values.size / 2
    drawn = overlay(np.zeros_like(rgb), values, place, signed=False, colormap="bone", alpha=1.0)[..., 0] > 127
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    scale_y = (place.box[3] - place.box[1]) / values.shape[0]
    scale_x = (place.box[2] - place.box[0]) / values.shape[1]
    assert abs(rows[0] - top) <= max(1, 1.5 * scale_y)
    assert abs(rows[-1] + 1 - (top + size)) <= max(1, 1.5 * scale_y)
    assert abs(columns[0] - left) <= max(1, 1.5 * scale_x)
    assert abs(columns[-1] + 1 - (left + size)) <= max(1, 1.5 * scale_x)


def test_an_exif_rotated_picture_is_drawn_upright(tmp_path: Path) -> None:
    upright = np.zeros((120, 200, 3), np.uint8)
    upright[10:30, 150:170] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(tmp_path / "x.png", exif=exif)
    picture = decode(read(tmp_path / "x.png"))
    x, place = Preprocess((120, 200), (120, 200))(picture.rgb)
    drawn = overlay(picture.rgb, x[0], place, signed=False, colormap="bone", alpha=1.0)
    assert np.array_equal(drawn[..., 0] > 127, upright[..., 0] > 127)


def test_what_the_crop_cut_off_is_dark_and_grey() -> None:
    rgb = np.full((100, 300, 3), (200, 100, 50), np.uint8)
    _, place = Preprocess(100, (100, 100))(rgb)
    drawn = overlay(rgb, np.ones((100, 100), np.float32), place, signed=False)
    outside = np.concatenate([drawn[:, :99], drawn[:, 201:]], 1)
    assert np.ptp(outside, axis=2).max() == 0
    assert outside.max() < 80
    assert np.ptp(drawn[:, 101:199], axis=2).min() > 0
    picture = gradient_picture(rgb, np.zeros((3, 100, 100), np.float32), place)
    assert np.ptp(picture[:, :99], axis=2).max() == 0
    assert np.abs(picture[:, 101:199].astype(int) - 128).max() <= 1  # a zero gradient is mid-grey


def test_levels() -> None:
    ramp = np.linspace(-3, 1, 5, dtype=np.float32)[None]
    assert to_levels(ramp, signed=False).tolist() == [[0, 64, 128, 191, 255]]
    signed = to_levels(np.array([[-2.0, -1, 0, 1, 2]]), signed=True)
    assert abs(int(signed[0, 2]) - 127.5) <= 0.5
    assert signed[0, 0] == 0
    assert signed[0, -1] == 255
    assert to_levels(np.zeros((2, 2)), signed=False).max() == 0
    assert to_levels(np.full((2, 2), 7.0), signed=False).min() == 255  # constant is not empty
    assert np.isin(to_levels(np.zeros((2, 2)), signed=True), (127, 128)).all()
    assert to_levels(np.array([[0, 1e-30]]), signed=False).tolist() == [[0, 255]]


def test_signed_maps_are_diverging_whatever_is_asked() -> None:
    colours = colorize(np.array([[-1.0, 0, 1]]), signed=True, colormap="turbo").astype(int)[0]
    assert colours[0, 2] > colours[0, 0]  # against: blue
    assert colours[2, 0] > colours[2, 2]  # for: red
    assert np.ptp(colours[1]) < 8  # zero: white


def test_strong_evidence_is_opaque_and_none_is_seen_through() -> None:
    rgb = np.full((50, 50, 3), 90, np.uint8)
    values = np.zeros((50, 50), np.float32)
    values[20:30, 20:30] = 5
    _, place = Preprocess(50, (50, 50))(rgb)
    drawn = overlay(rgb, values, place, signed=True)
    assert (drawn[:10] == 90).all()
    assert drawn[25, 25, 0] > drawn[25, 25, 2] + 50


def test_no_alpha_leaves_the_picture() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    _, place = Preprocess(30, (30, 30))(rgb)
    assert np.array_equal(overlay(rgb, np.ones((30, 30), np.float32), place, signed=False, alpha=0.0), rgb)


def test_a_map_has_the_colours_of_its_levels() -> None:
    """Through OpenCV's table and its four-channel warp, as by looking each level up."""
    values = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    for signed, colormap in ((False, "viridis"), (True, "purplegreen")):
        table = colorbar(signed, colormap, (1, 256))[0]
        assert np.array_equal(colorize(values, signed, colormap), table[to_levels(values, signed)])
    assert (table[0] != table[255]).any()
    place = Placement((0.0, 0.0, 50.0, 40.0), (40, 50))
    drawn = overlay(np.zeros((40, 50, 3), np.uint8), values, place, signed=False, alpha=1.0)
    assert np.array_equal(drawn, colorize(values, False))


def test_a_typo_in_a_colormap_is_answered() -> None:
    with pytest.raises(VisxError, match="viridis") as error:
        check_colormap("virids")
    assert error.value.code == 2


def test_scale_of_a_signed_map_is_what_one_pixel_in_a_hundred_exceeds():
    values = np.linspace(0, 1, 10_000, dtype=np.float32).reshape(100, 100)
    values[::2] *= -1
    low, high = limits(values, signed=True)
    assert low == -high and high == pytest.approx(0.99, abs=1e-3)
    values.flat[:50] = 1000.0  # half a percent of extremes
    assert limits(values, signed=True)[1] < 1.0
    values.flat[:200] = 1000.0
    assert limits(values, signed=True)[1] == 1000.0
