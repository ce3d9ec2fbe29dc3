"""Recipro-CAM: for each cell of a layer's grid, the score that the features around that cell give alone.

M_ij = S_c(tail(A * G_ij)), where A (K, h, w) is the layer's output, `tail` the network behind the layer, and G_ij (h, w) a 3x3
Gaussian (1/4 in the middle, 1/8 beside it, 1/16 in the corners) around cell (i, j), cut off at the grid's edges, zero
elsewhere (Byun & Lee 2022, arXiv:2209.14074). `mask=cell` keeps the cell alone, as the paper's first form does. No
gradients: one pass, and the tail once a cell, many cells at a time. Where the tail is a global average and a linear layer,
the map of logits is CAM, blurred with the Gaussian and divided by h w, plus the bias.

In a transformer the features are tokens (Byun & Lee 2023, arXiv:2310.02588). Tokens that are no patch (class, distillation and
register tokens) stay as they are; `class_token=false` sets them to zero. The paper masks a block's input twice: behind its
first normalisation, and in the skip connection around its attention. Here the features of `--layer` are masked, which is
the normalisation's output of the last block where the class token is read; what the skip connection of that block carries
of the patches does not reach the class token, so that the maps are the same.

Deviations from the paper: the map is not scaled to 0..1, which rendering does. The authors' program for CNNs lays the
features of cell (i, j) itself over its neighbours, weighted with the Gaussian; here each cell's own features are weighted,
as in the paper and in the package openvino_xai. (The program's default is `mask=cell`.) That package explains the logit
(`--score logit`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from visx.methods.common.layers import layer_warnings
from visx.methods.contract import Attribution, Request, method
from visx.params import Field, Params

if TYPE_CHECKING:
    from torch import Tensor

    from visx.network.scorer import Scores
    from visx.network.tail import Tail


class ReciproCAMParams(Params):
    mask: Literal["gaussian", "cell"] = Field(
        "gaussian", description="what is kept of the features: a 3x3 Gaussian around the cell, or the cell alone"
    )
    class_token: bool = Field(True, description="keep tokens that are no patch; false sets them to zero")


@method(
    "reciprocam",
    family="cam",
    title="Recipro-CAM",
    source="arXiv:2209.14074",
    needs={"layer"},
    score="prob",
    params=ReciproCAMParams,
)
def reciprocam(req: Request, p: ReciproCAMParams) -> Attribution:
    import torch

    from visx.network.tail import Tail

    assert req.layer is not None
    clean, of_cells, warnings = [], [], []
    for b, image in enumerate(req.x.split(1)):
        tail = Tail(req.network, image, req.layer, others=p.class_token)
        clean.append(tail.clean)
        if len(req.x) == 1:
            req.targets.resolve(tail.clean)
        elif tail.clean.dim() > 2:  # maps of classes are too large to be kept for every cell
            _ = req.objectives
        known = req.targets.objectives is not None
        of_cells.append(_of_cells(req, tail, p.mask, req.scalars_of(b) if known else lambda values: values))
        warnings.append(layer_warnings(tail.layer))
    if not req.targets.objectives:
        req.targets.resolve(torch.cat(clean))
        of_cells = [req.scalars_of(b)(values) for b, values in enumerate(of_cells)]
    grid = tail.layer.grid
    assert grid is not None
    maps = [scores.t().unflatten(1, grid.shape[1:]) for scores in of_cells]
    return Attribution(torch.stack(maps).to(req.x.dtype), warnings=[[list(w) for _ in maps[0]] for w in warnings])


def _of_cells(req: Request, tail: Tail, mask: str, scores: Scores) -> Tensor:
    """What `scores` makes (cells, ...) of the values that the features around each cell give, by rows."""
    import torch

    grid = tail.layer.grid
    assert grid is not None
    height, width = grid.shape[1:]

    def work(start: int, stop: int) -> Tensor:
        return scores(tail.values(stop - start, lambda own: own * masks(start, stop, height, width, mask).to(own)))

    return torch.cat(list(req.score.batches(height * width, work)))


def masks(start: int, stop: int, height: int, width: int, mask: str) -> Tensor:
    """The masks (n, 1, h, w) of the cells from number `start` to `stop`, counted by rows; float64."""
    import torch

    cells = torch.arange(start, stop)
    rows, columns = _weights(height, mask)[cells // width], _weights(width, mask)[cells % width]
    return (rows[:, :, None] * columns[:, None, :]).unsqueeze(1)


def _weights(length: int, mask: str) -> Tensor:
    """The weights (n, n) along one side: for each place of the middle, a half there and a quarter beside it."""
    import torch

    alone = torch.eye(length, dtype=torch.float64)
    beside = torch.ones(length, length, dtype=torch.float64).tril(1).triu(-1) - alone
    return alone if mask == "cell" else alone / 2 + beside / 4
