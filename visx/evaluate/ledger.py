"""The ledger: values of metrics that ask the model, hundreds of passes each, for a later run to find again.

One JSON object a line, appended when a map has been measured, so that a run which was cut off goes on where it was. A value
is known by a digest of all that it follows from, and by the fingerprint of a model of one's own, so whatever has changed is
measured anew.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from visx.files import make_folder, to_json, unwritable
from visx.metrics.contract import Measured
from visx.models.fingerprint import Fingerprint, same

NAME = "measured.jsonl"


class Ledger:
    """Measured values in `out`; without `resume` those of earlier runs count for nothing."""

    def __init__(self, out: Path, resume: bool = True) -> None:
        self.path = out / NAME
        self._known: dict[str, tuple[Measured, object]] = {}
        make_folder(out)
        try:
            lines = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
            if lines[-1]:  # torn by a kill: what comes next must not join it
                self._append("\n")
        except OSError as error:
            raise unwritable(self.path, error) from None
        for line in lines if resume else ():
            try:
                record = json.loads(line)
                curve = [(float(x), float(y)) for x, y in record["curve"]] if record["curve"] else None
                if math.isfinite(record["value"]):
                    measured = Measured(float(record["value"]), curve, dict(record["details"]))
                    self._known[record["key"]] = measured, record.get("fingerprint")
            except (ValueError, KeyError, TypeError, RecursionError):  # torn, or not ours: it is measured again
                continue

    def find(self, key: str, fingerprint: Fingerprint | None = None) -> Measured | None:
        """The value that is known by `key`, measured on a model of this fingerprint."""
        measured, of_model = self._known.get(key, (None, None))
        return measured if same(of_model, fingerprint) else None

    def keep(self, key: str, measured: Measured, fingerprint: Fingerprint | None = None) -> None:
        """Remember a value, now and for later runs."""
        of_model = fingerprint.as_dict() if fingerprint else None
        self._known[key] = measured, of_model
        self._append(to_json({"key": key, **vars(measured), "fingerprint": of_model}) + "\n")

    def _append(self, text: str) -> None:
        try:
            with self.path.open("ab", buffering=0) as file:
                file.write(text.encode())
        except OSError as error:
            raise unwritable(self.path, error) from None
