"""The command line: one module a command. Errors become exit codes here and nowhere else."""

from __future__ import annotations

import gc
import os
import signal
import sys
import warnings
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from visx.errors import ExitCode, VisxError, said_by

SPIN_COUNT = "1000"  # turns of a loop, some microseconds
# New objects between two collections of garbage, until there is something to compute (`prepare.pick_device`). Importing
# torch makes a million objects and no garbage: with Python's usual 700 a sixth of the import is spent on collections.
GC_THRESHOLD = 200_000
_OPENMP_WAITING = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
_INTERRUPTED = "interrupted; what was finished is kept"


class Terminated(BaseException):
    """SIGTERM, raised where the run happens to be, so that it unwinds like Ctrl-C."""


def let_waiting_threads_sleep() -> None:
    """Set how OpenMP's threads wait for each other: asleep after a short spin. A setting of the user's own stays.

    By default GNU's OpenMP spins for milliseconds at the end of every layer. Where another process has one of the cores,
    the waiting thread burns the other one while it waits: a pass took three to five times as long. OpenMP reads the
    variable when torch is imported, so it is set before. (benchmarks/loaded.py measures both cases.)
    """
    if not _OPENMP_WAITING & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT


def _on_terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def main() -> NoReturn:
    """Entry point of the `visx` script."""
    let_waiting_threads_sleep()
    gc.set_threshold(GC_THRESHOLD)
    try:
        signal.signal(signal.SIGTERM, _on_terminate)
        if os.environ.get("VISX_DEBUG") != "1" and not sys.warnoptions:
            warnings.simplefilter("ignore")  # other libraries' notes to programmers, here and in the reader threads
        code = _run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _print_error(_INTERRUPTED, "", ExitCode.INTERRUPTED)
    except Terminated:
        code = _print_error("terminated; what was finished is kept", "", ExitCode.TERMINATED)
    except BrokenPipeError:  # the reader of standard output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = int(ExitCode.FAILURE)
    except OSError as error:  # of the file system, where it was not caught nearer to its cause
        where = f"{error.filename}: " if error.filename else ""
        code = _print_error(f"{where}{error.strerror or error}", "", ExitCode.FAILURE)
    except Exception as error:
        hint = "this is a bug in visx or in the model: VISX_DEBUG=1 shows where"
        code = _print_error(said_by(error), hint, ExitCode.FAILURE)
    # Everything is written and closed. Leaving at once saves the second that Python takes to dismantle torch.
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(int(code or 0))


def _run() -> int:
    """Run the command that was typed; returns its exit code."""
    from visx.cli.app import app, usage_error

    try:
        code = app(standalone_mode=False, prog_name="visx")
    except VisxError as error:
        return _print_error(error.message, error.hint, error.code)
    except Exception as error:
        if type(error).__name__ == "Abort":  # Ctrl-C in older versions of the option parser
            return _print_error(_INTERRUPTED, "", ExitCode.INTERRUPTED)
        shown = usage_error(error)
        if shown is None:
            raise
        return _print_error(*shown, ExitCode.USAGE) if shown[0] else int(ExitCode.USAGE)
    if code == ExitCode.INTERRUPTED:  # the option parser has made Ctrl-C an exit of its own
        _print_error(_INTERRUPTED, "", ExitCode.INTERRUPTED)
    return int(code or 0)


def _print_error(message: str, hint: str, code: ExitCode) -> int:
    """The exit code, after an error and what to do about it on standard error; with VISX_DEBUG=1 the traceback, too."""
    print(f"visx: {message}" + (f"\n      {hint}" if hint else ""), file=sys.stderr)
    if os.environ.get("VISX_DEBUG") == "1" and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    return int(code)
