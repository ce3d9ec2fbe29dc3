"""TIS (transformer input sampling): the mean score of the subsets of tokens that a token is in.

map(token) = sum_i s_i m_i(token) / sum_i m_i(token) (Englebert et al., ICCV 2023 workshops). The masks m_i come from the
network's own activations on the image. A feature of a block's output is a vector with one value a token; the vectors of all
features of all blocks (K, tokens) are clustered by k-means into `masks` groups. The mask of a group keeps the `ratio` of tokens
at which the group's centre is largest. s_i is the score of the tokens that mask i keeps, the only ones to enter the network: the
others are left out behind the position embedding (visx/network/tokens.py), so that a copy costs its visible tokens only. The
division takes away that some tokens are in more masks than others (coverage bias). Class, distillation and register tokens are
in all of them.

k-means begins with features drawn at random, once, and ends after 100 rounds at most, as in the authors' program. Which ones
follows from the seed. It may take another way where activations differ by rounding: another device may give another map.

Deviations from the authors' program:
- The map is not scaled to 0..1.
- A token in no mask has the value 0, with a warning, instead of none.
- A network with fewer different features than `masks` has one mask for each.
- Masks that keep the same tokens are scored once, and count as often as they came.
- It takes every vision transformer whose tokens can be left out, not two classes of libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.errors import unsupported
from visx.methods.contract import Attribution, Request, method
from visx.params import Field, Params
from visx.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS, TOLERANCE = 100, 1e-4  # of k-means


class TisParams(Params):
    masks: int = Field(1024, ge=2, description="masks, one pass over their visible tokens each")
    ratio: float = Field(0.5, gt=0, lt=1, description="part of the tokens that a mask keeps")


@method(
    "tis",
    family="perturbation",
    title="TIS (transformer input sampling)",
    source="ICCVW 2023",
    needs={"droppable"},
    score="prob",
    passes="many",
    params=TisParams,
)
def tis(req: Request, p: TisParams) -> Attribution:
    import torch

    maps, extras, warnings = [], [], []
    for b, image in enumerate(req.x):
        tokens = req.score.tokens_of(image)
        features = tokens.features(image)  # alone: k-means must not depend on the batch
        if not len(features):
            raise unsupported("tis: no module of this model is a transformer block", "rise -p hide=drop")
        features = features[features.isfinite().all(1)]
        masks = token_masks(features, p.masks, p.ratio, req.seeds[b])  # (N, cells)
        scores = req.score.token_scores(image, masks, req.scalars_of(b)).double().cpu().T  # (T, N)
        finite = scores.isfinite()
        kept = masks.double()
        covered = finite.double() @ kept
        means = (scores.where(finite, 0.0) @ kept / covered.clamp_min(1)).where(covered > 0, 0.0)
        means = means.where(finite.any(1, keepdim=True), torch.nan)
        maps.append(means.unflatten(1, tokens.grid))
        lost, bare = (~finite).sum(1).tolist(), (covered == 0).sum(1).tolist()
        extras.append([{"masks": len(masks), "tokens": int(masks[0].sum())} for _ in lost])
        warnings.append([_warnings(*counts, *masks.shape) for counts in zip(lost, bare, strict=True)])
    return Attribution(torch.stack(maps).to(req.x), extras=extras, warnings=warnings)


def token_masks(features: Tensor, count: int, ratio: float, seed: int) -> Tensor:
    """(N, cells) bool: for each of at most `count` clusters of features (K, cells), the `ratio` of cells at which its
    centre is largest. Of no features, one mask that keeps all."""
    import numpy as np
    import torch
    from sklearn.cluster import KMeans

    if not len(features):
        return torch.ones(1, features.shape[1], dtype=torch.bool)
    points = features.cpu().numpy()
    distinct = np.unique(points, axis=0)
    centres = distinct
    if count < len(distinct):
        start = generator(seed, "k-means").initial_seed() % 2**32
        means = KMeans(count, init="random", n_init=1, max_iter=ROUNDS, tol=TOLERANCE, random_state=start)
        centres = means.fit(points).cluster_centers_
    number = max(1, int(ratio * points.shape[1]))
    strongest = np.argsort(-centres, axis=1, kind="stable")[:, :number]
    return torch.zeros(centres.shape, dtype=torch.bool).scatter_(1, torch.from_numpy(strongest), True)


def _warnings(lost: int, bare: int, masks: int, cells: int) -> list[str]:
    """Warnings of masks whose score is not finite, and of tokens that no mask keeps."""
    result = [f"the score of {lost} of {masks} masks is not finite: they are left out"] if lost else []
    return result + ([f"{bare} of {cells} tokens are in no mask: their value is 0 (more masks help)"] if bare else [])
