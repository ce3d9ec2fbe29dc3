"""Pictures in a terminal: by the kitty or iTerm2 protocol where the terminal has it, else as half-block characters.

What a terminal can draw is read from environment variables. The terminal itself is not asked, because its answer would arrive
in the user's input. Sixel cannot be known that way: those terminals get half blocks.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from PIL import Image

Protocol = Literal["kitty", "iterm", "truecolor", "256", "grey"]
COLUMNS, PIXELS = 48, 480  # the largest width of a preview, in characters and in pixels
_CHUNK = 4096  # bytes, the most that the kitty protocol allows in one escape sequence
_SHADES = " .:-=+*#%@"


def protocol_of(environment: Mapping[str, str]) -> Protocol:
    """How the terminal with these environment variables can draw a picture."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "NO_COLOR" in environment or term in ("", "dumb"):
        return "grey"
    if not term.startswith(("tmux", "screen")):  # these do not pass pictures on
        if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
            return "kitty"
        if program in ("iTerm.app", "WezTerm"):
            return "iterm"
    return "truecolor" if environment.get("COLORTERM") in ("truecolor", "24bit") else "256"


def preview(path: Path, environment: Mapping[str, str] | None = None, columns: int | None = None) -> str:
    """The picture file `path` as text for the terminal with these environment variables (by default this process's).

    `columns` is the largest width in characters, by default the terminal's, at most COLUMNS.
    """
    protocol = protocol_of(os.environ if environment is None else environment)
    columns = max(2, min(COLUMNS, columns or shutil.get_terminal_size().columns - 1))
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture.thumbnail((PIXELS, PIXELS))
    if protocol == "kitty":
        return _kitty(picture, columns)
    if protocol == "iterm":
        return _iterm(picture, columns)
    if protocol == "grey":
        return _grey(picture, columns)
    return _blocks(picture, columns, protocol) if _can_print("▀") else _grey(picture, columns)


def _can_print(text: str) -> bool:
    """Whether the encoding of standard output has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def _kitty(picture: Image.Image, columns: int) -> str:
    data = base64.b64encode(_png(picture)).decode()
    pieces = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
    keys = [f"a=T,f=100,q=2,c={columns},m={int(len(pieces) > 1)}"]
    keys += [f"m={int(number < len(pieces) - 1)}" for number in range(1, len(pieces))]
    return "".join(f"\033_G{key};{piece}\033\\" for key, piece in zip(keys, pieces, strict=True))


def _iterm(picture: Image.Image, columns: int) -> str:
    png = _png(picture)
    data = base64.b64encode(png).decode()
    return f"\033]1337;File=inline=1;size={len(png)};width={columns};preserveAspectRatio=1:{data}\a"


def _shrunk(picture: Image.Image, columns: int, per_line: int) -> Image.Image:
    """The picture resized to `columns` pixels of width and whole lines of `per_line` pixels; characters are twice as high as
    wide."""
    lines = max(1, round(picture.height / picture.width * columns / 2))
    return picture.resize((columns, lines * per_line), Image.Resampling.BOX)


def _blocks(picture: Image.Image, columns: int, protocol: Protocol) -> str:
    """Upper half blocks, two pixels a character: the foreground colour above, the background colour below."""
    small = _shrunk(picture, columns, 2)
    data = small.tobytes()

    def colour(x: int, y: int) -> str:
        red, green, blue = data[(y * columns + x) * 3 :][:3]
        if protocol == "truecolor":
            return f"2;{red};{green};{blue}"
        return f"5;{16 + 36 * round(red / 51) + 6 * round(green / 51) + round(blue / 51)}"

    lines = []
    for y in range(0, small.height, 2):
        cells = (f"\033[38;{colour(x, y)}m\033[48;{colour(x, y + 1)}m▀" for x in range(columns))
        lines.append("".join(cells) + "\033[0m")
    return "\n".join(lines)


def _grey(picture: Image.Image, columns: int) -> str:
    """Characters of more or less ink, for terminals without colour."""
    data = _shrunk(picture.convert("L"), columns, 1).tobytes()
    inked = "".join(_SHADES[level * len(_SHADES) // 256] for level in data)
    return "\n".join(inked[start : start + columns].rstrip() for start in range(0, len(inked), columns))
