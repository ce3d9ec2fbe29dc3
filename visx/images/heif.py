"""HEIC and HEIF files (extra `visx[heif]`)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from visx.errors import VisxError

if TYPE_CHECKING:
    from PIL import Image

_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def is_heif(data: bytes) -> bool:
    """Whether these are the bytes of an HEIF file other than AVIF."""
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS and b"avif" not in data[12:64]


def available() -> bool:
    """Whether pillow-heif is installed."""
    from importlib.util import find_spec

    return find_spec("pillow_heif") is not None


def open_heif(data: bytes) -> Image.Image:
    """The primary image of an HEIF file, upright, in 8 bits. Pillow's list of formats is not changed.

    Raises `VisxError` where pillow-heif is missing.
    """
    if not available():
        raise VisxError("this is an HEIC file", hint="pip install 'visx[heif]' reads them")
    import pillow_heif

    return pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True).to_pillow()
