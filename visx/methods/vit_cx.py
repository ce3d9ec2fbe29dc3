"""ViT-CX: masks grouped from a layer's own feature maps, each weighted by the score of what it keeps.

map(pixel) = sum_i s_i M_i(pixel) / sum_i M_i(pixel) (Xie et al. 2022, arXiv:2211.03064). The masks M_i come from the feature maps
of a layer, by default the last that the score depends on (in a transformer with a class token the input of its last attention).
Each map is upsampled to the input and brought to 0..1. Maps whose cosine distance is under `distance` are grouped by
agglomerative clustering (complete linkage); the sum of a group, again brought to 0..1, is a mask. The division takes away that
some pixels are in more masks than others (coverage bias).

How a mask's score s_i is found is `hide`:
- `drop` leaves the tokens that the mask hides out of the network (visx/network/tokens.py), and s_i = S(tokens that stay). A token
  goes where its mask's mean over the token's patch is under one half. A copy costs its visible tokens only.
- `noise` is the paper's: s_i = S(x M_i + z (1 - M_i)) - S(x + z (1 - M_i)) + S(x), with Gaussian noise z of deviation 0.1
  on the normalised image, two passes a mask.
- `auto` is `drop` where the model allows it, else `noise`; the figure `hide` of a result says which.

Deviations from the paper and its program (vaynexie/CausalX-ViT):
- `drop`: nothing stands in the place of what is hidden, so that there is no noise whose own effect must be taken away.
- The program divides by the number of masks once more, which only scales the map.
- Feature maps that are the same everywhere have no mask. A pixel in no mask has the value 0, instead of none.
- A mask whose score is not finite is left out, with a warning.
- A layer of a convolutional network is taken, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from visx.methods.common.hiding import needs_of, visible_patches
from visx.methods.common.layers import layer_warnings
from visx.methods.contract import Attribution, Request, method
from visx.params import Field, Params
from visx.seeds import normal

if TYPE_CHECKING:
    from torch import Tensor

NOISE = 0.1  # deviation, on the normalised image
CHUNK = 64  # masks that are upsampled at a time


class VitCxParams(Params):
    distance: float = Field(0.1, gt=0, lt=1, description="cosine distance up to which feature maps make one mask")
    hide: Literal["auto", "drop", "noise"] = Field(
        "auto", description="drop leaves hidden tokens out of a plain vision transformer, noise replaces pixels"
    )

    def extra_needs(self) -> frozenset[str]:
        """Tokens, where they must be left out."""
        return needs_of(self.hide)


@method(
    "vit_cx",
    family="perturbation",
    title="ViT-CX",
    source="arXiv:2211.03064",
    needs={"layer"},
    score="prob",
    passes="many",
    params=VitCxParams,
)
def vit_cx(req: Request, p: VitCxParams) -> Attribution:
    import torch

    assert req.layer is not None
    maps, extras, warnings = [], [], []
    for b, image in enumerate(req.x):
        features, layer = req.network.features(image[None], req.layer)  # alone: clusters must not depend on the batch
        raster = Raster(features, tuple(image.shape[-2:]))
        masks = raster.groups(features[0], p.distance)  # (N, h, w): upsampled, they lie in 0..1
        drop = p.hide != "noise" and not isinstance(req.score.tokens(image.shape), str)
        scores = _scores(req, b, masks, raster, drop).double().T  # (T, N)
        finite = scores.isfinite()
        weighted, covered = (
            raster.up((weights @ masks.flatten(1).to(weights)).unflatten(1, masks.shape[1:]))
            for weights in (scores.where(finite, 0.0), finite.double())
        )
        whole = (weighted / covered).where(covered > 0, 0.0)
        maps.append(whole.where((finite.any(1) | (not len(masks)))[:, None, None], torch.nan))
        extras.append([{"masks": len(masks), "hide": "drop" if drop else "noise"} for _ in scores])
        lost = (~finite).sum(1).tolist()
        warnings.append([layer_warnings(layer) + _warnings(n, len(masks)) for n in lost])
    return Attribution(torch.stack(maps).to(req.x), extras=extras, warnings=warnings)


class Raster:
    """Bilinear upsampling of maps (..., h, w) to the input's size, and what follows from its being linear: cosines of
    upsampled maps without upsampling all of them at once."""

    def __init__(self, features: Tensor, size: tuple[int, ...]) -> None:
        import torch
        import torch.nn.functional as F

        eyes = [torch.eye(n, dtype=features.dtype, device=features.device)[None] for n in features.shape[-2:]]
        self.rows, self.columns = (
            F.interpolate(eye, n, mode="linear", align_corners=False)[0].T for eye, n in zip(eyes, size, strict=True)
        )  # (H, h) and (W, w)

    def up(self, maps: Tensor) -> Tensor:
        """(N, h, w) -> (N, H, W)."""
        return self.rows.to(maps) @ maps @ self.columns.to(maps).T

    def normed(self, maps: Tensor) -> Tensor:
        """Maps (N, h, w) that lie in 0..1 after upsampling; those that are the same everywhere, or not finite, are left out."""
        import torch

        ends = [torch.stack(torch.aminmax(self.up(part).flatten(1), dim=1)) for part in maps.split(CHUNK)]
        low, high = torch.cat(ends, 1)[..., None, None]
        varied = ((high > low) & (high - low).isfinite()).flatten()
        return ((maps - low) / (high - low))[varied]

    def groups(self, features: Tensor, distance: float) -> Tensor:
        """The masks (N, h, w) of feature maps (K, h, w)."""
        import torch

        maps = self.normed(features)
        if len(maps) < 2:
            return maps
        labels = torch.as_tensor(_labels(self._cosines(maps), distance), device=maps.device)
        sums = maps.new_zeros(int(labels.max()) + 1, *maps.shape[1:])
        return self.normed(sums.index_add(0, labels, maps))

    def _cosines(self, maps: Tensor) -> Tensor:
        """(K, K): <U f, U g> = <f, U'U g>, where U = rows x columns."""
        weighed = self.rows.T @ self.rows @ maps @ self.columns.T @ self.columns
        products = maps.flatten(1) @ weighed.flatten(1).T
        lengths = products.diagonal().sqrt()
        return products / lengths / lengths[:, None]


def _labels(cosines: Tensor, distance: float) -> list[int]:
    """The number of each map's group."""
    from sklearn.cluster import AgglomerativeClustering

    clusters = AgglomerativeClustering(
        n_clusters=None, distance_threshold=distance, metric="precomputed", linkage="complete"
    )
    return clusters.fit((1 - cosines).clamp_min(0).fill_diagonal_(0).cpu().numpy()).labels_.tolist()


def _scores(req: Request, b: int, masks: Tensor, raster: Raster, drop: bool) -> Tensor:
    """(N, T): the scores of the masks of image `b`."""
    import torch

    image, scores = req.x[b], req.scalars_of(b)
    if not len(masks):
        return image.new_zeros(0, req.objectives.count)
    if drop:
        grid = req.score.tokens_of(image).grid
        stays = [visible_patches(raster.up(part), grid) for part in masks.split(CHUNK)]
        return req.score.token_scores(image, torch.cat(stays), scores)
    clean = scores(req.score.forward(image[None]))

    def work(start: int, stop: int) -> Tensor:
        m = raster.up(masks[start:stop])[:, None]
        z = NOISE * normal(req.seeds[b], tuple(image.shape), start, stop).to(image) * (1 - m)
        return scores(req.score.forward(image * m + z)) - scores(req.score.forward(image + z)) + clean

    return torch.cat(list(req.score.batches(len(masks), work)))


def _warnings(lost: int, masks: int) -> list[str]:
    """Warnings of masks whose score is not finite, and of a layer without masks."""
    if not masks:
        return ["the layer's feature maps are the same everywhere: there is no mask"]
    return [f"the score of {lost} of {masks} masks is not finite: they are left out"] if lost else []
