"""What a command prints beside its results, on standard error: remarks, errors, and how far it is (one bar on a terminal, a
line every half minute in a log)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from visx.errors import printable
from visx.run.progress import SILENT, Progress

if TYPE_CHECKING:
    import rich.progress

LOG_SECONDS = 30.0
PATIENCE = 0.5  # seconds that a single unit may take before it is worth a bar


class Talk:
    """Remarks on standard error, for people; silent with --quiet."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        self.quiet, self.verbose = quiet, verbose

    def say(self, text: str) -> None:
        """A remark."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def detail(self, text: str) -> None:
        """A remark for --verbose."""
        if self.verbose:
            self.say(text)

    def error(self, text: str) -> None:
        """An error; printed even when quiet."""
        print(f"visx: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, total: int, what: str, drawn: bool = True) -> Iterator[Progress]:
        """The progress of `total` units of work; it shows nothing with --quiet, or where it is not to be `drawn`."""
        if self.quiet or not drawn:
            yield SILENT
            return
        with shown(total, what, self.say) as progress:
            yield progress


def failure(record: Mapping[str, Any]) -> str:
    """The record of a failure as a line: the image or the method, the metric, the reason and what to do."""
    where = [record["image"] or record["method"], record.get("metric") or "", record["error"]["message"]]
    hint = record["error"]["hint"]
    return printable(": ".join(filter(None, where)) + (f" ({hint})" if hint else ""))


@contextmanager
def shown(total: int, what: str, on_message: Callable[[str], None]) -> Iterator[Progress]:
    """The progress of `total` units, shown while the context lasts: a bar on a terminal, lines through `on_message` else."""
    if not sys.stderr.isatty():
        yield Log(total, on_message) if total > 1 else SILENT
        return
    with ExitStack() as stack:
        yield Bar(total, what, stack)


class Log(Progress):
    """A line every half minute."""

    def __init__(self, total: int, on_message: Callable[[str], None]) -> None:
        self.total, self.on_message, self.done = total, on_message, 0
        self.started = self.printed = time.monotonic()

    def advance(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.printed >= LOG_SECONDS:
            self.printed = now
            speed = self.done / (now - self.started)
            left = (self.total - self.done) / speed
            self.on_message(f"{self.done}/{self.total} images, {speed:.1f} images/s, {left:.0f} s left")


class Bar(Progress):
    """One bar: of the units, with the passes within the present unit beside it. A single unit's bar is of its passes, and is
    drawn only if it takes longer than `PATIENCE`. The bar is closed with `stack`."""

    def __init__(self, total: int, what: str, stack: ExitStack) -> None:
        self.total, self.what, self.stack, self.started = total, what, stack, time.monotonic()
        self.bar: rich.progress.Progress | None = None
        self.task: rich.progress.TaskID
        if total > 1:
            self._draw()

    def advance(self, count: int = 1) -> None:
        if self.bar and self.total > 1:
            self.bar.update(self.task, advance=count, passes="")

    def within(self, done: int, count: int) -> None:
        if self.total > 1 and self.bar:
            self.bar.update(self.task, passes=f"({done}/{count} passes)" if done < count else "")
        elif self.bar:
            if self.bar.tasks[0].total != count:
                self.bar.reset(self.task, total=count)
            self.bar.update(self.task, completed=done)
        elif done < count and time.monotonic() - self.started > PATIENCE:
            self._draw()

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[passes]}"),
            TimeRemainingColumn(),
        )
        # What a model prints meanwhile appears above the bar, and so do results where both streams are the terminal.
        self.bar = self.stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
        self.task = self.bar.add_task(self.what, total=self.total, passes="")
