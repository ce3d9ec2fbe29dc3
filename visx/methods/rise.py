"""RISE: the mean of random masks, each weighted by the score of the image seen through it.

map(pixel) = 1/(N p) sum_i S(x * m_i) m_i(pixel) (Petsiuk et al. 2018, arXiv:1806.07421, equation 6). A mask begins as a
grid of `cells` x `cells`, each kept with probability p; it is upsampled bilinearly to cells + 1 cells of ceil(size /
cells) pixels and cropped at a random place within one cell (section 3.2; the paper leaves the interpolation at the outer
border open: here it is held constant). Mask i of an image has a random stream of its own, whatever the batch.

The paper hides with 0 after normalisation, which is the training set's mean colour and not black; `fill` can be another.
`normalise=pixel` divides by each pixel's own sum of masks instead of N p, a ratio estimate that leaves less noise where
few masks fell. `stderr=true` gives the map's standard error as a further file (of the ratio: to first order).

A copy whose score is not finite is left out as if it had not been drawn, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from visx.errors import usage
from visx.methods.common.fills import FILL_HELP, Fill, fill_image
from visx.methods.contract import Attachment, Attribution, Request, method
from visx.params import Field, Params
from visx.seeds import generator

if TYPE_CHECKING:
    from torch import Tensor

Masks = Callable[[int, int], "Tensor"]  # masks number start..stop, (n, H, W)


class RiseParams(Params):
    masks: int = Field(4000, ge=2, description="random masks, one forward pass each")
    cells: int = Field(7, ge=1, description="cells of a mask's grid along each side")
    p: float = Field(0.5, gt=0, lt=1, description="probability that a cell is kept")
    fill: Fill = Field("zero", description=FILL_HELP)
    normalise: Literal["np", "pixel"] = Field(
        "np", description="divide by masks x p (the paper), or by each pixel's masks"
    )
    stderr: bool = Field(False, description="also write the map's standard error, stderr.npy")


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
    ids = req.score.resolve(req.x, req.targets)
    maps, warnings = [], []
    extras: list[list[dict[str, Any]]] = []
    attachments: list[list[dict[str, Attachment]]] = []
    for b in range(len(req.x)):
        masks = RandomMasks(req.seeds[b], p.cells, p.p, req.x)
        sums = weigh(req, b, ids[b], p.masks, masks, p.fill, squares=p.stderr)
        found = sums.by_pixel() if p.normalise == "pixel" else sums.by_count(p.p)
        maps.append(found)
        counts = [int(n) for n in sums.count.flatten().tolist()]
        extras.append([{"masks": n} for n in counts])
        warnings.append([_remarks(p.masks - n, p.masks) for n in counts])
        attachments.append([{} for _ in ids[b]])
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
    """Masks by number, in [0, 1], (n, H, W): R_y(shift) G R_x(shift)^T with the 0/1 grid G and the rows of bilinear
    upsampling R that the crop keeps, so that a mask costs two small products and nothing larger than itself."""

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
        shift = (draws[:, -2:] * torch.tensor(self.size)).long().to(self.like.device)  # below a cell's size: draws < 1
        return self.rows[0][shift[:, 0]] @ grid @ self.rows[1][shift[:, 1]].transpose(1, 2)


def _upsampling(cells: int, cell: int, size: int) -> Tensor:
    """(cell, size, cells) float64: for every shift of the crop, the bilinear weights of the cells at each pixel."""
    import torch
    import torch.nn.functional as F

    unit = torch.eye(cells, dtype=torch.float64)[None]
    whole = F.interpolate(unit, (cells + 1) * cell, mode="linear", align_corners=False)[0]  # (cells, (cells + 1) cell)
    return torch.stack([whole[:, shift : shift + size].T for shift in range(cell)])


@dataclass
class Sums:
    """What masks m and scores s add up to, in float64, (T, H, W) each but for `count`, the number of finite scores, and
    `reference`, a score r near them (both (T, 1, 1)): `weighted` sum d m with d = s - r, `masks` sum m, and where asked
    for `squares`: sum d² m², sum d m² and sum m².

    Scores that barely vary (a saturated probability) are all but r, so that sums of s itself would cancel.
    """

    count: Tensor
    reference: Tensor
    weighted: Tensor
    masks: Tensor
    squares: tuple[Tensor, Tensor, Tensor] | None = None

    def by_count(self, p: float) -> Tensor:
        """sum s m / (N p); NaN where no score was finite."""
        return (self.weighted + self.reference * self.masks) / (self.count * p)

    def by_pixel(self) -> Tensor:
        """sum s m / sum m, 0 where no mask showed the pixel; NaN where no score was finite."""
        return (self.reference + self._ratio).where(self.masks > 0, 0.0) * (self.count / self.count)

    def error_by_count(self, p: float) -> Tensor:
        """Standard error of `by_count`: of the mean of N independent values s m / p."""
        assert self.squares is not None
        ddmm, dmm, mm = self.squares
        r, mean = self.reference, self.by_count(p)
        total = (ddmm + 2 * r * dmm + r**2 * mm) / p**2
        variance = (total - self.count * mean**2).clamp_min(0) / (self.count - 1)
        return (variance / self.count).sqrt()

    def error_by_pixel(self) -> Tensor:
        """Standard error of `by_pixel`, linearised: of the sum of the residuals m (s - ratio), over sum m."""
        assert self.squares is not None
        ddmm, dmm, mm = self.squares
        ratio = self._ratio
        residuals = (ddmm - 2 * ratio * dmm + ratio**2 * mm).clamp_min(0)
        return (residuals * self.count / (self.count - 1)).sqrt() / self.masks.clamp_min(1e-12)

    @property
    def _ratio(self) -> Tensor:
        """`by_pixel` less the reference."""
        return self.weighted / self.masks.clamp_min(1e-12)


def weigh(
    req: Request, b: int, ids: Tensor, count: int, masks: Masks, fill: str | float = "zero", *, squares: bool = False
) -> Sums:
    """Score image `b` through `count` masks, given by number, and add them up for the targets `ids` (T,)."""
    import torch

    hidden = req.score.copies(fill_image(req, b, fill), 1)
    way = req.score.copies(req.x[b] - hidden[0], 1)

    wide = torch.float64 if req.x.device.type != "mps" else torch.float32  # which has no float64
    reference = torch.full((len(ids), 1), torch.nan, device=req.x.device, dtype=wide)

    def work(start: int, stop: int) -> list[Tensor]:
        m = masks(start, stop)
        s = req.score.of(torch.addcmul(hidden, way, m[:, None]), ids, req.kind).T.to(wide)  # (T, n)
        kept = s.isfinite()
        number = kept.sum(1, keepdim=True)
        mean = s.where(kept, 0.0).sum(1, keepdim=True) / number  # NaN where none is finite: the next batch may tell
        reference.copy_(reference.where(reference.isfinite(), mean))
        d, shown = (s - reference).where(kept, 0.0), kept.to(m)
        flat = m.flatten(1)
        parts = [number, d.to(m) @ flat, shown @ flat]  # of differences, single precision is enough
        if squares:
            square = flat.to(wide).square()
            parts += [d.square() @ square, d @ square, shown.to(wide) @ square]
        return [part.to(wide) for part in parts]

    total: list[Tensor] = []
    for parts in req.score.batches(count, work):
        total = [a + part for a, part in zip(total, parts, strict=True)] if total else parts
    counted, *sums = (part.view(len(ids), *(req.x.shape[-2:] if k else (1, 1))) for k, part in enumerate(total))
    return Sums(counted, reference[:, None], sums[0], sums[1], (sums[2], sums[3], sums[4]) if squares else None)


def _npy(error: Tensor) -> Attachment:
    from visx.files import npy_bytes

    data = npy_bytes(error.float().cpu().numpy())
    return lambda picture, place: data


def _remarks(lost: int, masks: int) -> list[str]:
    return [f"the score of {lost} of {masks} masked copies is not finite: they are left out"] if lost else []
