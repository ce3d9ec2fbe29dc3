"""Meaningful perturbation: the smallest smooth region whose blurring lowers the score, found by gradient descent on a mask.

The mask m has values in [0, 1]; 1 keeps a pixel, 0 blurs it. It minimises
S(x m + blur(x) (1 - m)) + l1 sum |1 - m| + tv sum |grad m|^tv_beta, and the map is 1 - m (Fong & Vedaldi 2017,
arXiv:1704.03296, equations 3 and 4). The mask has `mask_size` cells a side and is upsampled to the input. After every step
of Adam it is clamped to [0, 1]. Both sums run over the cells, so the right weights depend on `mask_size`. The exponent 1 of
the total variation (the default) allows the mask a sharp border; SAM (arXiv:2003.08754) takes 3, which makes it wide.

Deviations from the paper:
- A weight that is not given is a part of |S(x) - S(blur(x))|, which differs from image to image and target to target. With
  a fixed weight a class of probability 0.001 gains less than ten cells cost, and the mask learns nothing. Given weights are
  used as they are, like the paper's.
- The circular start is the smallest blurred disc that lowers the score below 1 % of the range between the clean image and
  the largest disc.

Deviations from SAM's program, which is followed otherwise:
- Jitter: the program moves the picture under the mask inside a view that is `jitter` pixels larger than the input. visx has
  only the input; it moves that about its centre and repeats the edge pixels.
- Discs are made at input size (radius 0 to 170 of 224 pixels, blurred by 10) and averaged onto the mask's cells, so that
  they are the same for every mask size.
- The final blur is computed in floats, not in 8-bit levels.

All images and targets are optimised together, each with sums, Adam moments and a jitter stream of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

from visx.errors import usage
from visx.methods.contract import Attachment, Attribution, Request, method
from visx.params import Field, Params
from visx.seeds import generator

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from visx.images.geometry import Placement
    from visx.targets.contract import Objectives

RADII = range(0, 175, 5)  # of the discs, in pixels of an input of DISC_SIZE
DISC_SIZE, DISC_BLUR, DISC_THRESHOLD = 224, 10.0, 0.01
WEAK_FALL = 0.5  # a probability that stays above this part of the clean image's is warned about
AUTO_L1, AUTO_TV = 2e-3, 1e-2  # default weights, as parts of the score that blurring the whole image takes away


class MeaningfulPerturbationParams(Params):
    mask_size: int = Field(28, ge=2, description="the mask's side; it is upsampled to the input")
    init: Literal["circular", "ones", "random"] = Field(
        "circular", description="start: the smallest disc that hides the class, the whole image kept, or random"
    )
    iterations: int = Field(300, ge=1, description="steps of Adam")
    lr: float = Field(0.1, gt=0, description="step size of Adam")
    l1: float | None = Field(
        None, ge=0, description="weight of the blurred area, summed over the mask; left out: 0.002 of the score to gain"
    )
    tv: float | None = Field(
        None, ge=0, description="weight of the total variation, summed likewise; left out: 0.01 of the score to gain"
    )
    tv_beta: float = Field(1.0, ge=1, description="exponent of the total variation")
    jitter: int = Field(4, ge=0, description="the picture shifts under the mask by so many positions a step; 0 stays")
    blur_radius: float = Field(10.0, gt=0, description="deviation of the blur that hides, in input pixels")
    upsample: Literal["nearest", "bilinear"] = Field("bilinear", description="how the mask grows to the input's size")
    final_blur: float = Field(1.0, ge=0, description="deviation of the map's own blur, in input pixels")
    frames: int = Field(0, ge=0, le=1000, description="pictures of the mask's evolution, as an animated GIF; 0: none")


@dataclass
class _Pairs:
    """n pairs of an image and an objective.

    `owners` (n,) int64: the number of the image. `objectives`: n rows of one. `masks` (n, s, s) in 0..1. `l1` (n,) and `tv`
    (n,): the weights of the area and of the total variation.
    """

    owners: Tensor
    objectives: Objectives
    masks: Tensor
    l1: Tensor
    tv: Tensor

    def part(self, start: int, stop: int) -> _Pairs:
        """The pairs from number `start` to `stop`."""
        some = slice(start, stop)
        return _Pairs(self.owners[some], self.objectives[some], self.masks[some], self.l1[some], self.tv[some])


@method(
    "meaningful_perturbation",
    family="perturbation",
    title="Meaningful perturbation (learned mask)",
    source="arXiv:1704.03296",
    needs={"grad"},
    score="prob",
    passes="many",
    params=MeaningfulPerturbationParams,
)
def meaningful_perturbation(req: Request, p: MeaningfulPerturbationParams) -> Attribution:
    import torch

    from visx.ops.blur import gaussian_blur

    size = tuple(req.x.shape[-2:])
    if p.mask_size > min(size):
        raise usage(
            f"mask_size={p.mask_size}: the input is {size[0]} x {size[1]}", "mask_size: at most the input's side"
        )
    batch, count = len(req.x), req.objectives.count
    views = _Views(req, gaussian_blur(req.x, p.blur_radius), p)
    start = torch.cat([views.initial(b) for b in range(batch)])
    l1, tv = (torch.cat(weights) for weights in zip(*(views.weights(b) for b in range(batch)), strict=True))
    owners = torch.arange(batch, device=req.x.device).repeat_interleave(count)
    pairs = _Pairs(owners, req.objectives.pairs(), start, l1, tv)
    learned = list(req.score.batches(batch * count, lambda a, b: views.learn(pairs.part(a, b))))
    masks = torch.cat([masks for masks, _ in learned]).unflatten(0, (batch, count))
    frames = torch.cat([frames for _, frames in learned]).unflatten(0, (batch, count)).cpu().numpy()
    maps = gaussian_blur(1 - views.grown(masks), p.final_blur)
    extras, warnings = [], []
    for b in range(batch):
        scores = views.scores(b, torch.cat([torch.ones_like(maps[b, :1]), 1 - maps[b]]))
        ends = scores[1:].diagonal().tolist()
        figures = zip(scores[0].tolist(), ends, maps[b].mean((-2, -1)).tolist(), strict=True)
        extras.append([{"score_start": first, "score_end": last, "area": area} for first, last, area in figures])
        warnings.append([_warnings(entry, req.kind == "prob") for entry in extras[-1]])
    attachments = [[_evolution(frames[b, t]) for t in range(count)] for b in range(batch)] if p.frames else None
    return Attribution(maps, native=1 - masks, extras=extras, warnings=warnings, attachments=attachments)


class _Views:
    """The images and their blurred copies, (B, C, H, W) each: mixes them by masks and shifts them by jitter."""

    def __init__(self, req: Request, blurred: Tensor, p: MeaningfulPerturbationParams) -> None:
        import torch
        import torch.nn.functional as F

        self.req, self.p, self.size = req, p, tuple(req.x.shape[-2:])
        self.blurred = blurred
        before, after = p.jitter // 2, p.jitter - p.jitter // 2
        self.both = F.pad(torch.cat([req.x, blurred], 1), (before, after, before, after), mode="replicate")
        draws = [
            torch.randint(0, max(1, p.jitter), (p.iterations, 2), generator=generator(seed, "jitter"))
            for seed in req.seeds
        ]
        self.shifts: list[list[list[int]]] = [draw.tolist() for draw in draws]

    def grown(self, masks: Tensor) -> Tensor:
        """Masks (..., T, s, s), upsampled to input size: (..., T, H, W)."""
        import torch.nn.functional as F

        corners = {} if self.p.upsample == "nearest" else {"align_corners": False}
        return F.interpolate(masks, self.size, mode=self.p.upsample, **corners)

    def shifted(self, owners: list[int], step: int) -> tuple[Tensor, Tensor]:
        """The images numbered `owners` and their blurred copies, shifted by the jitter of one step: two (n, C, H, W)."""
        import torch

        height, width = self.size
        if self.p.jitter == 0:
            return self.req.x[owners], self.blurred[owners]
        places = [(b, *self.shifts[b][step]) for b in owners]
        views = torch.stack([self.both[b, :, top : top + height, left : left + width] for b, top, left in places])
        sharp, soft = views.chunk(2, 1)
        return sharp, soft

    def learn(self, pairs: _Pairs) -> tuple[Tensor, Tensor]:
        """The masks after all iterations (n, s, s), and F frames of their evolution (n, F, s, s)."""
        import torch

        p, owners, kept = self.p, pairs.owners.tolist(), []
        scores = partial(pairs.objectives.scores, kind=self.req.kind)
        masks = pairs.masks.clone().requires_grad_()
        adam = torch.optim.Adam([masks], lr=p.lr)
        frame_steps = _frame_steps(p)
        for step in range(p.iterations):
            if step in frame_steps:
                kept.append(masks.detach().clone())
            sharp, soft = self.shifted(owners, step)
            with torch.enable_grad():
                copies = torch.lerp(soft, sharp, self.grown(masks[:, None]))
                costs = pairs.l1 @ (1 - masks).abs().sum((1, 2)) + pairs.tv @ _variation(masks, p.tv_beta)
            grads = self.req.network.input_gradients(copies.detach(), scores, one_of_many=True).grads
            (masks.grad,) = torch.autograd.grad([copies, costs], masks, [grads[:, 0], torch.ones_like(costs)])
            adam.step()
            masks.data.clamp_(0, 1)
            self.req.score.progress(step + 1, p.iterations)
        if p.iterations in frame_steps:
            kept.append(masks.detach().clone())
        frames = torch.stack(kept, 1) if kept else masks.detach()[:, None][:, :0]
        return masks.detach(), frames

    def scores(self, b: int, masks: Tensor) -> Tensor:
        """(n, T): the scores of image `b` under masks (n, H, W), without jitter."""
        import torch

        def copies(start: int, stop: int) -> Tensor:
            return torch.lerp(self.blurred[b], self.req.x[b], masks[start:stop, None])

        return self.req.score.scores(len(masks), copies, self.req.scalars_of(b))

    def weights(self, b: int) -> tuple[Tensor, Tensor]:
        """The weights of the area (T,) and of the total variation (T,) for image `b`."""
        import torch

        p, given = self.p, self.req.x.new_ones(self.req.objectives.count)
        if p.l1 is not None and p.tv is not None:
            return p.l1 * given, p.tv * given
        whole = self.req.x.new_ones(1, *self.size)
        clean, blurred = self.scores(b, torch.cat([whole, 0 * whole]))
        gain = (clean - blurred).abs().to(given)
        return (
            gain * AUTO_L1 if p.l1 is None else p.l1 * given,
            gain * AUTO_TV if p.tv is None else p.tv * given,
        )

    def initial(self, b: int) -> Tensor:
        """(T, s, s): the masks of image `b` before the first step."""
        import torch

        p, count, shape = self.p, self.req.objectives.count, (1, self.p.mask_size, self.p.mask_size)
        if p.init == "random":
            return (
                torch.rand(shape, generator=generator(self.req.seeds[b], "mask"), dtype=torch.float32)
                .to(self.req.x)
                .repeat(count, 1, 1)
            )
        if p.init == "ones":
            return self.req.x.new_ones(shape).repeat(count, 1, 1)
        discs = 1 - _discs(self.size, p.mask_size).to(self.req.x)
        masks = torch.cat([torch.ones_like(discs[:1]), discs])
        scores = self.scores(b, self.grown(masks[:, None])[:, 0])
        clean, of_discs = scores[0], scores[1:]
        remaining = (of_discs - of_discs[-1]) / (clean - of_discs[-1])  # 1: no fall, 0: that of the largest disc
        hidden = remaining < DISC_THRESHOLD
        smallest = torch.where(hidden.any(0), hidden.int().argmax(0), len(discs) - 1)
        return discs[smallest]


@cache  # takes nearly a second, and is the same for every image
def _discs(size: tuple[int, ...], mask_size: int) -> Tensor:
    """(R, s, s): for each of the R radii a blurred disc at the centre, 1 inside, averaged onto the mask's cells."""
    import torch
    import torch.nn.functional as F

    from visx.ops.blur import gaussian_blur

    height, width = size
    unit = min(size) / DISC_SIZE
    rows, columns = torch.arange(height)[:, None] - height // 2, torch.arange(width)[None] - width // 2
    radii = torch.tensor([radius * unit for radius in RADII], dtype=torch.float32)[:, None, None]
    discs = ((rows**2 + columns**2) <= radii**2).double()[:, None]
    return F.adaptive_avg_pool2d(gaussian_blur(discs, DISC_BLUR * unit), mask_size)[:, 0]


def _variation(masks: Tensor, beta: float) -> Tensor:
    """(n,): for each mask (n, s, s) the sum of |vertical differences|^beta + |horizontal differences|^beta."""
    return masks.diff(dim=-2).abs().pow(beta).sum((1, 2)) + masks.diff(dim=-1).abs().pow(beta).sum((1, 2))


def _frame_steps(p: MeaningfulPerturbationParams) -> set[int]:
    """The steps before which the mask is kept as a frame, spread evenly from the first to the last; of one frame the last."""
    if p.frames <= 1:
        return {p.iterations} if p.frames else set()
    return {round(p.iterations * k / (p.frames - 1)) for k in range(p.frames)}


def _warnings(figures: dict[str, Any], probability: bool) -> list[str]:
    """A warning where the mask hardly lowers the score; `probability` says that the score is one."""
    start, end = figures["score_start"], figures["score_end"]
    weak = end > WEAK_FALL * start if probability else end >= start
    if weak:
        fall = f"lowers the score from {start:.3g} to {end:.3g} only"
        rise = f"does not lower the score ({start:.3g} before, {end:.3g} after)"
        return [f"the mask {fall if end < start else rise}: try a larger -p blur_radius or a smaller -p l1"]
    return []


def _evolution(masks: np.ndarray) -> dict[str, Attachment]:
    """A further file: the F masks (F, s, s) over the picture as an animated GIF."""

    def draw(rgb: np.ndarray, place: Placement) -> bytes:
        from visx.draw.overlay import animation

        return animation(rgb, 1 - masks, place)

    return {"evolution.gif": draw}
