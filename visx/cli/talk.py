"""What a command says beside its results, on standard error: remarks, errors, and how far it is (one bar on a terminal, a
line every half minute in a log)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

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
        """An error; said even when quiet."""
        print(f"visx: {text}", file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, total: int, what: str, drawn: bool = True) -> Iterator[Progress]:
        """What to tell how far `total` units are; it shows nothing with --quiet, or where it is not to be `drawn`."""
        if self.quiet or not drawn:
            yield SILENT
            return
        with shown(total, what, self.say) as progress:
            yield progress


@contextmanager
def shown(total: int, what: str, say: Callable[[str], None]) -> Iterator[Progress]:
    """What shows the progress of `total` units, for the time of the `with`."""
    if not sys.stderr.isatty():
        yield Log(total, say) if total > 1 else SILENT
        return
    with ExitStack() as stack:
        yield Bar(total, what, stack)


class Log(Progress):
    """A line every half minute."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.total, self.say, self.done = total, say, 0
        self.begun = self.said = time.monotonic()

    def advance(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.said >= LOG_SECONDS:
            self.said = now
            speed = self.done / (now - self.begun)
            left = (self.total - self.done) / speed
            self.say(f"{self.done}/{self.total} images, {speed:.1f} images/s, {left:.0f} s left")


class Bar(Progress):
    """One bar: of the units, with the passes within the present one beside it; of these where there is a single unit,
    and then drawn only if it takes its time. It lives in `stack`."""

    def __init__(self, total: int, what: str, stack: ExitStack) -> None:
        self.total, self.what, self.stack, self.begun = total, what, stack, time.monotonic()
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
        elif done < count and time.monotonic() - self.begun > PATIENCE:
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
        # what others print comes to standard error, round the bar; results pass it, unless both are on the terminal
        self.bar = self.stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
        self.task = self.bar.add_task(self.what, total=self.total, passes="")
