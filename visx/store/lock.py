"""Who may write to an output folder at one time: one whole run, or any number of shards, each shard in one run only.

Each run locks a file of its own in the folder. While it looks at the others' locks and takes its own, it holds the gate, a
lock for milliseconds, so that no two runs look at once. The files are removed when their runs end; a file whose run was
killed is locked by nobody.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from visx.errors import VisxError

if TYPE_CHECKING:
    from filelock import BaseFileLock

GATE, WHOLE, SHARD = ".visx-lock", ".visx-lock.whole", ".visx-lock.shard."
_GATE_SECONDS = 10.0
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # a file system without locks: a run goes on without


class FolderLock:
    """The lock of a whole run on the output folder `out`, or of its shard (number, count)."""

    def __init__(self, out: Path, shard: tuple[int, int] | None = None) -> None:
        self.out = out
        self._own = WHOLE if shard is None else f"{SHARD}{shard[0]}-of-{shard[1]}"
        self._held: list[BaseFileLock] = []

    def acquire(self) -> None:
        """Take the lock. `VisxError`: another run has the folder. OSError: no file can be written there."""
        with self._gate():
            self._hold(WHOLE)  # fails while a whole run is writing
            if self._own == WHOLE:
                for path in sorted(self.out.glob(f"{SHARD}*")):
                    self._hold(path.name)  # fails while that shard is writing; release removes the file of a killed one
            else:
                self._drop()  # no whole run is writing: a shard that kept WHOLE would exclude the other shards
                self._hold(self._own)

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._held:
            with self._gate():
                self._drop()

    @contextlib.contextmanager
    def _gate(self) -> Iterator[None]:
        """Alone with the lock files of the folder; if an error ends this, nothing is held any more."""
        gate = self._locked(GATE, _GATE_SECONDS)
        try:
            yield
        except BaseException:
            self._drop()
            raise
        finally:
            _unlock(gate)

    def _hold(self, name: str) -> None:
        self._held += self._locked(name)

    def _drop(self) -> None:
        _unlock(self._held)
        self._held = []

    def _locked(self, name: str, seconds: float = 0.0) -> list[BaseFileLock]:
        """The lock on a file of the folder, waited for so long; none where the file system has no locks."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.out / name)
        try:
            lock.acquire(timeout=seconds, poll_interval=0.01)
        except Timeout:
            hint = "wait for it, or give another --out"
            raise VisxError(f"another run is writing to {self.out}", hint=hint) from None
        except NotImplementedError:
            return []
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return []
            raise
        return [lock]


def _unlock(locks: list[BaseFileLock]) -> None:
    for lock in locks:
        with contextlib.suppress(OSError):  # Windows removes no open file: it stays, locked by nobody
            Path(lock.lock_file).unlink()
        lock.release()
