"""What can go wrong, said once: every failure a user may meet is a `VisxError` with a way on and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command; a script may rely on them."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    SOME_FAILED = 3
    UNSUPPORTED = 4
    THRESHOLD = 5
    INTERRUPTED = 130
    TERMINATED = 143


class VisxError(Exception):
    """A failure that is explained: one line of `message`, one of `hint` (what to do), and the exit code it leads to."""

    def __init__(self, message: str, *, hint: str = "", code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def said_by(error: BaseException) -> str:
    """Somebody else's exception in one line: its type and the first line of what it says, shortened."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__


def usage(message: str, hint: str = "") -> VisxError:
    """A mistake in how visx was called (exit 2)."""
    return VisxError(message, hint=hint, code=ExitCode.USAGE)


def unsupported(message: str, hint: str = "") -> VisxError:
    """A method that does not fit this model (exit 4)."""
    return VisxError(message, hint=hint, code=ExitCode.UNSUPPORTED)


def unknown(kind: str, name: str, known: Iterable[str], see: str = "") -> VisxError:
    """An unknown name (exit 2), answered with the nearest known ones."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near += [k for k in known if name and name.lower() in k.lower() and k not in near][: 5 - len(near)]
    hint = f"did you mean {', '.join(near)}?" if near else see or f"known: {', '.join(known[:12])}"
    return usage(f"unknown {kind} {name!r}", hint)


def printable(text: str) -> str:
    """A file name as a line of text shows it: control characters and stray bytes escaped."""
    return "".join(
        c
        if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )
