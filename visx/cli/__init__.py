"""The command line: one module a command. Errors become exit codes here and nowhere else."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from types import FrameType
from typing import NoReturn

from visx.errors import ExitCode, VisxError


class Terminated(BaseException):
    """SIGTERM, raised where the run happens to be, so that it unwinds like Ctrl-C."""


def _on_terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def main() -> NoReturn:
    """Entry point of the `visx` script."""
    from visx.cli.app import app, usage_error

    try:
        signal.signal(signal.SIGTERM, _on_terminate)
        if os.environ.get("VISX_DEBUG") != "1" and not sys.warnoptions:
            warnings.simplefilter("ignore")  # other libraries' notes to programmers, here and in the reader threads
        code = app(standalone_mode=False, prog_name="visx")
        sys.stdout.flush()
    except VisxError as error:
        code = _say(error.message, error.hint, error.code)
    except (KeyboardInterrupt, EOFError):
        code = _say("interrupted; what was finished is kept", "", ExitCode.INTERRUPTED)
    except Terminated:
        code = _say("terminated; what was finished is kept", "", ExitCode.TERMINATED)
    except BrokenPipeError:  # the reader of our output has gone: no one is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = int(ExitCode.FAILURE)
    except Exception as error:
        shown = usage_error(error)
        if shown is not None:
            code = int(ExitCode.USAGE) if not shown[0] else _say(*shown, ExitCode.USAGE)
        elif type(error).__name__ == "Abort":
            code = _say("interrupted; what was finished is kept", "", ExitCode.INTERRUPTED)
        else:
            code = _unexpected(error)
    # Everything is written and closed. Leaving at once spares the second that torch takes to be taken apart.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0))


def _say(message: str, hint: str, code: ExitCode) -> int:
    print(f"visx: {message}" + (f"\n      {hint}" if hint else ""), file=sys.stderr)
    if os.environ.get("VISX_DEBUG") == "1" and sys.exc_info()[0] is not None:
        import traceback

        traceback.print_exc()
    return int(code)


def _unexpected(error: Exception) -> int:
    first = (str(error).splitlines() or [""])[0][:300]
    return _say(
        f"{type(error).__name__}: {first}",
        "this is a bug in visx or in the model: VISX_DEBUG=1 shows where",
        ExitCode.FAILURE,
    )
