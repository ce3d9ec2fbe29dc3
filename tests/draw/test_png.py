"""PNG files: what other people's decoders make of them."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from visx.draw.png import encode_png


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (30, 41), (375, 500)])
@pytest.mark.parametrize("kind", ["noise", "flat", "smooth"])
def test_the_pixels_come_back(shape: tuple[int, int], kind: str) -> None:
    dice = np.random.default_rng(0)
    rgb = dice.integers(0, 256, (*shape, 3), dtype=np.uint8)
    if kind == "flat":
        rgb[:] = 200
    elif kind == "smooth":
        rgb[:] = (np.add.outer(*map(np.arange, shape)) // 3 % 256).astype(np.uint8)[..., None]
    data = encode_png(rgb)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # the checksums
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), rgb)
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1], rgb)


def test_a_view_of_a_picture_and_its_copy_give_the_same_file() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    view = rgb[3:30, 10:50]
    assert encode_png(view) == encode_png(view.copy())


def test_a_smooth_picture_is_small() -> None:
    ramp = np.repeat(np.arange(300, dtype=np.uint16)[:, None, None] // 2, 400, 1).astype(np.uint8).repeat(3, 2)
    assert len(encode_png(ramp)) < ramp.nbytes / 50
