"""What is explained, one kind of target a file. To add a kind: write `visx/targets/NAME.py`, and name its objectives here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from visx.errors import unsupported
from visx.targets.classes import Column
from visx.targets.contract import Objective

if TYPE_CHECKING:
    from visx.network.outputs import Outputs

Again = Callable[[Mapping[str, Any], "Outputs", Sequence[str] | None], Objective]
KINDS: dict[str, Again] = {"class": Column.again, "out": Column.again}


def again(identity: Mapping[str, Any], outputs: Outputs, labels: Sequence[str] | None) -> Objective:
    """The objective of which this is `Identity.json`, as a manifest has it. Raises `VisxError` (exit 4) where the kind cannot
    be scored without the method that explained it."""
    kind = str(identity.get("kind"))
    if kind not in KINDS:
        raise unsupported(f"{kind} is no kind of target that a model's output has a score of", ", ".join(KINDS))
    return KINDS[kind](identity, outputs, labels)
