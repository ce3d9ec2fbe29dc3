"""Occlusion (the sliding patch): how far the score falls when a patch of the image is hidden.

grid[i, j] = S(x) - S(x with patch (i, j) replaced by the fill) (Zeiler & Fergus 2013, arXiv:1311.2901, section 4.2), so
positive where hiding hurts; the paper draws S itself. Every pixel of the map is the mean over the patches that cover
it. Where the stride does not divide the way, a last row or column of patches is shifted back to the border: all patches
have one size, so their scores compare (a patch clipped at the border, as captum has it, hides less).

Defaults follow the input's size: a patch of 2/7 of its shorter side and a stride of a quarter of the patch, 64 and 16 of 224,
11 x 11 = 121 passes and up to four patches over a pixel each way; the fill is the image's own colour. On mosaics of
photographs larger patches (to 64) and this fill put more of the map on the right picture than smaller ones and `zero`.
SAM's settings (arXiv:2003.08754) are `patch=53 stride=3 fill=zero`, 58 x 58 = 3364 passes.

`pad=true` is kazuto1011/grad-cam-pytorch's demo 3 (patch 35, stride 1, logit): the network sees the image with a frame of
fill of half a patch around it, so that a patch can be centred on every pixel; the map holds each centre's value,
interpolated linearly between the centres where the stride is above 1. There the sign is the opposite, occluded minus clean,
and every row begins one stride late.

Copies of a convolutional network that visx loads compute its early layers only around the patch, exact but for rounding
(visx/network/fast/crops.py). The clean image is the first copy of the stream, so that its score is computed just as the others' are. A copy whose score
is not finite is left out of the mean, with a warning; its place in the grid is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.errors import unsupported, usage
from visx.methods.common.fills import FILL_HELP, Fill, fill_image
from visx.methods.contract import Attribution, Request, method
from visx.params import Field, Params

if TYPE_CHECKING:
    from torch import Tensor

PATCH_PART = 2 / 7  # of the input's shorter side
ROUNDING = 8  # units in the last place of the score: what two passes over one picture may differ by
SAME = 1e-4  # a hundredth of a grey level, normalised: a mean is not exact to the last bit


class OcclusionParams(Params):
    patch: int | None = Field(
        None, ge=1, description="side of the patch in pixels; by default 2/7 of the input's shorter side, 64 of 224"
    )
    stride: int | None = Field(
        None,
        ge=1,
        description="pixels from patch to patch; by default a quarter of the patch. Passes grow with 1/stride²",
    )
    fill: Fill = Field("mean", description=FILL_HELP)
    pad: bool = Field(False, description="centre patches on pixels up to the border, in a frame of fill (kazuto1011)")


@method(
    "occlusion",
    family="perturbation",
    title="Occlusion (sliding patch)",
    source="arXiv:1311.2901",
    score="prob",
    signed=True,
    passes="many",
    params=OcclusionParams,
)
def occlusion(req: Request, p: OcclusionParams) -> Attribution:
    import torch

    height, width = req.x.shape[-2:]
    patch, stride = _sizes(p, height, width)
    reach = patch // 2 if p.pad else 0
    tops, lefts = (_starts(n, 1 if p.pad else patch, stride) for n in (height, width))
    spread = _between_centres if p.pad else _covering
    rows, columns = spread(tops, patch, height), spread(lefts, patch, width)
    ids = req.score.resolve(req.x, req.targets)
    maps, grids, extras, warnings = [], [], [], []
    for b in range(len(req.x)):
        image, fill = _framed(req.x[b], fill_image(req, b, p.fill), reach)
        passes = 1 + len(tops) * len(lefts)
        same = bool((image - fill).abs().max() < SAME)
        scores = (
            req.x.new_zeros(passes, ids.shape[1]) if same else _scores(req, ids[b], image, fill, patch, tops, lefts)
        )
        drops = (scores[0] - scores[1:]).cpu().double().T.reshape(-1, len(tops), len(lefts))  # (T, rows, columns)
        finite = drops.isfinite()
        grid = drops.where(finite, 0.0)
        share = (rows @ finite.double() @ columns.T).clamp_min(torch.finfo(torch.float64).tiny)
        nothing = ~finite.flatten(1).any(1)
        maps.append((rows @ grid @ columns.T / share).masked_fill(nothing[:, None, None], torch.nan))
        grids.append(grid)
        extras.append([{"patch": patch, "stride": stride, "passes": passes} for _ in nothing])
        least = ROUNDING * torch.finfo(scores.dtype).eps * scores[0].abs().double().cpu()
        moved = grid.abs().amax((1, 2)) > least
        lost = (~finite).flatten(1).sum(1).tolist()
        still = ["" if m else _STILL if req.kind == "logit" else f"{_STILL}: try --score logit" for m in moved.tolist()]
        warnings.append([_remarks(n, passes - 1, same, s) for n, s in zip(lost, still, strict=True)])
    return Attribution(
        torch.stack(maps).to(req.x), native=torch.stack(grids).to(req.x), extras=extras, warnings=warnings
    )


def _sizes(p: OcclusionParams, height: int, width: int) -> tuple[int, int]:
    """Patch and stride for an input of this size; usage errors where they do not fit."""
    patch = p.patch or max(1, round(PATCH_PART * min(height, width)))
    if patch > min(height, width):
        raise usage(f"occlusion: patch={patch} is larger than the input of {height} x {width}", "a smaller patch")
    stride = p.stride or max(1, patch // 4)
    if stride > patch and not p.pad:
        raise usage(f"occlusion: stride={stride} leaves pixels between patches of {patch} unseen", "stride <= patch")
    return patch, stride


def _starts(size: int, patch: int, stride: int) -> list[int]:
    """Where patches begin along one side; the last one ends at the border."""
    starts = list(range(0, size - patch + 1, stride))
    return starts if starts[-1] == size - patch else [*starts, size - patch]


def _covering(starts: list[int], patch: int, size: int) -> Tensor:
    """(size, len(starts)) float64: which patches cover each pixel, along one side."""
    import torch

    pixel, start = torch.arange(size)[:, None], torch.tensor(starts)
    return ((pixel >= start) & (pixel < start + patch)).double()


def _between_centres(starts: list[int], patch: int, size: int) -> Tensor:
    """(size, len(starts)) float64: for each pixel the weights of the two centres that it lies between, along one side."""
    import numpy as np
    import torch

    weights = [np.interp(np.arange(size), starts, unit) for unit in np.eye(len(starts))]
    return torch.from_numpy(np.stack(weights, 1))


def _framed(x: Tensor, fill: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Image and fill (C, H, W), both with a frame of fill `reach` pixels wide."""
    import torch.nn.functional as F

    if not reach:
        return x, fill
    fill = F.pad(fill[None], (reach,) * 4, mode="replicate")[0]
    image = fill.clone()
    image[:, reach:-reach, reach:-reach] = x
    return image, fill


def _scores(
    req: Request, ids: Tensor, image: Tensor, fill: Tensor, patch: int, tops: list[int], lefts: list[int]
) -> Tensor:
    """(1 + patches, T): the clean image's scores, then those with each patch hidden, row by row."""

    boxes = [(top, left, top + patch, left + patch) for top in tops for left in lefts]
    try:
        return req.score.patched_scores(image, fill, [(0, 0, 0, 0), *boxes], ids, req.kind)
    except (RuntimeError, AssertionError, ValueError) as error:
        if image.shape[-2:] == req.x.shape[-2:]:
            raise
        size = " x ".join(map(str, image.shape[-2:]))
        raise unsupported(f"the model does not take the framed image of {size}: {error}", "leave out -p pad") from None


_STILL = "no patch changes the score by more than rounding does"


def _remarks(lost: int, patches: int, same: bool, still: str) -> list[str]:
    if same:
        return ["the image is the fill everywhere, so hiding changes nothing: choose another -p fill"]
    if lost:
        return [f"the score of {lost} of {patches} occluded copies is not finite: they are left out"]
    return [still] if still else []
