"""LIME: a linear model of the score over superpixels that are switched on and off; the map is its weights.

Superpixels of the image are hidden at random (each on with probability 1/2, the first sample all on); a ridge
regression g(z) = b + w.z is fitted to the scores, each sample weighted by sqrt(exp(-D(z, 1)^2 / kernel_width^2)), D the
cosine distance to the whole image (Ribeiro et al. 2016, arXiv:1602.04938, sections 3.3 and 3.4, and the authors' `lime`
package, whose kernel takes the root). The weighted R^2 says how much of the score the linear model explains.

Deviations from the package: SLIC is the default segmenter (SAM's, arXiv:2003.08754; quickshift is the package's); the
seed moves the samples and never the superpixels; `features` picks the largest weights of the fit with the same `alpha`
and fits again (the package picks with alpha 0.01, or step by step for six and fewer). Superpixels are found on the
pixels that the network sees. Samples whose score is not finite are left out, and said so.

One default was chosen by measurement (benchmarks/localisation.py): a weight that lies within `significance` standard
errors of zero shrinks by the cube of the part it is of them, because most superpixels' weights are chance and together
outweigh what is found: of 50 weights that are all chance the largest lies 3 standard errors out, and shrinks to a
twentieth. One standard error, the root mean square of the weights', holds for all (they differ by some hundredths), so
that the order of the weights is exactly the fit's. `significance=0` takes every weight as fitted, as the paper and the
package do. Standard errors are heteroscedasticity-consistent (White 1980), for a score is steeper near the whole image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from visx.methods.contract import Attachment, Attribution, Request, method
from visx.params import Field, Params
from visx.seeds import generator

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from visx.images.geometry import Placement

POOR_FIT = 0.3
CHANCE = 3.0  # standard errors
ROUNDING = 1e-6  # scores that differ by less than this part of themselves are the same


class LimeParams(Params):
    segmenter: Literal["slic", "quickshift", "felzenszwalb"] = Field("slic", description="finds the superpixels")
    segments: int = Field(50, ge=2, le=4096, description="superpixels to aim at (slic)")
    compactness: float = Field(30.0, gt=0, description="square superpixels rather than true to colour (slic)")
    sigma: float | None = Field(
        None, ge=0, description="blur before segmenting; left out: slic 3, quickshift 0, felzenszwalb 0.8"
    )
    kernel_size: float = Field(4.0, gt=0, description="width of the density kernel (quickshift)")
    max_dist: float = Field(200.0, gt=0, description="farthest link, larger gives fewer superpixels (quickshift)")
    ratio: float = Field(0.2, ge=0, le=1, description="colour (1) against nearness (0) (quickshift)")
    scale: float = Field(100.0, gt=0, description="larger gives larger superpixels (felzenszwalb)")
    min_size: int = Field(50, ge=1, description="least pixels of a superpixel (felzenszwalb)")
    samples: int = Field(1000, ge=2, description="copies with superpixels hidden, the whole image among them")
    hide: Literal["mean", "grey", "random"] | Annotated[float, Field(ge=0, le=1)] = Field(
        "mean", description="what hides a superpixel: its mean colour, grey (0.5), random pixels, or a pixel value 0..1"
    )
    kernel_width: float = Field(0.25, gt=0, description="how fast samples far from the whole image lose weight")
    alpha: float = Field(1.0, ge=0, description="strength of the ridge penalty")
    features: int | None = Field(None, ge=1, description="fit this many superpixels alone; left out: all")
    significance: float = Field(
        8.0, ge=0, description="a weight within so many standard errors of zero shrinks towards it; 0: as fitted"
    )
    show: int = Field(5, ge=1, le=255, description="strongest positive superpixels in the superpixel picture")


@dataclass(frozen=True)
class Surrogate:
    """The linear model: `weights` (S,), one a superpixel, and their typical standard `error`, NaN where it cannot be told;
    `r2` weighted, None where the score never changes; `local` is its prediction for the whole image."""

    weights: np.ndarray
    error: float
    intercept: float
    local: float
    r2: float | None

    def told(self, significance: float) -> np.ndarray:
        """The weights (S,), shrunk where they lie within so many standard errors of zero."""
        import numpy as np

        size = np.abs(self.weights)
        doubt = np.nan_to_num(significance * self.error)
        return self.weights * (size / np.maximum(doubt, size + 1e-300)) ** 3

    def stand_out(self) -> int:
        """How many weights are more than the largest of some chance ones is likely to be."""
        import numpy as np

        return int((np.abs(self.weights) > CHANCE * np.nan_to_num(self.error)).sum())


@method(
    "lime",
    family="perturbation",
    title="LIME over superpixels",
    source="arXiv:1602.04938",
    score="prob",
    signed=True,
    passes="many",
    params=LimeParams,
)
def lime(req: Request, p: LimeParams) -> Attribution:
    import torch

    ids = req.score.resolve(req.x, req.targets)
    images = [_image(req, b, ids[b], p) for b in range(len(req.x))]
    return Attribution(
        torch.stack([maps for maps, _, _, _ in images]),
        extras=[extras for _, extras, _, _ in images],
        warnings=[warnings for _, _, warnings, _ in images],
        attachments=[attachments for _, _, _, attachments in images],
    )


def _image(
    req: Request, b: int, ids: Tensor, p: LimeParams
) -> tuple[Tensor, list[dict[str, Any]], list[list[str]], list[dict[str, Attachment]]]:
    """One image: maps (T, H, W), and an entry a target of figures, warnings and attachments."""
    import torch

    labels = superpixels(_pixels(req, b), p)
    count = int(labels.max()) + 1
    on = on_off(req.seeds[b], p.samples, count)
    scores = _scores(req, b, ids, torch.from_numpy(labels).to(req.x.device), on.to(req.x.device), p)
    maps, extras, warnings, attachments = [], [], [], []
    z, table = on.numpy(), scores.double().cpu().numpy()
    for y in table.T:
        found = fit(z, y, p)
        weights = found.told(p.significance)
        maps.append(torch.from_numpy(weights[labels]).to(req.x))
        figures = {"r2": found.r2, "superpixels": count, "significant": found.stand_out()}
        extras.append({**figures, "intercept": found.intercept, "local_prediction": found.local})
        warnings.append(_remarks(found, y))
        attachments.append({"superpixels.png": _picture(labels, weights, p.show)})
    return torch.stack(maps), extras, warnings, attachments


def superpixels(pixels: np.ndarray, p: LimeParams) -> np.ndarray:
    """(H, W, 3) RGB in 0..1 -> labels (H, W) int64, 0..S-1 without gaps."""
    import numpy as np
    from skimage import segmentation

    if p.segmenter == "slic":
        sigma = 3.0 if p.sigma is None else p.sigma
        found = segmentation.slic(pixels, n_segments=p.segments, compactness=p.compactness, sigma=sigma, start_label=0)
    elif p.segmenter == "quickshift":
        found = segmentation.quickshift(
            pixels, kernel_size=p.kernel_size, max_dist=p.max_dist, ratio=p.ratio, sigma=p.sigma or 0.0
        )
    else:
        sigma = 0.8 if p.sigma is None else p.sigma
        found = segmentation.felzenszwalb(pixels, scale=p.scale, sigma=sigma, min_size=p.min_size)
    return np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.int64)


def on_off(seed: int, samples: int, count: int) -> Tensor:
    """(samples, count) bool: which superpixels are seen. The first row is the whole image."""
    import torch

    on = torch.randint(0, 2, (samples, count), generator=generator(seed, "lime")).bool()
    on[0] = True
    return on


def fit(on: np.ndarray, scores: np.ndarray, p: LimeParams) -> Surrogate:
    """The weighted ridge regression of scores (N,) on on/off vectors (N, S). Weights are NaN where no score is finite."""
    import numpy as np
    from sklearn.linear_model import Ridge

    count = on.shape[1]
    usable = np.isfinite(scores)
    if not usable.any():
        return Surrogate(np.full(count, np.nan), np.nan, np.nan, np.nan, None)
    z, y = on[usable].astype(np.float64), scores[usable]
    weights = np.zeros(count)
    if np.ptp(y) <= ROUNDING * np.abs(y).max():
        return Surrogate(weights, 0.0, float(y[0]), float(y[0]), None)
    distance = 1 - np.sqrt(z.mean(1))  # cosine distance of a vector of zeros and ones to all ones
    weight = np.sqrt(np.exp(-((distance / p.kernel_width) ** 2)))
    kept, model = np.arange(count), Ridge(alpha=p.alpha).fit(z, y, sample_weight=weight)
    if p.features is not None and p.features < count:
        kept = np.argsort(-np.abs(model.coef_), kind="stable")[: p.features]
        model = Ridge(alpha=p.alpha).fit(z[:, kept], y, sample_weight=weight)
    z = z[:, kept]
    weights[kept] = model.coef_
    error = float(np.sqrt(np.square(standard_errors(z, y - model.predict(z), weight, p.alpha)).mean()))
    r2 = float(model.score(z, y, sample_weight=weight))
    return Surrogate(weights, error, float(model.intercept_), float(model.intercept_ + weights.sum()), r2)


def standard_errors(z: np.ndarray, residual: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    """Of a weighted ridge regression's coefficients, heteroscedasticity-consistent (HC1): (S,), for z (N, S), residuals
    and sample weights (N,). NaN where there are no more samples than coefficients."""
    import numpy as np

    samples, count = z.shape
    if samples <= count + 1:
        return np.full(count, np.nan)
    centred = z - weight @ z / weight.sum()
    bread = np.linalg.pinv((centred * weight[:, None]).T @ centred + alpha * np.eye(count), hermitian=True)
    influence = centred * (weight * residual)[:, None] @ bread
    return np.sqrt(np.square(influence).sum(0) * samples / (samples - count - 1))


def _scores(req: Request, b: int, ids: Tensor, labels: Tensor, on: Tensor, p: LimeParams) -> Tensor:
    """(N, T) scores of the image with the superpixels of each row of `on` (N, S) seen and the rest hidden."""
    import torch

    x, flat = req.x[b], labels.flatten()
    hidden, seen = _hidden(req, b, labels, on.shape[1], p), on.to(x.dtype)

    def copies(start: int, stop: int) -> Tensor:
        keep = seen[start:stop].index_select(1, flat).view(-1, 1, *labels.shape)
        return torch.lerp(hidden, x, keep)  # exact at 0 and 1, and far faster than where() with broadcasting

    return req.score.scores(len(on), copies, ids, req.kind)


def _hidden(req: Request, b: int, labels: Tensor, count: int, p: LimeParams) -> Tensor:
    """(C, H, W) or (C, 1, 1): what hidden superpixels are replaced with."""
    import torch

    x = req.x[b]
    if p.hide == "mean":
        flat = labels.flatten()
        sums = x.new_zeros(x.shape[0], count).index_add_(1, flat, x.flatten(1))
        means = sums / torch.bincount(flat, minlength=count).to(x)
        return means[:, labels]
    if p.hide == "random":
        return req.normalised(torch.rand(x.shape, generator=generator(req.seeds[b], "hide"), dtype=torch.float32).to(x))
    return req.normalised(0.5 if p.hide == "grey" else float(p.hide))


def _pixels(req: Request, b: int) -> np.ndarray:
    """The image as the network sees it: (H, W, 3) in 0..1; other than three channels become grey."""
    import numpy as np

    levels = np.rint(
        req.pixels()[b].permute(1, 2, 0).double().cpu().numpy() * 255
    )  # a device's rounding must not matter
    pixels = np.clip(np.nan_to_num(levels), 0, 255) / 255
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels.mean(2, keepdims=True), 3, axis=2)


def _remarks(found: Surrogate, scores: np.ndarray) -> list[str]:
    import numpy as np

    count = len(found.weights)
    lost = int((~np.isfinite(scores)).sum())
    if lost == len(scores):
        return ["the model's score is not finite (NaN or infinity) for any sample: try another -p hide"]
    remarks = []
    if lost:
        remarks.append(f"{lost} of {len(scores)} samples have no finite score and were left out: try another -p hide")
    if count == 1:
        remarks.append(
            "the image is a single superpixel, so the map is flat: try more -p segments or another segmenter"
        )
    if len(scores) - lost < count:
        remarks.append(f"{len(scores) - lost} samples for {count} superpixels: raise -p samples, or have fewer superpixels")  # fmt: skip
    if found.r2 is None:
        remarks.append("the score does not change when superpixels are hidden")
    elif not found.stand_out():
        remarks.append("no superpixel's weight stands out from chance: raise -p samples")
    elif found.r2 < POOR_FIT:
        remarks.append(f"the linear model explains little of the score (R² {found.r2:.2f}): do not rely on this map")
    return remarks


def _picture(labels: np.ndarray, weights: np.ndarray, show: int) -> Attachment:
    """The strongest positive superpixels with their boundaries, over the picture."""
    import numpy as np

    strongest = [i for i in np.argsort(-weights, kind="stable")[:show] if weights[i] > 0]
    numbers = np.zeros(len(weights), dtype=np.uint8)
    numbers[strongest] = np.arange(1, len(strongest) + 1)
    shown = numbers[labels]

    def draw(rgb: np.ndarray, place: Placement) -> bytes:
        from visx.draw.overlay import regions
        from visx.draw.png import encode_png

        return encode_png(regions(rgb, shown, place))

    return draw
