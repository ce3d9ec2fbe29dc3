"""Standard output belongs to the command: it carries results alone. What a model, a factory or a library prints while a
command runs, from Python or from C, goes to standard error.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ParamSpec, TextIO, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_own: TextIO | None = None  # standard output of the process, while a command runs
_others: TextIO | None = None  # where models and libraries print meanwhile


def owning_output(command: Callable[P, R]) -> Callable[P, R]:
    """The command, run so that only `put` reaches standard output."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _owned():
            return command(*args, **kwargs)

    return run


def put(text: str = "", *, flush: bool = False) -> None:
    """Print a line of results on standard output; above the progress bar, where one is drawn on the same terminal."""
    around_a_bar = is_terminal() and _others is not None and sys.stdout is not _others
    print(text, file=sys.stdout if around_a_bar else _stream(), flush=flush)


def put_table(lines: Sequence[Sequence[str]]) -> None:
    """Print lines of cells, the first one the titles, in aligned columns; the same on a terminal and in a pipe."""
    for line in columns_of(lines):
        put(line)


def columns_of(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as text in aligned columns, each as wide as its widest cell and two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def is_terminal() -> bool:
    """Whether results go to a terminal."""
    return _stream().isatty()


def columns() -> int | None:
    """The width of the terminal that results go to, in characters, less one so that no line is full; None where it is not
    known, or `COLUMNS` is set."""
    if "COLUMNS" not in os.environ:
        with suppress(OSError, ValueError):
            return max(os.get_terminal_size(_stream().fileno()).columns - 1, 0) or None
    return None


def _stream() -> TextIO:
    return _own or sys.stdout


@contextmanager
def _owned() -> Iterator[None]:
    global _own, _others
    before, _own, _others = (sys.stdout, _own, _others), sys.stdout, sys.stderr
    private = None
    try:
        if _descriptor(before[0]) == 1 and _descriptor(sys.stderr) is not None:  # of the process: C writes there, too
            before[0].flush()
            private = os.dup(1)
            _own = io.TextIOWrapper(
                os.fdopen(private, "wb"), before[0].encoding, before[0].errors, line_buffering=before[0].isatty()
            )
            os.dup2(sys.stderr.fileno(), 1)
        sys.stdout = sys.stderr
        yield
    finally:
        own = _own
        sys.stdout, _own, _others = before
        try:
            own.flush()
        finally:
            if private is not None:
                os.dup2(private, 1)
                with suppress(OSError):  # flush() has raised it already
                    own.close()


def _descriptor(stream: TextIO) -> int | None:
    with suppress(OSError, ValueError, AttributeError):
        return stream.fileno()
    return None
