"""RISE: the mean of random masks, each weighted by the score of the image that is multiplied with the mask.

map(pixel) = 1/(N p) sum_i S(x * m_i) m_i(pixel) (Petsiuk et al. 2018, arXiv:1806.07421, equation 6). A mask begins as a grid
of `cells` x `cells`, each cell kept with probability p. It is upsampled bilinearly to cells + 1 cells of ceil(size / cells)
pixels and cropped at a random shift of less than one cell (section 3.2). The paper does not say how to interpolate outside
the outer cells' centres; here the value of the outer cell is held constant. Mask i of an image depends on the seed and i only, not on the batch.

Masked pixels become 0 after normalisation, which is the training set's mean colour, as in the paper.

Deviation from the paper: a copy whose score is not finite is left out as if it had not been drawn, with a warning.

Extensions beyond the paper:
- `fill` replaces masked pixels with something else.
- `hide=drop` leaves hidden tokens out of a plain vision transformer (visx/network/tokens.py), so that a copy costs its visible
  tokens only: about half of a pass at p = 0.5. A token goes where its mask's mean over the token's patch is under one half; the
  map still weighs the masks themselves. A head that averages the patches averages those that stay. A copy without any token is
  scored by the class token alone, or is left out where there is none.
- `normalise=pixel` divides by the sum of masks at each pixel instead of N p. This ratio has less noise where few masks kept
  the pixel.
- `stderr=true` writes the standard error of the map as a further file; that of the ratio is a first-order approximation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from visx.errors import usage
from visx.methods.common.fills import FILL_HELP, Fill, fill_image
from visx.methods.common.hiding import HIDE_HELP, Hide, needs_of, visible_patches
from visx.methods.contract import Attachment, Attribution, Request, method
from visx.params import Field, Params
from visx.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

Masks = Callable[[int, int], "Tensor"]  # (start, stop) -> masks number start to stop - 1, (n, H, W) in 0..1
Scored = Callable[[int, int, "Tensor"], "Tensor"]  # (start, stop, these masks) -> scores (n, T) of their copies
CHUNK = 64  # masks that are made at a time where no copies are


class RiseParams(Params):
    masks: int = Field(4000, ge=2, description="random masks, one forward pass each")
    cells: int = Field(7, ge=1, description="cells of a mask's grid along each side")
    p: float = Field(0.5, gt=0, lt=1, description="probability that a cell is kept")
    fill: Fill = Field("zero", description=FILL_HELP)
    normalise: Literal["np", "pixel"] = Field(
        "np", description="divide by masks x p (the paper), or by each pixel's masks"
    )
    stderr: bool = Field(False, description="also write the map's standard error, stderr.npy")
    hide: Hide = Field("fill", description=HIDE_HELP)

    def extra_needs(self) -> frozenset[str]:
        """Tokens, where they are left out."""
        return needs_of(self.hide)


@method(
    "rise",
    family="perturbation",
    title="RISE",
    source="arXiv:1806.07421",
    score="prob",
    passes="many",
    params=RiseParams,
)
def rise(req: Request, p: RiseParams) -> Attribution:
    import torch

    height, width = req.x.shape[-2:]
    if p.cells > min(height, width):
        raise usage(f"rise: cells={p.cells} are more than the input of {height} x {width} has pixels", "fewer cells")
    count = req.objectives.count
    maps, warnings = [], []
    extras: list[list[dict[str, Any]]] = []
    attachments: list[list[dict[str, Attachment]]] = []
    for b in range(len(req.x)):
        masks = RandomMasks(req.seeds[b], p.cells, p.p, req.x)
        scored = dropped(req, b, p.masks, masks) if p.hide == "drop" else filled(req, b, p.fill)
        sums = weigh(req, p.masks, masks, scored, squares=p.stderr)
        maps.append(sums.by_pixel() if p.normalise == "pixel" else sums.by_count(p.p))
        counts = [int(n) for n in sums.count.flatten().tolist()]
        extras.append([{"masks": n} for n in counts])
        warnings.append([_warnings(p.masks - n, p.masks) for n in counts])
        attachments.append([{} for _ in range(count)])
        if p.stderr:
            errors = sums.error_by_pixel() if p.normalise == "pixel" else sums.error_by_count(p.p)
            for t, error in enumerate(errors):
                extras[b][t]["stderr_mean"] = float(error.mean())
                attachments[b][t]["stderr.npy"] = _npy(error)
    return Attribution(
        torch.stack(maps).to(req.x.dtype),
        extras=extras,
        warnings=warnings,
        attachments=attachments if p.stderr else None,
    )


class RandomMasks:
    """Random masks by number, (n, H, W) in 0..1.

    A mask is R_y G R_x^T: G is the grid of zeros and ones, R_y and R_x are the rows of the bilinear upsampling that the
    crop keeps. So a mask costs two small products, and the upsampled grid never exists in memory.
    """

    def __init__(self, seed: int, cells: int, p: float, like: Tensor) -> None:
        self.seed, self.cells, self.p, self.like = seed, cells, p, like
        self.size = [-(-n // cells) for n in like.shape[-2:]]  # a cell's height and width in pixels
        self.rows = [_upsampling(cells, c, n).to(like) for c, n in zip(self.size, like.shape[-2:], strict=True)]

    def __call__(self, start: int, stop: int) -> Tensor:
        import torch

        numbers = self.cells * self.cells + 2
        draws = torch.stack(
            [torch.rand(numbers, generator=generator(self.seed, i), dtype=torch.float32) for i in range(start, stop)]
        )
        grid = (draws[:, :-2] < self.p).view(-1, self.cells, self.cells).to(self.like)
        shift = (
            (draws[:, -2:] * torch.tensor(self.size)).long().to(self.like.device)
        )  # less than a cell's size, because draws < 1
        return self.rows[0][shift[:, 0]] @ grid @ self.rows[1][shift[:, 1]].transpose(1, 2)


def _upsampling(cells: int, cell: int, size: int) -> Tensor:
    """(cell, size, cells) float64: for each shift 0 to cell - 1 of the crop, the weights of the cells at each pixel."""
    import torch
    import torch.nn.functional as F

    grids = torch.eye(cells, dtype=torch.float64)[None]  # one for each cell, kept alone
    whole = F.interpolate(grids, (cells + 1) * cell, mode="linear", align_corners=False)[0]  # (cells, (cells + 1) cell)
    return torch.stack([whole[:, shift : shift + size].T for shift in range(cell)])


@dataclass
class Sums:
    """Sums over the N masks m (H, W) with a finite score s, for T targets, in float64.

    `count` (T, 1, 1): N. `reference` (T, 1, 1): a score r near the scores s; sums are of d = s - r, because sums of s lose
    their digits where scores hardly vary (a saturated probability). `weighted` (T, H, W): sum d m. `masks` (T, H, W): sum m.
    `squares`, three of (T, H, W), where a standard error is asked for: sum d² m², sum d m², sum m².
    """

    count: Tensor
    reference: Tensor
    weighted: Tensor
    masks: Tensor
    squares: tuple[Tensor, Tensor, Tensor] | None = None

    def by_count(self, p: float) -> Tensor:
        """(T, H, W): sum s m / (N p). NaN where no score was finite."""
        return (self.weighted + self.reference * self.masks) / (self.count * p)

    def by_pixel(self) -> Tensor:
        """(T, H, W): sum s m / sum m. 0 where no mask kept the pixel, NaN where no score was finite."""
        return (self.reference + self._ratio).where(self.masks > 0, 0.0) * (self.count / self.count)

    def error_by_count(self, p: float) -> Tensor:
        """(T, H, W): the standard error of `by_count`, which is the mean of N independent values s m / p."""
        assert self.squares is not None
        ddmm, dmm, mm = self.squares
        r, mean = self.reference, self.by_count(p)
        total = (ddmm + 2 * r * dmm + r**2 * mm) / p**2
        variance = (total - self.count * mean**2).clamp_min(0) / (self.count - 1)
        return (variance / self.count).sqrt()

    def error_by_pixel(self) -> Tensor:
        """(T, H, W): the standard error of `by_pixel` to first order: that of the sum of m (s - ratio), over sum m."""
        assert self.squares is not None
        ddmm, dmm, mm = self.squares
        ratio = self._ratio
        residuals = (ddmm - 2 * ratio * dmm + ratio**2 * mm).clamp_min(0)
        return (residuals * self.count / (self.count - 1)).sqrt() / self.masks.clamp_min(1e-12)

    @property
    def _ratio(self) -> Tensor:
        """(T, H, W): sum d m / sum m, which is `by_pixel` minus the reference."""
        return self.weighted / self.masks.clamp_min(1e-12)


def filled(req: Request, b: int, fill: str | float = "zero") -> Scored:
    """The scores of copies of image `b` that show the fill where their mask hides."""
    import torch

    scores = req.scalars_of(b)
    hidden = req.score.copies(fill_image(req, b, fill), 1)
    difference = req.score.copies(req.x[b] - hidden[0], 1)
    return lambda start, stop, m: scores(req.score.forward(torch.addcmul(hidden, difference, m[:, None])))


def dropped(req: Request, b: int, count: int, masks: Masks) -> Scored:
    """The scores of copies of image `b` without the tokens that their mask hides; all are scored at once, those of one size
    together."""
    import torch

    grid = req.score.tokens_of(req.x[b]).grid
    parts = [visible_patches(masks(start, min(start + CHUNK, count)), grid) for start in range(0, count, CHUNK)]
    known = req.score.token_scores(req.x[b], torch.cat(parts), req.scalars_of(b))
    return lambda start, stop, m: known[start:stop]


def weigh(req: Request, count: int, masks: Masks, scored: Scored, *, squares: bool = False) -> Sums:
    """The sums over `count` masks, given the scores of their copies; `squares` are needed for a standard error."""
    import torch

    targets = req.objectives.count
    wide = torch.float64 if req.x.device.type != "mps" else torch.float32  # MPS has no float64
    reference = torch.full((targets, 1), torch.nan, device=req.x.device, dtype=wide)

    def work(start: int, stop: int) -> list[Tensor]:
        m = masks(start, stop)
        s = scored(start, stop, m).T.to(wide)  # (T, n)
        kept = s.isfinite()
        number = kept.sum(1, keepdim=True)
        mean = s.where(kept, 0.0).sum(1, keepdim=True) / number  # NaN where no score of this batch is finite
        reference.copy_(reference.where(reference.isfinite(), mean))
        d, counted = (s - reference).where(kept, 0.0), kept.to(m)
        flat = m.flatten(1)
        parts = [number, d.to(m) @ flat, counted @ flat]  # float32 is enough for differences
        if squares:
            square = flat.to(wide).square()
            parts += [d.square() @ square, d @ square, counted.to(wide) @ square]
        return [part.to(wide) for part in parts]

    total: list[Tensor] = []
    for parts in req.score.batches(count, work):
        total = [a + part for a, part in zip(total, parts, strict=True)] if total else parts
    finite, *sums = (part.view(targets, *(req.x.shape[-2:] if k else (1, 1))) for k, part in enumerate(total))
    return Sums(finite, reference[:, None], sums[0], sums[1], (sums[2], sums[3], sums[4]) if squares else None)


def _npy(error: Tensor) -> Attachment:
    """A further file: the standard error (H, W) as a float32 array."""
    from visx.files import npy_bytes

    data = npy_bytes(error.float().cpu().numpy())
    return lambda picture, place: data


def _warnings(lost: int, masks: int) -> list[str]:
    """A warning where copies were left out because their score was not finite."""
    return [f"the score of {lost} of {masks} masked copies is not finite: they are left out"] if lost else []
