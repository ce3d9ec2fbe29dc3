"""The lock of an output folder: who may write to it beside whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from visx.errors import VisxError
from visx.store.lock import FolderLock

Shard = tuple[int, int] | None


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (None, None, False),
        (None, (1, 2), False),
        ((1, 2), None, False),
        ((1, 2), (1, 2), False),
        ((1, 2), (2, 2), True),
    ],
)
def test_who_may_write_beside_whom(tmp_path: Path, first: Shard, second: Shard, together: bool) -> None:
    held, other = FolderLock(tmp_path, first), FolderLock(tmp_path, second)
    held.acquire()
    if together:
        other.acquire()
        other.release()
    else:
        with pytest.raises(VisxError, match="another run"):
            other.acquire()
    held.release()
    other.acquire()
    other.release()
    assert not list(tmp_path.iterdir()), "no file is left"
