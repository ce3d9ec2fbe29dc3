"""DICOM files (extra `visx[medical]`): the first frame, shown through the window that the file states."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from visx.errors import VisxError, said_by
from visx.images.deep import PAGES
from visx.images.numeric import Range, Samples

if TYPE_CHECKING:
    import numpy as np


def is_dicom(data: bytes) -> bool:
    """Whether these are the bytes of a DICOM file: `DICM` after a preamble of 128 bytes (PS3.10)."""
    return data[128:132] == b"DICM"


def available() -> bool:
    """Whether pydicom is installed."""
    from importlib.util import find_spec

    return find_spec("pydicom") is not None


def dicom_samples(data: bytes, asked: Range | None, check: Any) -> Samples:
    """The samples of a DICOM file's first frame.

    Stored values are converted to the modality's values (Rescale Slope and Intercept, or Modality LUT), so that `--range` is
    in Hounsfield units for CT. `asked` is that range; without it the file's first window or VOI LUT is applied, with the
    window's function (PS3.3 C.11.2.1). MONOCHROME1 is inverted. `check(width, height, bytes)` raises where the picture is
    too large. Raises `VisxError` where pydicom is missing or the file cannot be read.
    """
    if not available():
        raise VisxError("this is a DICOM file", hint="pip install 'visx[medical]' reads them")
    import pydicom

    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        if "PixelData" not in dataset and "FloatPixelData" not in dataset and "DoubleFloatPixelData" not in dataset:
            raise VisxError("the DICOM file holds no picture")
        check(int(dataset.Columns), int(dataset.Rows) * int(dataset.SamplesPerPixel), len(data))
        return _samples(dataset, asked)
    except VisxError:
        raise
    except (
        Exception
    ) as error:  # pydicom raises any exception for damaged files and for compressions that need a package
        raise VisxError(f"the DICOM file cannot be read: {said_by(error)}") from None


def _samples(dataset: Any, asked: Range | None) -> Samples:
    """The samples of the first frame, with the range or the note that belongs to its colours."""
    from pydicom.pixels import apply_color_lut, pixel_array

    array = pixel_array(dataset, index=0)
    remarks = (PAGES,) if int(dataset.get("NumberOfFrames") or 1) > 1 else ()
    colours = dataset.PhotometricInterpretation
    if colours == "PALETTE COLOR":
        array = apply_color_lut(array, dataset)
        bits = int(dataset.RedPaletteColorLookupTableDescriptor[2])
        return Samples(array, (0.0, float(2**bits - 1)), "the file's palette", remarks=remarks)
    if array.ndim == 3:  # colours need no window; pydicom has converted YBR to RGB
        stored = int(dataset.BitsStored)
        return Samples(array, (0.0, float(2**stored - 1)), f"{stored} bits, as the file says", remarks=remarks)
    values, note = _windowed(_modality(array, dataset), dataset, asked)
    return Samples(values[..., None], inverted=colours == "MONOCHROME1", note=note, remarks=remarks)


def _modality(array: np.ndarray, dataset: Any) -> np.ndarray:
    """Stored values as the modality's values; the same array where the file states no conversion."""
    from pydicom.pixels import apply_modality_lut

    scale = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
    same = scale == (1.0, 0.0) and not dataset.get("ModalityLUTSequence")
    return array if same else apply_modality_lut(array, dataset)


def _windowed(values: np.ndarray, dataset: Any, asked: Range | None) -> tuple[np.ndarray, str]:
    """The modality's values through the file's VOI LUT or window, in 0..1, and a note that says which.

    The unchanged values and no note where a range is `asked` for or the file states neither.
    """
    import numpy as np
    from pydicom.pixels import apply_voi, apply_windowing

    if asked is not None:
        return values, ""
    if dataset.get("VOILUTSequence"):
        white = float(2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
        whole = values if values.dtype.kind in "iu" else np.rint(values).astype(np.int64)
        return apply_voi(whole, dataset, index=0) / white, "shown through the file's VOI LUT"
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return values, ""
    centre, width = (_first(dataset[name].value) for name in ("WindowCenter", "WindowWidth"))
    with np.errstate(over="ignore"):
        black, white = apply_windowing(np.array([-1e30, 1e30]), dataset, index=0)  # the values at the window's two ends
        shown = (apply_windowing(values, dataset, index=0) - black) / (white - black)
    return shown, f"shown through the file's window: centre {centre:g}, width {width:g}"


def _first(value: Any) -> float:
    return float(value[0]) if hasattr(value, "__len__") and not isinstance(value, str) else float(value)
