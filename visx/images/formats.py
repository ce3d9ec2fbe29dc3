"""Which files a walk through a folder takes for pictures, and which it passes over with a remark."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache

from visx.images import dicom, heif

# What every Pillow opens, and numeric formats.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".gif"}
    | {".pbm", ".pgm", ".ppm", ".pnm", ".pfm"}
)


def _pillow(feature: str) -> Callable[[], bool]:
    def there() -> bool:
        from PIL import features

        return bool(features.check(feature))

    return there


def _never() -> bool:
    return False


# What needs something: its endings, whether it is there, and how to have it.
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
_OF = {suffix: (there, how) for suffixes, there, how in _OTHERS for suffix in suffixes.split()}


def ending(name: str) -> str:
    """A file name's ending in lower case, with its dot; of a compressed volume (`.nii.gz`) both."""
    stem, last = os.path.splitext(name.lower())
    both = os.path.splitext(stem)[1] + last
    return both if both in _OF else last


@cache
def taken(suffix: str) -> bool:
    """Whether a walk takes files of this ending (lower case, with its dot)."""
    return suffix in SUFFIXES or (suffix in _OF and _OF[suffix][0]())


def is_other(suffix: str) -> bool:
    """Whether this is the ending of pictures that a walk passes over."""
    return suffix in _OF and not taken(suffix)


def passed_over(suffixes: Iterable[str]) -> str:
    """A remark on files that were passed over, by the ending of each; empty where there are none."""
    counts = Counter(suffixes)
    if not counts:
        return ""
    hints: dict[str, list[str]] = {}
    for suffix in sorted(counts):
        hints.setdefault(_OF[suffix][1], []).append(f"{counts[suffix]} {suffix}")
    parts = (f"{', '.join(endings)} ({how})" for how, endings in hints.items())
    total = sum(counts.values())
    return f"passing over {total} file{'s' * (total > 1)} of other formats: {'; '.join(parts)}"
