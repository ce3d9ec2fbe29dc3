"""Numeric pictures: the network gets the values between black and white in full precision, or visx asks which these are."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, features

from visx.errors import VisxError
from visx.images.decode import as_picture, decode
from visx.images.geometry import Preprocess
from visx.images.numeric import over_white

RAMP = np.arange(64 * 64).reshape(64, 64)  # every value of 12 bits once
UNIT = (RAMP / 4095).astype(np.float32)
TWELVE = (0.0, 4095.0)
PREPROCESS = Preprocess(40, (32, 32), "bicubic")


def tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **{"photometric": "minisblack", **options})
    return file.getvalue()


def coded(suffix: str, values: np.ndarray) -> bytes:
    """By OpenCV, red last in memory."""
    done, data = cv2.imencode(suffix, values if values.ndim == 2 else values[..., [2, 1, 0, 3][: values.shape[2]]])
    assert done
    return data.tobytes()


def numpy_file(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def colours(values: np.ndarray) -> np.ndarray:
    return np.stack([values, values[::-1], values.T], -1)


def u16(values: np.ndarray) -> np.ndarray:
    return values.astype(np.uint16)


GREY = {
    "png": coded(".png", u16(RAMP)),
    "tiff": tiff(u16(RAMP)),
    "tiff, big-endian": tiff(u16(RAMP), byteorder=">"),
    "tiff, deflated": tiff(u16(RAMP), compression="zlib", predictor=True),
    "tiff, lzw": coded(".tiff", u16(RAMP)),
    "tiff, tiles": tiff(u16(RAMP), tile=(32, 32)),
    "tiff, int16": tiff(RAMP.astype(np.int16)),
    "tiff, int32": tiff(RAMP.astype(np.int32)),
    "tiff, uint32": tiff(RAMP.astype(np.uint32)),
    "tiff, float32": tiff(RAMP.astype(np.float32)),
    "tiff, float64": tiff(RAMP.astype(np.float64)),
    "pfm": b"Pf\n64 64\n-1.0\n" + RAMP[::-1].astype("<f4").tobytes(),
    "npy": numpy_file(RAMP),
}


@pytest.mark.parametrize("name", GREY)
def test_a_range_gives_the_input_of_the_float_array(name: str) -> None:
    wanted, _ = PREPROCESS(as_picture(UNIT).pixels)
    picture = decode(GREY[name], TWELVE)
    found, _ = PREPROCESS(picture.pixels)
    assert np.abs(found - wanted).max() < 1e-6
    assert np.array_equal(picture.rgb[..., 1], np.rint(UNIT * 255).astype(np.uint8))
    assert picture.remarks == ("values 0..4095 are shown as black..white (as --range says)",)


@pytest.mark.parametrize("name", GREY)
def test_without_a_range_the_values_are_said_and_it_is_asked_for(name: str) -> None:
    with pytest.raises(VisxError, match=r"values are 0\.\.4095 \(\d\d-bit .*--range 0,4095") as error:
        decode(GREY[name])
    assert error.value.code == 1


COLOUR = {
    "png": coded(".png", u16(colours(RAMP))),
    "tiff": tiff(u16(colours(RAMP)), photometric="rgb"),
    "tiff, planes": tiff(np.moveaxis(u16(colours(RAMP)), -1, 0), photometric="rgb", planarconfig="separate"),
    "tiff, lzw": coded(".tiff", u16(colours(RAMP))),
    "tiff, float32": tiff(colours(RAMP).astype(np.float32), photometric="rgb"),
    "tiff, int16": tiff(colours(RAMP).astype(np.int16), photometric="rgb"),
    "npy": numpy_file(colours(RAMP)),
}


@pytest.mark.parametrize("name", COLOUR)
def test_colours_keep_their_order_and_all_their_bits(name: str) -> None:
    wanted, _ = PREPROCESS(as_picture(colours(UNIT)).pixels)
    found, _ = PREPROCESS(decode(COLOUR[name], TWELVE).pixels)
    assert np.abs(found - wanted).max() < 1e-6
    with pytest.raises(VisxError, match=r"values are 0\.\.4095"):
        decode(COLOUR[name])


def test_signed_and_beyond_one() -> None:
    hounsfield = (RAMP - 1024).astype(np.int16)
    picture = decode(tiff(hounsfield), (-160, 240))
    wanted = np.clip((hounsfield.astype(float) + 160) / 400, 0, 1)
    assert picture.values is not None and np.abs(picture.values[..., 0] - wanted).max() < 1e-6
    with pytest.raises(VisxError, match=r"values are -1024\.\.3071 \(16-bit signed\)"):
        decode(tiff(hounsfield))
    big = np.linspace(0, 4e9, 4096).reshape(64, 64).astype(np.uint32)  # above 2**31: Pillow reads these as negative
    picture = decode(tiff(big))
    assert picture.values is not None and np.abs(picture.values[..., 0] - big / (2**32 - 1)).max() < 1e-6
    for odd in (UNIT * 1.01, UNIT - 0.01, UNIT * 255, UNIT * 1e-3):
        with pytest.raises(VisxError, match="--range"):
            decode(tiff(odd.astype(np.float32)))
    small = (RAMP / 40 - 50).astype(np.int8)
    assert decode(tiff(small), (-50, 52)).rgb.max() == 255
    with pytest.raises(VisxError, match="8-bit signed"):
        decode(tiff(small))


def test_what_is_certain_needs_no_range() -> None:
    full = u16(RAMP) * 16
    for data in (coded(".png", full), tiff(full)):
        picture = decode(data)
        assert picture.values is not None and np.abs(picture.values[..., 0] - full / 65535).max() < 1e-6
        assert picture.remarks == ("values 0..65535 are shown as black..white (16 bits, used in full)",)
    assert decode(tiff(UNIT)).remarks == ("values 0..1 are shown as black..white (floats of 0..1)",)
    assert decode(tiff(np.zeros((8, 8), np.uint16))).rgb.max() == 0
    eight = (RAMP // 16).astype(np.uint8)
    for image in (tiff(eight), coded(".png", eight)):
        picture = decode(image)
        assert picture.values is None and picture.remarks == () and np.array_equal(picture.rgb[..., 0], eight)
    assert "8 bits" in decode(tiff(eight), TWELVE).remarks[0]
    assert np.array_equal(decode(tiff(eight), TWELVE).rgb[..., 0], eight)


def test_what_the_file_says() -> None:
    tags = [(340, "H", 1, 100, True), (341, "H", 1, 2100, True)]
    picture = decode(tiff(u16(RAMP), extratags=tags))
    wanted = np.clip((RAMP - 100) / 2000, 0, 1)
    assert picture.values is not None and np.abs(picture.values[..., 0] - wanted).max() < 1e-6
    assert "SMinSampleValue" in picture.remarks[0]
    assert decode(tiff(u16(RAMP), extratags=tags), TWELVE).remarks[0].startswith("values 0..4095")

    for header, dtype in ((b"P5\n# a comment\n64 64\n4095\n", ">u2"), (b"P2 64 64 4095\n", None)):
        body = RAMP.astype(dtype).tobytes() if dtype else " ".join(map(str, RAMP.ravel())).encode()
        picture = decode(header + body)
        assert picture.values is not None and np.abs(picture.values[..., 0] - UNIT).max() < 1e-6
    white_first = decode(tiff(u16(RAMP), photometric="miniswhite"), TWELVE)
    assert white_first.values is not None and np.abs(white_first.values[..., 0] - (1 - UNIT)).max() < 1e-6
    assert "white..black" in white_first.remarks[0]


def test_values_that_are_no_numbers_are_refused() -> None:
    for odd in (np.nan, np.inf, -np.inf):
        values = UNIT.copy()
        values[3, 5:7] = odd
        for shown in (None, (0.0, 1.0)):
            with pytest.raises(VisxError, match="2 of the picture's values are no numbers"):
                decode(tiff(values), shown)
            with pytest.raises(VisxError, match="2 of the picture's values are no numbers"):
                as_picture(values, shown)


def test_sixteen_bit_opacity_lies_over_white() -> None:
    opacity = np.where(RAMP > 2000, 65535, 0)
    rgba = u16(np.dstack([colours(RAMP * 16), opacity]))
    for data in (coded(".png", rgba), tiff(rgba, photometric="rgb", extrasamples=["unassalpha"])):
        picture = decode(data)
        wanted = np.where(opacity[..., None] > 0, colours(RAMP * 16) / 65535, 1)
        assert picture.values is not None and np.abs(picture.values - wanted).max() < 1e-6


def test_orientation_turns_numeric_pictures() -> None:
    exif = Image.Exif()
    exif[274] = 6
    file = io.BytesIO()
    Image.fromarray(u16(RAMP[:40])).save(file, "PNG", exif=exif)
    assert decode(file.getvalue(), TWELVE).rgb.shape == (64, 40, 3)
    turned = decode(file.getvalue(), TWELVE).values
    assert turned is not None and np.abs(turned[..., 0] - UNIT[:40][::-1].T).max() < 1e-6
    turned = decode(tiff(u16(RAMP[:40]), extratags=[(274, "H", 1, 6, True)]), TWELVE).values
    assert turned is not None and np.abs(turned[..., 0] - UNIT[:40][::-1].T).max() < 1e-6


def test_floats_of_eight_bits_are_resized_as_eight_bits_are() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (50, 71, 3), dtype=np.uint8)
    for preprocess in (
        Preprocess(40, (32, 32)),
        Preprocess((40, 36), (64, 64), "bilinear", fill=(9, 80, 200)),
        Preprocess(40, (32, 32), mean=(0.4,), std=(0.2,)),
    ):
        eight, place = preprocess(rgb)
        floats, same = preprocess((rgb / 255).astype(np.float32))
        assert place == same and np.abs(eight - floats).max() < 2.1 / 255 / min(preprocess.std)


def test_damaged_numeric_files_are_explained() -> None:
    for data in (GREY["png"], GREY["tiff"], GREY["tiff, deflated"], GREY["tiff, lzw"], GREY["npy"], COLOUR["png"]):
        for length in range(8, len(data), max(1, len(data) // 25)):
            try:
                decode(data[:length], TWELVE)
            except VisxError as error:
                assert error.message and "\n" not in error.message
    bomb = (
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '<u2', 'fortran_order': False, 'shape': (99999, 99999), }".ljust(117)
        + b"\n"
    )
    with pytest.raises(VisxError):
        decode(bomb)
    pickled = io.BytesIO()
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(VisxError):
        decode(pickled.getvalue())


def test_grey_and_opacity_of_sixteen_bits() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = np.dstack([RAMP, np.where(RAMP > 2000, 65535, 0)]).astype(">u2")
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 16, 4, 0, 0, 0))
    picture = decode(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b""), TWELVE)
    wanted = np.where(RAMP > 2000, UNIT, 1)
    assert picture.values is not None and np.abs(picture.values - wanted[..., None]).max() < 1e-6


def test_a_grey_of_sixteen_bits_that_is_transparent() -> None:
    """PNG's tRNS names one sample value."""
    file = io.BytesIO()
    Image.fromarray(u16(RAMP)).save(file, "PNG", transparency=int(RAMP[3, 3]))
    picture = decode(file.getvalue(), TWELVE)
    assert picture.values is not None
    assert np.abs(picture.values[..., 0] - np.where(RAMP[3, 3] == RAMP, 1, UNIT)).max() < 1e-6


def test_pages_after_the_first_are_remarked() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        one, two = io.BytesIO(), io.BytesIO()
        frames[0].save(one, kind)
        frames[0].save(two, kind, save_all=True, append_images=frames[1:])
        assert decode(one.getvalue()).remarks == ()
        assert decode(two.getvalue()).remarks == ("only the first of the file's pages or frames is shown",)
        assert decode(two.getvalue()).rgb[8, 8, 0] > 250
    stack = tiff(u16(np.stack([RAMP, RAMP[::-1]])))
    picture = decode(stack, TWELVE)
    assert len(picture.remarks) == 2 and picture.values is not None
    assert np.abs(picture.values[..., 0] - UNIT).max() < 1e-6
    reduced = io.BytesIO()  # a smaller copy of the first page is no second picture
    with tifffile.TiffWriter(reduced) as writer:
        writer.write(u16(RAMP), photometric="minisblack")
        writer.write(u16(RAMP[::2, ::2]), photometric="minisblack", subfiletype=1)
    assert len(decode(reduced.getvalue(), TWELVE).remarks) == 1


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiffs_of_many_bands(planar: str, dtype: type) -> None:
    bands = np.random.default_rng(0).random((12, 14, 11))
    values = bands.astype(dtype) if dtype is np.float32 else (bands * np.iinfo(dtype).max).astype(dtype)
    stored = np.moveaxis(values, -1, 0) if planar == "separate" else values
    picture = decode(tiff(stored, planarconfig=planar), channels=11)
    wanted = values if dtype is np.float32 else values / np.iinfo(dtype).max
    assert picture.values is not None and np.abs(picture.values - wanted).max() < 1e-6
    assert np.array_equal(picture.rgb, np.rint(picture.values[..., :3] * 255).astype(np.uint8))
    with pytest.raises(VisxError, match="the picture has 11 channels, and the network takes 3"):
        PREPROCESS(decode(tiff(stored, planarconfig=planar)).pixels)
    photo = decode(tiff(values[..., :4], photometric="rgb", extrasamples=["unspecified"]))  # red, green, blue, infrared
    assert photo.pixels.shape == (12, 14, 3)
    four = decode(tiff(values[..., :4], photometric="rgb", extrasamples=["unspecified"]), channels=4)
    assert four.values is not None and np.abs(four.values - wanted[..., :4]).max() < 1e-6


@pytest.mark.skipif(not features.check("jpg_2000"), reason="this Pillow reads no JPEG 2000")
def test_jpeg_2000_of_sixteen_bits() -> None:
    for values in (u16(RAMP), u16(colours(RAMP))):
        done, data = cv2.imencode(
            ".jp2", values if values.ndim == 2 else values[..., ::-1], [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
        )
        assert done
        picture = decode(data.tobytes(), TWELVE)
        wanted = UNIT[..., None] if values.ndim == 2 else colours(UNIT)
        assert picture.values is not None and np.abs(picture.values - wanted).max() < 3 / 4095
        with pytest.raises(VisxError, match="values are"):
            decode(data.tobytes())


def test_bands_of_eight_bits_say_that_a_range_does_not_count() -> None:
    bands = np.random.default_rng(0).integers(0, 256, (9, 9, 11), dtype=np.uint8)
    for picture in (decode(numpy_file(bands), TWELVE, 11), as_picture(bands, TWELVE, 11)):
        assert picture.values is not None and np.abs(picture.values - bands / 255).max() < 1e-6
        assert picture.remarks == ("8 bits are shown as they are: the range is for numeric pictures",)
    rgba = bands[..., :4]
    wanted = over_white((rgba / 255).astype(np.float32))
    for values in (decode(numpy_file(rgba)).pixels, as_picture((rgba / 255).astype(np.float32)).pixels):
        assert (
            values.shape == (9, 9, 3)
            and np.abs((values / 255 if values.dtype == np.uint8 else values) - wanted).max() < 0.51 / 255
        )


def test_resizing_does_not_leave_the_range() -> None:
    edge = np.zeros((64, 64, 1), np.float32)
    edge[:, 32:] = 1  # bicubic overshoots here; 8 bits are cut, and so are these
    x, _ = Preprocess(40, (40, 40), "bicubic", mean=(0,), std=(1,))(edge)
    assert x.min() == 0 and x.max() == 1
