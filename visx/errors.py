"""Errors for users: a message, a hint and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of the command, which scripts may rely on."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    SOME_FAILED = 3
    UNSUPPORTED = 4
    THRESHOLD = 5
    INTERRUPTED = 130
    TERMINATED = 143


class VisxError(Exception):
    """An error for a user: one line that says what is wrong, one hint that says what to do, and the exit code."""

    def __init__(self, message: str, *, hint: str = "", code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def said_by(error: BaseException) -> str:
    """An exception of another library in one line: its type and the first line of its message, at most 200 characters."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__


def usage(message: str, hint: str = "") -> VisxError:
    """The error for a mistake in how visx was called (exit 2)."""
    return VisxError(message, hint=hint, code=ExitCode.USAGE)


def unsupported(message: str, hint: str = "") -> VisxError:
    """The error for a method that does not fit the model (exit 4)."""
    return VisxError(message, hint=hint, code=ExitCode.UNSUPPORTED)


def unknown(kind: str, name: str, known: Iterable[str], see: str = "") -> VisxError:
    """The error for an unknown name (exit 2).

    Its hint has the nearest names in `known`; where none is near, the text `see`, else the first names in `known`.
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near += [k for k in known if name and name.lower() in k.lower() and k not in near][: 5 - len(near)]
    hint = f"did you mean {', '.join(near)}?" if near else see or f"known: {', '.join(known[:12])}"
    return usage(f"unknown {kind} {name!r}", hint)


def printable(text: str) -> str:
    """The text with control characters and undecodable bytes escaped, so that a file name stays on one line."""
    return "".join(
        c
        if c.isprintable() and not 0xD800 <= ord(c) <= 0xDFFF
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in text
    )
