"""The ledger of an output folder: measured values of metrics that run the model, which take hundreds of passes each.

It is a file of JSON lines. A line is appended for each map measured, so that a run that was cut off goes on where it
stopped. Every shard has a file of its own, and all of them are read. The key of a value is a digest of everything that the value follows from; the fingerprint of a user's own model is
compared too. So whatever has changed is measured anew.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from visx.files import make_folder, to_json, unwritable
from visx.metrics.contract import Measured
from visx.models.fingerprint import Fingerprint, same
from visx.store import lines
from visx.store.settings import sharded


class Ledger:
    """The measured values of the folder `out`. Without `resume`, those of earlier runs are ignored."""

    def __init__(self, out: Path, resume: bool = True, shard: tuple[int, int] | None = None) -> None:
        self.path = out / sharded("measured.jsonl", shard)
        self._known: dict[str, tuple[Measured, object]] = {}
        make_folder(out)
        for path in sorted({*out.glob("measured*.jsonl"), self.path}):
            last = b"\n"
            for _, last in lines.lines(path):
                if resume and not lines.is_torn(last):
                    self._remember(lines.parse_object(last) or {})
            if path == self.path and lines.is_torn(last):  # the next line must not be joined to it
                self._append("")

    def find(self, key: str, fingerprint: Fingerprint | None = None) -> Measured | None:
        """The value of a key, measured on a model of this fingerprint; None if there is none."""
        measured, of_model = self._known.get(key, (None, None))
        return measured if same(of_model, fingerprint) else None

    def keep(self, key: str, measured: Measured, fingerprint: Fingerprint | None = None) -> None:
        """Adds a value, for this run and later ones. Raises `VisxError` where it cannot be written, `DiskFull` without room."""
        of_model = fingerprint.as_dict() if fingerprint else None
        self._known[key] = measured, of_model
        self._append(to_json({"key": key, **vars(measured), "fingerprint": of_model}))

    def _remember(self, values: dict[str, Any]) -> None:
        """Takes the value of a line. A line that is not as `keep` writes it is ignored: its map is measured again."""
        try:
            curve = [(float(x), float(y)) for x, y in values["curve"]] if values["curve"] else None
            if math.isfinite(values["value"]):
                measured = Measured(float(values["value"]), curve, dict(values["details"]))
                self._known[values["key"]] = measured, values.get("fingerprint")
        except (ValueError, KeyError, TypeError, OverflowError):
            return

    def _append(self, text: str) -> None:
        try:
            with self.path.open("ab", buffering=0) as file:
                lines.append(file, self.path, [text])
        except OSError as error:
            raise unwritable(self.path, error) from None
