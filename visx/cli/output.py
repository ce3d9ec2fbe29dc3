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

_own: TextIO | None = None  # standard output while a command runs
_others: TextIO | None = None  # what the others print to meanwhile


def owning_output(command: Callable[P, R]) -> Callable[P, R]:
    """The command with standard output to itself."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _owned():
            return command(*args, **kwargs)

    return run


def put(text: str = "", *, flush: bool = False) -> None:
    """A line of results on standard output. Where a progress bar is drawn on the same terminal, above the bar."""
    around_a_bar = is_terminal() and _others is not None and sys.stdout is not _others
    print(text, file=sys.stdout if around_a_bar else _stream(), flush=flush)


def put_table(lines: Sequence[Sequence[str]]) -> None:
    """Lines of cells, the first one the titles, in columns that line up; the same on a terminal and in a pipe."""
    for line in columns_of(lines):
        put(line)


def columns_of(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def is_terminal() -> bool:
    """Whether results go to a terminal."""
    return _stream().isatty()


def columns() -> int | None:
    """How many characters a line of the terminal that results go to may have, so that it is not full; None where that is not
    known."""
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
                with suppress(OSError):  # told by the flush before
                    own.close()


def _descriptor(stream: TextIO) -> int | None:
    with suppress(OSError, ValueError, AttributeError):
        return stream.fileno()
    return None
