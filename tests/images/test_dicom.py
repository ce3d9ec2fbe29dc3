"""DICOM and HEIC: windows against the standard's formulas, written out; what is missing or damaged is said."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from visx.errors import VisxError
from visx.images import dicom, heif
from visx.images.decode import decode

pydicom: Any = pytest.importorskip("pydicom", reason="needs the extra `medical`")

STORED = np.linspace(0, 4095, 32 * 24).astype(np.uint16).reshape(24, 32)
VALUES = STORED.astype(float) - 1024  # Hounsfield units


def file_of(stored: np.ndarray = STORED, **tags: Any) -> bytes:
    """A CT slice with these tags."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    frames = stored.shape[0] if stored.ndim == 3 and stored.shape[-1] != 3 else 1
    data.Rows, data.Columns = stored.shape[-2:] if stored.shape[-1] != 3 else stored.shape[-3:-1]
    data.SamplesPerPixel = 3 if stored.shape[-1] == 3 else 1
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = 0
    if frames > 1:
        data.NumberOfFrames = frames
    bits = 8 * stored.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, min(bits, 12), min(bits, 12) - 1
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    data.PhotometricInterpretation = "RGB" if data.SamplesPerPixel == 3 else "MONOCHROME2"
    if bits == 16:
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.PixelData = stored.tobytes()
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def linear(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1."""
    y = (x - (c - 0.5)) / (w - 1) + 0.5
    return np.where(x <= c - 0.5 - (w - 1) / 2, 0, np.where(x > c - 0.5 + (w - 1) / 2, 1, y))


def linear_exact(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.2."""
    return np.where(x <= c - w / 2, 0, np.where(x > c + w / 2, 1, (x - c) / w + 0.5))


def sigmoid(x: np.ndarray, c: float, w: float) -> np.ndarray:
    """PS3.3 C.11.2.1.3.1."""
    return 1 / (1 + np.exp(-4 * (x - c) / w))


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("centre, width", [(40, 400), ([50, 600], [350, 1500]), (-600, 1500)])
def test_windows_are_the_standards(function: str | None, centre: Any, width: Any) -> None:
    tags = {"WindowCenter": centre, "WindowWidth": width, **({"VOILUTFunction": function} if function else {})}
    picture = decode(file_of(**tags))
    c, w = (v[0] if isinstance(v, list) else v for v in (centre, width))
    formula = {"LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}.get(function or "", linear)
    assert picture.values is not None and picture.values.dtype == np.float32
    assert np.abs(picture.values[..., 0] - formula(VALUES, c, w)).max() < 1e-6
    assert picture.remarks == (f"shown through the file's window: centre {c:g}, width {w:g}",)
    inverted = decode(file_of(**tags, PhotometricInterpretation="MONOCHROME1"))
    assert inverted.values is not None and np.abs(inverted.values + picture.values - 1).max() < 1e-6
    assert np.array_equal(picture.rgb[..., 2], np.rint(picture.values[..., 0] * 255).astype(np.uint8))


def test_a_range_is_in_the_modalitys_units_and_beats_the_window() -> None:
    for tags in ({}, {"WindowCenter": 40, "WindowWidth": 400}):
        picture = decode(file_of(**tags), (-160, 240))
        wanted = np.clip((VALUES + 160) / 400, 0, 1)
        assert picture.values is not None and np.abs(picture.values[..., 0] - wanted).max() < 1e-6
    with pytest.raises(VisxError, match=r"values are -1024\.\.3071 .*--range"):
        decode(file_of())
    signed = decode(
        file_of((STORED - 1024.0).astype(np.int16), RescaleIntercept=0, RescaleSlope=2, BitsStored=16, HighBit=15),
        (-100, 300),
    )
    wanted = np.clip((2 * VALUES + 100) / 400, 0, 1)
    assert signed.values is not None and np.abs(signed.values[..., 0] - wanted).max() < 1e-6


def test_a_voi_lut_is_looked_up() -> None:
    from pydicom.dataset import Dataset

    lut = Dataset()
    curve = (np.linspace(0, 1, 4096) ** 2 * 4095).astype(np.uint16)
    lut.LUTDescriptor, lut.LUTData = [4096, 0, 12], curve.tobytes()
    lut["LUTData"].VR = "OW"
    picture = decode(file_of(RescaleIntercept=0, VOILUTSequence=[lut]))
    assert picture.values is not None and np.abs(picture.values[..., 0] - curve[STORED] / 4095).max() < 1e-6
    assert picture.remarks == ("shown through the file's VOI LUT",)


def test_colours_eight_bits_and_frames() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = decode(file_of(rgb))
    assert np.array_equal(picture.rgb, rgb) and picture.values is None and picture.remarks == ()
    grey = (STORED // 16).astype(np.uint8)
    for tags in ({}, {"RescaleSlope": 1, "RescaleIntercept": 0}):
        picture = decode(file_of(grey, **tags))
        assert np.array_equal(picture.rgb[..., 0], grey) and picture.values is None
    frames = decode(file_of(np.stack([STORED, STORED[::-1]]), WindowCenter=40, WindowWidth=400))
    assert frames.values is not None and np.abs(frames.values[..., 0] - linear(VALUES, 40, 400)).max() < 1e-6
    assert "first of the file's pages or frames" in frames.remarks[1]


def test_damaged_files_are_one_clear_line() -> None:
    data = file_of(WindowCenter=40, WindowWidth=400)
    for length in (*range(140, len(data), max(1, len(data) // 40)), len(data) - 1):
        with pytest.raises(VisxError) as error:
            decode(data[:length])
        assert error.value.message and "\n" not in error.value.message
    for broken in (
        file_of(WindowCenter=40, WindowWidth=0),
        file_of(WindowCenter=40, WindowWidth=4, VOILUTFunction="ODD"),
    ):
        with pytest.raises(VisxError, match="the DICOM file cannot be read"):
            decode(broken)
    huge = file_of(WindowCenter=40, WindowWidth=400, Rows=65535, Columns=65535)
    with pytest.raises(VisxError, match="refused: 65535 x 65535 pixels"):
        decode(huge)


def test_without_the_extras_they_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom, "available", lambda: False)
    with pytest.raises(VisxError, match="this is a DICOM file") as error:
        decode(file_of())
    assert "visx[medical]" in error.value.hint
    monkeypatch.setattr(heif, "available", lambda: False)
    with pytest.raises(VisxError, match="HEIC") as error:
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    assert "visx[heif]" in error.value.hint


def test_heic_is_upright() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra `heif`")
    from PIL import Image

    rgb = np.zeros((48, 64, 3), np.uint8)
    rgb[:, :32] = (200, 30, 30)
    rgb[:, 32:] = (20, 40, 210)
    for orientation, turned in ((1, rgb), (6, np.rot90(rgb, -1))):
        exif = Image.Exif()
        exif[274] = orientation
        out = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(rgb)).save(out, quality=95, exif=exif.tobytes())
        picture = decode(out.getvalue())
        assert picture.rgb.shape == turned.shape
        assert np.median(np.abs(picture.rgb.astype(int) - turned)) < 12
        with pytest.raises(VisxError):
            decode(out.getvalue()[:200])
    assert "HEIF" not in Image.OPEN  # Pillow's own list of formats is left alone
