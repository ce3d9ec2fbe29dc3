"""What methods that look at attention share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from visx.methods.contract import Attribution, Request

Fusion = Literal["mean", "max", "min"]
FUSION_HELP = "how the heads of an attention become one"
ANY_CLASS = "attention does not depend on the target: the map is the same for every class"


def fused(weights: Tensor, how: Fusion) -> Tensor:
    """Weights (B, W, H, Nq, Nk) -> (B, W, Nq, Nk)."""
    if how == "mean":
        return weights.mean(2)
    return weights.amax(2) if how == "max" else weights.amin(2)


def of_every_target(req: Request, maps: Tensor, values: Tensor, more: Sequence[str] = ()) -> Attribution:
    """Maps (B, h, w) that no target changes as the answer for each of the targets, with a warning that says so, and `more`
    warnings; `values` are the clean pass's."""
    from visx.methods.contract import Attribution

    count = len(req.targets.resolve(values).rows[0])
    warnings = [[[ANY_CLASS, *more] for _ in range(count)] for _ in maps]
    return Attribution(maps[:, None].expand(-1, count, -1, -1).contiguous(), warnings=warnings)
