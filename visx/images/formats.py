"""File endings: which files a walk through a folder reads as pictures, and which it passes over with a remark."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache

from visx.images import dicom, heif

# Formats that every Pillow opens, and numeric ones that visx reads itself
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
    | {".pbm", ".pgm", ".ppm", ".pnm", ".pfm"}
)


def _pillow(feature: str) -> Callable[[], bool]:
    """A function that says whether the installed Pillow has a feature."""

    def available() -> bool:
        from PIL import features

        return bool(features.check(feature))

    return available


def _never() -> bool:
    return False


# Other formats: their endings, whether a walk reads them, and what a user can do where it does not
_OTHERS: tuple[tuple[str, Callable[[], bool], str], ...] = (
    (".avif .avifs", _pillow("avif"), "a Pillow with AVIF reads them"),
    (".jp2 .j2k .jpx .jpf .j2c .jpc", _pillow("jpg_2000"), "a Pillow with JPEG 2000 reads them"),
    (".heic .heif .hif", heif.available, "pip install 'visx[heif]'"),
    (".dcm .dicom", dicom.available, "pip install 'visx[medical]'"),
    (".jxl", _never, "convert them, for instance with djxl"),
    (".svg .pdf .eps .ps .ai", _never, "drawings: render them first"),
    (".cr2 .cr3 .nef .arw .dng .orf .rw2 .raf .pef .srw", _never, "raw files of cameras: develop them first"),
    (".psd .exr .hdr .tga .ico .dds .fits .fit", _never, "convert them, or name them as INPUT where Pillow reads them"),
    (".nii .nii.gz .nrrd .mha .mhd", _never, "volumes: save slices as .npy or .tiff"),
    (".npy", _never, "arrays are pictures where they are named as INPUT themselves"),
)
_BY_ENDING = {ending: (readable, advice) for endings, readable, advice in _OTHERS for ending in endings.split()}


def ending(name: str) -> str:
    """The ending of a file name in lower case, with its dot; of a compressed volume both endings (`.nii.gz`)."""
    stem, last = os.path.splitext(name.lower())
    both = os.path.splitext(stem)[1] + last
    return both if both in _BY_ENDING else last


@cache
def taken(suffix: str) -> bool:
    """Whether a walk reads files with this ending (lower case, with its dot)."""
    return suffix in SUFFIXES or (suffix in _BY_ENDING and _BY_ENDING[suffix][0]())


def is_other(suffix: str) -> bool:
    """Whether this is the ending of a known picture format that a walk passes over."""
    return suffix in _BY_ENDING and not taken(suffix)


def passed_over(suffixes: Iterable[str]) -> str:
    """The remark on files that were passed over, from the ending of each; empty where there are none."""
    counts = Counter(suffixes)
    if not counts:
        return ""
    hints: dict[str, list[str]] = {}
    for suffix in sorted(counts):
        hints.setdefault(_BY_ENDING[suffix][1], []).append(f"{counts[suffix]} {suffix}")
    parts = (f"{', '.join(endings)} ({advice})" for advice, endings in hints.items())
    total = sum(counts.values())
    return f"passing over {total} file{'s' * (total > 1)} of other formats: {'; '.join(parts)}"
