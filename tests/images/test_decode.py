"""Decoding: every file the way a person sees it, every broken one with a reason. Geometry: the peers' transforms, bit for bit."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image, ImageFile, TiffImagePlugin
from timm.data import create_transform, resolve_data_config
from torchvision import models

from visx.errors import VisxError
from visx.images.decode import as_picture, decode, read
from visx.images.geometry import Preprocess
from visx.models.sources.builtin import BuiltIn
from visx.models.sources.timm import Timm
from visx.models.sources.torchvision import Torchvision

SIZES = [(300, 451), (451, 300), (17, 23), (1, 1), (333, 333), (255, 257), (229, 640), (500, 3)]


def noise(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(height: int = 40, width: int = 60) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 6, x * 4, (x + y) * 2], -1).astype(np.uint8)


@pytest.mark.parametrize("name", ["resnet50", "vgg11", "inception_v3", "efficientnet_b0", "swin_v2_s", "maxvit_t"])
def test_preprocess_is_torchvisions(name: str) -> None:
    transform = models.get_model_weights(name).DEFAULT.transforms()
    preprocess = Torchvision(name).preprocess()
    for size in SIZES:
        picture = noise(*size)
        found, _ = preprocess(np.asarray(picture))
        assert np.array_equal(found, transform(picture).numpy()), size


@pytest.mark.parametrize(
    "name",
    ["resnet50", "tf_efficientnet_lite0", "vit_base_patch16_224", "convnext_tiny", "deepseek_vit_412m", "beit_base_patch16_224",
     "resnetv2_50x1_bit", "eva02_tiny_patch14_224", "mobilenetv3_large_100", "inception_v3"],
)  # fmt: skip
def test_preprocess_is_timms(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    config = resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = create_transform(**config, is_training=False)
    preprocess = Timm(f"timm/{name}").preprocess()
    for size in SIZES:
        picture = noise(*size)
        found, _ = preprocess(np.asarray(picture))
        assert np.array_equal(found, transform(picture).numpy()), size


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_crop_modes_of_inputs_that_are_not_square(mode: str, crop_pct: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"input_size": (3, 32, 48), "crop_pct": crop_pct, "crop_mode": mode, "interpolation": "bicubic",
              "mean": (0.3, 0.4, 0.5), "std": (0.2, 0.3, 0.25)}  # fmt: skip
    monkeypatch.setattr(timm.data, "resolve_data_config", lambda *a, **k: config)
    preprocess = Timm("timm/resnet18").preprocess()
    transform = create_transform(**config, is_training=False)
    for size in SIZES[:3] + SIZES[4:7]:
        picture = noise(*size)
        found, _ = preprocess(np.asarray(picture))
        assert np.array_equal(found, transform(picture).numpy()), size


def test_the_builtin_preprocesses_as_timms_lite0() -> None:
    assert BuiltIn().preprocess() == Timm("timm/tf_efficientnet_lite0").preprocess()


def test_a_strip_is_cropped_out_of_the_source_instead_of_being_resized_whole() -> None:
    strip = smooth(1, 60)
    tall = np.repeat(strip.reshape(60, 1, 3), 400, axis=0)  # 24000 x 1
    preprocess = Preprocess(256, (224, 224))
    found, place = preprocess(tall)
    assert found.shape == (3, 224, 224)
    assert place.box == pytest.approx(((256 - 224) / 2 / 256, 12000 - 0.4375, 1 - 1 / 16, 12000 + 0.4375), abs=0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    upright = smooth()
    stored = {  # what a camera held that way has stored
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.png"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
    assert np.array_equal(decode(read(path)).rgb, upright)
    with Image.open(path) as image:
        assert np.array_equal(as_picture(image).rgb, upright)


def test_modes_and_formats_look_as_a_viewer_shows_them(tmp_path: Path) -> None:
    rgb = smooth()
    grey = rgb[..., 0]

    def seen(image: Image.Image, suffix: str, **options: object) -> np.ndarray:
        path = tmp_path / f"x.{suffix}"
        image.save(path, **options)  # type: ignore[arg-type]
        return decode(read(path)).rgb.astype(int)

    for suffix in ("png", "bmp", "tiff"):
        assert np.array_equal(seen(Image.fromarray(rgb), suffix), rgb)
    assert np.array_equal(seen(Image.fromarray(rgb), "webp", lossless=True), rgb)
    assert np.abs(seen(Image.fromarray(rgb), "jpg", quality=98) - rgb).max() < 12
    assert np.array_equal(seen(Image.fromarray(grey), "png"), np.repeat(grey[..., None], 3, -1))
    assert np.array_equal(seen(Image.fromarray(grey > 99), "png")[..., 0], np.where(grey > 99, 255, 0))
    cmyk = np.zeros((4, 4, 4), np.uint8)
    cmyk[..., 1:3] = 255  # magenta and yellow make red
    assert (
        seen(Image.fromarray(cmyk, "CMYK"), "tiff")[..., 0] > seen(Image.fromarray(cmyk, "CMYK"), "tiff")[..., 1]
    ).all()

    alpha = np.full((*grey.shape, 1), 255, np.uint8)
    alpha[:20] = 0
    over_white = np.where(alpha == 255, rgb, 255)
    assert np.array_equal(seen(Image.fromarray(np.concatenate([rgb, alpha], -1)), "png"), over_white)
    la = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha[..., 0])])
    assert np.array_equal(seen(la, "png")[..., 1], np.where(alpha[..., 0] == 255, grey, 255))
    palette = Image.fromarray((grey > 99).astype(np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert seen(palette, "png")[0, 0].tolist() == [255, 0, 0]
    assert seen(palette, "png", transparency=0)[0, 0].tolist() == [255, 255, 255]
    assert seen(palette, "png", transparency=0)[-1, 0].tolist() == [0, 0, 255]

    sixteen = (grey.astype(np.uint16) << 8) + grey
    for suffix in ("png", "tiff"):
        assert np.array_equal(seen(Image.fromarray(sixteen), suffix)[..., 2], grey)
    floats = grey.astype(np.float32) / 255
    assert np.array_equal(seen(Image.fromarray(floats), "tiff")[..., 0], grey)
    lab = np.full((4, 4, 3), (128, 0, 0), np.uint8)  # L* 50, no colour
    assert np.abs(seen(Image.fromarray(lab, "LAB"), "tiff").astype(int) - 119).max() <= 1

    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    assert seen(frames[0], "gif", save_all=True, append_images=frames[1:])[0, 0].tolist() == [254, 0, 0] or seen(
        frames[0], "gif", save_all=True, append_images=frames[1:]
    )[0, 0].tolist() == [255, 0, 0]


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def test_broken_files_say_what_is_wrong(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    noise(80, 80).save(whole)
    path = tmp_path / "x.jpg"
    for data, message in [
        (b"", "empty"),
        (b"not a picture", "not an image"),
        (whole.read_bytes()[:3000], "damaged"),
        (png(60000, 60000), "refused"),
        (png(100, 100), "damaged"),
    ]:
        path.write_bytes(data)
        with pytest.raises(VisxError, match=message) as error:
            decode(read(path))
        assert error.value.code == 1
        assert "\n" not in error.value.message
    for odd, message in [(tmp_path, "regular"), (tmp_path / "gone", "No such"), (Path("a\0b"), "null")]:
        with pytest.raises(VisxError, match=message):
            decode(read(odd))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(VisxError, match="regular file"):
        decode(read(tmp_path / "x.jpg"))


def test_truncation_at_every_length_is_an_explained_error_or_a_picture(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "gif", "webp", "tiff", "bmp"):
        path = tmp_path / f"x.{suffix}"
        Image.fromarray(smooth(9, 9)).save(path)
        data = path.read_bytes()
        for length in range(0, len(data), max(1, len(data) // 25)):
            path.write_bytes(data[:length])
            try:
                assert decode(read(path)).rgb.shape == (9, 9, 3)
            except VisxError as error:
                assert error.message


def test_arrays_are_checked() -> None:
    assert as_picture(smooth()[..., 0]).rgb.shape == (40, 60, 3)
    assert as_picture(smooth()[..., :1]).rgb.shape == (40, 60, 3)
    for bad in (np.zeros((4, 4), "c8"), np.zeros((3, 4, 4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8)):
        with pytest.raises(VisxError, match="an image array must be numbers"):
            as_picture(bad)
    with pytest.raises(VisxError, match=r"transpose\(1, 2, 0\)"):
        as_picture(np.zeros((3, 8, 8)))
    with pytest.raises(VisxError, match="no pixels"):
        as_picture(np.zeros((0, 4, 3), np.uint8))


def test_a_network_of_one_channel_sees_grey() -> None:
    red = np.zeros((8, 8, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    x, _ = Preprocess(None, (8, 8), mean=(0.0,), std=(1.0,))(red)
    assert x.shape == (1, 8, 8)
    np.testing.assert_allclose(x, 76 / 255)  # ITU-R 601-2 luma


def claiming(kind: str, side: int) -> bytes:
    """A small file whose header says that it is `side` pixels high and wide."""
    small = Image.fromarray(smooth(8, 8))
    buffer = io.BytesIO()
    small.convert("P").save(buffer, kind) if kind == "GIF" else small.save(buffer, kind)
    data = bytearray(buffer.getvalue())
    if kind == "PNG":
        data[16:24] = struct.pack(">II", side, side)
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", side, side)
    elif kind == "BMP":
        data[18:26] = struct.pack("<II", side, side)
    elif kind == "JPEG":
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", side, side)
    else:
        for tag in (256, 257):
            entry = next(i for i in range(len(data)) if data[i : i + 4] in (struct.pack("<HH", tag, k) for k in (3, 4)))
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, side)
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "JPEG", "TIFF"])
def test_a_small_file_that_claims_to_be_huge_is_refused_before_it_is_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, huge = claiming(kind, 13_000), claiming(kind, 60_000)
    for image in (Image.Image, ImageFile.ImageFile, TiffImagePlugin.TiffImageFile):
        monkeypatch.setattr(image, "load", lambda self: pytest.fail("it was decoded"))
    for data, reason in ((large, "refused: 13000 x 13000 pixels in a file of"), (huge, "refused: Image size")):
        with pytest.raises(VisxError, match=reason):
            decode(data)


def test_an_endless_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.png").open("wb") as file:
        file.truncate(2**40)  # sparse: it takes no room
    with pytest.raises(VisxError, match="refused: the image file has 1099511627776 bytes"):
        read(tmp_path / "a.png")


def test_a_large_plain_picture_is_no_such_file() -> None:
    buffer = io.BytesIO()
    Image.new("L", (8000, 6500)).save(buffer, "PNG")
    assert decode(buffer.getvalue()).rgb.shape == (6500, 8000, 3)


def test_a_file_that_is_a_program_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.fromarray(smooth()).save(buffer, "EPS")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("it was run"))
    with pytest.raises(VisxError, match="EPS file is a program"):
        decode(buffer.getvalue())
