"""Occlusion (the sliding patch): how far the score falls when a patch of the image is hidden.

grid[i, j] = S(x) - S(x with patch (i, j) replaced by the fill) (Zeiler & Fergus 2013, arXiv:1311.2901, section 4.2). It is
positive where hiding lowers the score. Each pixel of the map is the mean over the patches that cover the pixel.

Deviations from the paper:
- The paper draws S itself, not the fall of S.
- Where the last patch of a row or column would reach beyond the image, it is moved back to the border. So all patches have one
  size and their scores compare; a patch that is cut at the border, as in captum, hides less.
- The defaults depend on the input's size: a patch of 2/7 of the shorter side and a stride of a quarter of the patch. For 224
  pixels these are 64 and 16, which makes 11 x 11 = 121 passes and up to 16 patches over a pixel. The fill is the image's own
  mean colour. On mosaics of photographs these put more of the map on the right photograph than smaller patches and the fill
  `zero`. SAM's settings (arXiv:2003.08754) are `patch=53 stride=3 fill=zero`: 58 x 58 = 3364 passes.

`pad=true` is demo 3 of the program kazuto1011/grad-cam-pytorch (patch 35, stride 1, logit). The network sees the image inside
a frame of fill half a patch wide, so that a patch can be centred on every pixel. The map holds the value of each centre,
interpolated linearly where the stride is above 1. In that program the sign is the opposite (occluded minus clean), and every
row begins one stride late.

Extension: `hide=drop` leaves the tokens under the patch out of a plain vision transformer (visx/network/tokens.py) instead of
filling pixels, so that a copy costs its visible tokens only. A token goes where its mask's mean over the token's patch is under
one half: where more than half of it is covered. Patches that hide the same tokens are scored once.

Copies of a convolutional network compute its early layers only around the patch, which is exact but for
rounding (visx/network/fast/crops.py). The clean image is the first copy of the same stream, so that its score has the same
rounding as the others. A copy whose score is not finite is left out of the mean, with a warning; its place in the grid is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from visx.errors import unsupported, usage
from visx.methods.common.fills import FILL_HELP, Fill, fill_image
from visx.methods.common.hiding import HIDE_HELP, Hide, needs_of, visible
from visx.methods.contract import Attribution, Request, method
from visx.params import Field, Params

if TYPE_CHECKING:
    from torch import Tensor

PATCH_PART = 2 / 7  # the default patch, as a part of the input's shorter side
ROUNDING = 8  # units in the last place of the score; two passes over one picture differ by no more
SAME = 1e-4  # image and fill that differ by less (about a hundredth of a grey level, normalised) are equal


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
    hide: Hide = Field("fill", description=HIDE_HELP)

    def extra_needs(self) -> frozenset[str]:
        """Tokens, where they are left out."""
        return needs_of(self.hide)


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
    frame = patch // 2 if p.pad else 0
    tops, lefts = (_starts(n, 1 if p.pad else patch, stride) for n in (height, width))
    weights = _between_centres if p.pad else _covering
    rows, columns = weights(tops, patch, height), weights(lefts, patch, width)
    count = req.objectives.count
    maps, grids, extras, warnings = [], [], [], []
    for b in range(len(req.x)):
        image, fill = _framed(req.x[b], fill_image(req, b, p.fill), frame)
        passes = 1 + len(tops) * len(lefts)
        same = p.hide == "fill" and bool((image - fill).abs().max() < SAME)
        if same:
            scores = req.x.new_zeros(passes, count)
        elif p.hide == "drop":
            scores = _dropped(req, b, patch, [top - frame for top in tops], [left - frame for left in lefts])
        else:
            scores = _scores(req, b, image, fill, patch, tops, lefts)
        drops = (scores[0] - scores[1:]).cpu().double().T.reshape(-1, len(tops), len(lefts))  # (T, rows, columns)
        finite = drops.isfinite()
        grid = drops.where(finite, 0.0)
        share = (rows @ finite.double() @ columns.T).clamp_min(torch.finfo(torch.float64).tiny)
        none_finite = ~finite.flatten(1).any(1)
        maps.append((rows @ grid @ columns.T / share).masked_fill(none_finite[:, None, None], torch.nan))
        grids.append(grid)
        extras.append([{"patch": patch, "stride": stride, "passes": passes} for _ in none_finite])
        least = ROUNDING * torch.finfo(scores.dtype).eps * scores[0].abs().double().cpu()
        unchanged = (grid.abs().amax((1, 2)) <= least).tolist()
        lost = (~finite).flatten(1).sum(1).tolist()
        try_logit = req.kind != "logit"
        warnings.append([_warnings(n, passes - 1, same, u, try_logit) for n, u in zip(lost, unchanged, strict=True)])
    return Attribution(
        torch.stack(maps).to(req.x), native=torch.stack(grids).to(req.x), extras=extras, warnings=warnings
    )


def _sizes(p: OcclusionParams, height: int, width: int) -> tuple[int, int]:
    """The patch and the stride in pixels for an input of this size.

    Raises `VisxError` (usage, exit 2) where the patch is larger than the input or patches leave pixels out.
    """
    patch = p.patch or max(1, round(PATCH_PART * min(height, width)))
    if patch > min(height, width):
        raise usage(f"occlusion: patch={patch} is larger than the input of {height} x {width}", "a smaller patch")
    stride = p.stride or max(1, patch // 4)
    if stride > patch and not p.pad:
        raise usage(f"occlusion: stride={stride} leaves pixels between patches of {patch} unseen", "stride <= patch")
    return patch, stride


def _starts(size: int, patch: int, stride: int) -> list[int]:
    """The first pixels of the patches along one side of `size` pixels; the last patch ends at the border."""
    starts = list(range(0, size - patch + 1, stride))
    return starts if starts[-1] == size - patch else [*starts, size - patch]


def _covering(starts: list[int], patch: int, size: int) -> Tensor:
    """(size, len(starts)) float64, along one side: 1 where a patch covers a pixel, else 0."""
    import torch

    pixel, start = torch.arange(size)[:, None], torch.tensor(starts)
    return ((pixel >= start) & (pixel < start + patch)).double()


def _between_centres(starts: list[int], patch: int, size: int) -> Tensor:
    """(size, len(starts)) float64, along one side: the weights of the two patch centres that a pixel lies between."""
    import numpy as np
    import torch

    weights = [np.interp(np.arange(size), starts, unit) for unit in np.eye(len(starts))]
    return torch.from_numpy(np.stack(weights, 1))


def _framed(x: Tensor, fill: Tensor, frame: int) -> tuple[Tensor, Tensor]:
    """The image and the fill (C, H, W), both with a frame of fill `frame` pixels wide."""
    import torch.nn.functional as F

    if not frame:
        return x, fill
    fill = F.pad(fill[None], (frame,) * 4, mode="replicate")[0]
    image = fill.clone()
    image[:, frame:-frame, frame:-frame] = x
    return image, fill


def _scores(req: Request, b: int, image: Tensor, fill: Tensor, patch: int, tops: list[int], lefts: list[int]) -> Tensor:
    """(1 + patches, T): the scores of the clean image, then those with each patch hidden, row by row.

    Raises `VisxError` (exit 4) where the model does not take the larger, framed image.
    """
    boxes = [(top, left, top + patch, left + patch) for top in tops for left in lefts]
    try:
        return req.score.patched_scores(image, fill, [(0, 0, 0, 0), *boxes], req.scalars_of(b))
    except (RuntimeError, AssertionError, ValueError) as error:
        if image.shape[-2:] == req.x.shape[-2:]:
            raise
        size = " x ".join(map(str, image.shape[-2:]))
        raise unsupported(f"the model does not take the framed image of {size}: {error}", "leave out -p pad") from None


def _dropped(req: Request, b: int, patch: int, tops: list[int], lefts: list[int]) -> Tensor:
    """(1 + patches, T): the scores of the clean image, then those without the tokens under each patch, row by row.

    Raises `VisxError` (usage, exit 2) where no patch covers half of a token's patch.
    """
    import torch
    import torch.nn.functional as F

    height, width = req.x.shape[-2:]
    grid = req.score.tokens_of(req.x[b]).grid
    covered = [
        F.adaptive_avg_pool1d(_covering(starts, patch, size).T[:, None], cells)[:, 0]  # (starts, cells)
        for starts, size, cells in zip((tops, lefts), (height, width), grid, strict=True)
    ]
    stays = visible(1 - torch.einsum("ri,cj->rcij", *covered).flatten(0, 1).flatten(1))
    if stays.all():
        size = f"{height // grid[0]} x {width // grid[1]}"
        raise usage(f"occlusion: a patch of {patch} covers no half of a token's {size} pixels", "a larger patch")
    every = torch.ones(1, stays.shape[1], dtype=torch.bool)
    return req.score.token_scores(req.x[b], torch.cat([every, stays]), req.scalars_of(b))


def _warnings(lost: int, patches: int, same: bool, unchanged: bool, try_logit: bool) -> list[str]:
    """What makes a map empty or incomplete: an image like its fill, scores that are not finite, or a score that never
    changes."""
    if same:
        return ["the image is the fill everywhere, so hiding changes nothing: choose another -p fill"]
    if lost:
        return [f"the score of {lost} of {patches} occluded copies is not finite: they are left out"]
    if unchanged:
        return ["no patch changes the score by more than rounding does" + ": try --score logit" * try_logit]
    return []
