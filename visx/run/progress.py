"""Progress: what long work tells whoever watches. Imports nothing."""

from __future__ import annotations


class Progress:
    """Told how far a run is; shows nothing."""

    def advance(self, count: int = 1) -> None:
        """So many more units of the run (images, maps) are done."""

    def within(self, done: int, count: int) -> None:
        """`done` of `count` passes of what is computed at the moment (the copies of an image, the steps of a mask)."""


SILENT = Progress()
