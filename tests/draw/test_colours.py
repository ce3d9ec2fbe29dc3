"""Scales and bars of maps: what the ends of a colour map mean, alone and shared."""

from __future__ import annotations

import numpy as np
import pytest

from visx.draw import colours, overlay
from visx.images.geometry import Placement

RAMP = np.linspace(0.2, 1, 64, dtype=np.float32).reshape(8, 8)


def test_limits_are_the_maps_own_and_symmetric_where_signed():
    assert colours.limits(RAMP, False) == pytest.approx((0.2, 1))
    low, high = colours.limits(RAMP - 0.9, True)
    assert low == -high and 0.6 < high <= 0.7
    assert colours.limits(np.full((4, 4), 3.0), False) == (0, 3) and colours.limits(np.zeros((4, 4)), True) == (-1, 1)


def test_a_shared_scale_reaches_as_far_as_the_widest():
    assert colours.shared([(0, 1), (0.5, 3), (-1, 2)]) == (-1, 3)
    weak, strong = RAMP * 0.25, RAMP
    scale = colours.shared(colours.limits(m, False) for m in (weak, strong))
    assert colours.to_levels(strong, False, scale).max() == 255
    assert colours.to_levels(weak, False, scale).max() == pytest.approx(255 * (0.25 - 0.05) / 0.95, abs=1)
    assert colours.to_levels(weak, False).max() == 255


@pytest.mark.parametrize("signed", [False, True])
def test_a_maps_own_scale_changes_nothing(signed):
    rgb, place = np.full((20, 20, 3), 90, np.uint8), Placement((2, 2, 18, 18), (8, 8))
    values = RAMP - 0.5
    own = colours.limits(values, signed)
    assert np.array_equal(
        overlay.overlay(rgb, values, place, signed), overlay.overlay(rgb, values, place, signed, scale=own)
    )
    channels = np.stack([values] * 3)
    scaled = overlay.gradient_picture(rgb, channels, place, colours.limits(channels, True))
    assert np.array_equal(overlay.gradient_picture(rgb, channels, place), scaled)


@pytest.mark.parametrize("signed", [False, True])
def test_an_overlay_on_a_wider_scale_is_what_a_map_of_that_scale_is_given(signed):
    rgb, place = np.full((8, 8, 3), 90, np.uint8), Placement((0, 0, 8, 8), (8, 8))
    drawn = overlay.overlay(rgb, RAMP, place, signed, alpha=1, scale=(-4 if signed else 0, 4))
    if signed:  # 1 of 4: a quarter of the strength over grey, and a quarter of the way from white to red
        assert (
            np.abs(
                drawn[-1, -1].astype(int) - (90 * 0.75 + colours.colorize(RAMP, True, scale=(-4, 4))[-1, -1] * 0.25)
            ).max()
            <= 2
        )
    else:
        assert np.array_equal(drawn, colours.colorize(RAMP, False, scale=(0, 4)))
        assert not np.array_equal(drawn, overlay.overlay(rgb, RAMP, place, signed, alpha=1))


def test_a_bar_has_the_colours_that_a_map_has():
    for signed, colormap in ((False, "turbo"), (False, "jet"), (True, "turbo"), (True, "purplegreen")):
        bar = colours.colorbar(signed, colormap, (4, 256))
        ramp = np.linspace(-1, 1, 256)[None] if signed else np.linspace(0, 1, 256)[None]
        mapped = colours.colorize(ramp, signed, colormap, (-1, 1) if signed else (0, 1))
        assert bar.shape == (4, 256, 3) and np.abs(bar[0].astype(int) - mapped[0]).max() <= 4
    middle = colours.colorbar(True, "bluered", (1, 255))[0, 127]
    assert middle.min() > 240  # zero is white


def test_strength_knows_no_direction():
    values = np.array([[-2.0, 1.0, 0.0, 4.0]])
    assert colours.strength(values, (-2, 2)).tolist() == [[1, 0.5, 0, 1]]


def test_cutting_leaves_what_the_network_saw():
    picture = np.arange(10 * 12 * 3, dtype=np.uint8).reshape(10, 12, 3)
    assert np.array_equal(overlay.cut(picture, Placement((3, 2, 9, 8), (4, 4))), picture[2:8, 3:9])
    assert overlay.cut(picture, Placement((-5, -5, 20, 20), (4, 4))).shape == picture.shape
