"""LIME: a linear model of the score, fitted to copies with random superpixels hidden; the map is the model's weights.

In each of N copies of the image every superpixel is hidden with probability 1/2; z (N, S) says which are visible. The first
copy shows all of them. The model g(z) = b + w.z is a ridge regression of the scores. Each copy is weighted by
sqrt(exp(-D(z, 1)^2 / kernel_width^2)), D the cosine distance to the whole image (Ribeiro et al. 2016, arXiv:1602.04938,
sections 3.3 and 3.4; the square root is that of the authors' package `lime`). The map has w_s at every pixel of superpixel s.
R^2 (weighted) is the part of the score's variance that the linear model explains.

Deviations from the package:
- The default segmenter is SLIC, as in SAM (arXiv:2003.08754); the package takes quickshift. Superpixels are computed on the
  pixels that the network sees. The seed changes the copies, never the superpixels.
- `features` keeps the largest weights of the fit with the same `alpha`, and fits again. The package chooses with
  alpha = 0.01, or step by step for six features and fewer.
- Copies whose score is not finite are left out, with a warning.
- Small weights shrink. A weight w of less than `significance` standard errors e becomes w (|w| / (significance e))^3. Most
  superpixels' weights are chance, and their sum would outweigh the few that are not. Of 50 weights that are all chance the
  largest is about 3 standard errors and shrinks to a twentieth. `significance=0` keeps every weight as fitted, like the paper
  and the package. The default was chosen by measurement (benchmarks/localisation.py).
- One standard error e, the root mean square of those of all weights, holds for every weight (they differ by some
  hundredths). So shrinking never changes the order of the weights. Standard errors are heteroscedasticity-consistent (White
  1980), because the score changes faster near the whole image.
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

POOR_FIT = 0.3  # a fit with a smaller R^2 is warned about
CHANCE = 3.0  # standard errors; the largest of 50 weights that are all chance is about that large
ROUNDING = 1e-6  # scores that differ relatively by less are equal


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
    """The fitted linear model of S superpixels.

    `weights` (S,) float64: NaN where no score is finite. `error`: the root mean square of the weights' standard errors, NaN
    where there are too few copies to estimate it. `local`: the model's prediction for the whole image. `r2`: the weighted
    R^2, None where the score never changes.
    """

    weights: np.ndarray
    error: float
    intercept: float
    local: float
    r2: float | None

    def shrunk(self, significance: float) -> np.ndarray:
        """(S,): the weights, made smaller where they are less than `significance` standard errors (see the module)."""
        import numpy as np

        size = np.abs(self.weights)
        limit = np.nan_to_num(significance * self.error)
        return self.weights * (size / np.maximum(limit, size + 1e-300)) ** 3

    def significant(self) -> int:
        """The number of weights that are larger than `CHANCE` standard errors."""
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

    images = [_image(req, b, p) for b in range(len(req.x))]
    return Attribution(
        torch.stack([maps for maps, _, _, _ in images]),
        extras=[extras for _, extras, _, _ in images],
        warnings=[warnings for _, _, warnings, _ in images],
        attachments=[attachments for _, _, _, attachments in images],
    )


def _image(
    req: Request, b: int, p: LimeParams
) -> tuple[Tensor, list[dict[str, Any]], list[list[str]], list[dict[str, Attachment]]]:
    """The maps (T, H, W) of image `b`; for each target its figures, warnings and attachments."""
    import torch

    labels = superpixels(_pixels(req, b), p)
    count = int(labels.max()) + 1
    visible = random_visibility(req.seeds[b], p.samples, count)
    scores = _scores(req, b, torch.from_numpy(labels).to(req.x.device), visible.to(req.x.device), p)
    maps, extras, warnings, attachments = [], [], [], []
    z, table = visible.numpy(), scores.double().cpu().numpy()
    for y in table.T:
        surrogate = fit(z, y, p)
        weights = surrogate.shrunk(p.significance)
        maps.append(torch.from_numpy(weights[labels]).to(req.x))
        figures = {"r2": surrogate.r2, "superpixels": count, "significant": surrogate.significant()}
        extras.append({**figures, "intercept": surrogate.intercept, "local_prediction": surrogate.local})
        warnings.append(_warnings(surrogate, y))
        attachments.append({"superpixels.png": _picture(labels, weights, p.show)})
    return torch.stack(maps), extras, warnings, attachments


def superpixels(pixels: np.ndarray, p: LimeParams) -> np.ndarray:
    """(H, W, 3) RGB in 0..1 -> (H, W) int64: the number of each pixel's superpixel, 0 to S-1 without gaps."""
    import numpy as np
    from skimage import segmentation

    if p.segmenter == "slic":
        sigma = 3.0 if p.sigma is None else p.sigma
        labels = segmentation.slic(pixels, n_segments=p.segments, compactness=p.compactness, sigma=sigma, start_label=0)
    elif p.segmenter == "quickshift":
        labels = segmentation.quickshift(
            pixels, kernel_size=p.kernel_size, max_dist=p.max_dist, ratio=p.ratio, sigma=p.sigma or 0.0
        )
    else:
        sigma = 0.8 if p.sigma is None else p.sigma
        labels = segmentation.felzenszwalb(pixels, scale=p.scale, sigma=sigma, min_size=p.min_size)
    return np.unique(labels, return_inverse=True)[1].reshape(labels.shape).astype(np.int64)


def random_visibility(seed: int, samples: int, count: int) -> Tensor:
    """(samples, count) bool on the CPU: which superpixels each copy shows. The first copy shows all of them."""
    import torch

    visible = torch.randint(0, 2, (samples, count), generator=generator(seed, "lime")).bool()
    visible[0] = True
    return visible


def fit(visible: np.ndarray, scores: np.ndarray, p: LimeParams) -> Surrogate:
    """The weighted ridge regression of scores (N,) on `visible` (N, S) bool. Weights are NaN where no score is finite."""
    import numpy as np
    from sklearn.linear_model import Ridge

    count = visible.shape[1]
    usable = np.isfinite(scores)
    if not usable.any():
        return Surrogate(np.full(count, np.nan), np.nan, np.nan, np.nan, None)
    z, y = visible[usable].astype(np.float64), scores[usable]
    weights = np.zeros(count)
    if np.ptp(y) <= ROUNDING * np.abs(y).max():
        return Surrogate(weights, 0.0, float(y[0]), float(y[0]), None)
    distance = 1 - np.sqrt(z.mean(1))  # cosine distance between a row of zeros and ones and a row of ones
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
    """(S,): the standard errors of a weighted ridge regression's coefficients, heteroscedasticity-consistent (HC1).

    `z` is (N, S), `residual` and `weight` are (N,). NaN where N <= S + 1, too few samples for an estimate.
    """
    import numpy as np

    samples, count = z.shape
    if samples <= count + 1:
        return np.full(count, np.nan)
    centred = z - weight @ z / weight.sum()
    bread = np.linalg.pinv((centred * weight[:, None]).T @ centred + alpha * np.eye(count), hermitian=True)
    influence = centred * (weight * residual)[:, None] @ bread
    return np.sqrt(np.square(influence).sum(0) * samples / (samples - count - 1))


def _scores(req: Request, b: int, labels: Tensor, visible: Tensor, p: LimeParams) -> Tensor:
    """(N, T): the scores of N copies of image `b`; copy n shows the superpixels that are true in `visible[n]` (N, S)."""
    import torch

    x, flat = req.x[b], labels.flatten()
    hidden, shown = _hidden(req, b, labels, visible.shape[1], p), visible.to(x.dtype)

    def copies(start: int, stop: int) -> Tensor:
        keep = shown[start:stop].index_select(1, flat).view(-1, 1, *labels.shape)
        return torch.lerp(hidden, x, keep)  # exact at 0 and 1, and much faster than a broadcast where()

    return req.score.scores(len(visible), copies, req.scalars_of(b))


def _hidden(req: Request, b: int, labels: Tensor, count: int, p: LimeParams) -> Tensor:
    """(C, H, W) or (C, 1, 1), normalised: the pixels that replace hidden superpixels."""
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
    """(H, W, 3) float64 in 0..1: image `b` as the network sees it. The mean of the channels where there are not three."""
    import numpy as np

    values = req.pixels()[b].permute(1, 2, 0).double().cpu().numpy()
    levels = np.rint(values * 255)  # 8-bit levels are the same on every device, whatever its rounding
    pixels = np.clip(np.nan_to_num(levels), 0, 255) / 255
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels.mean(2, keepdims=True), 3, axis=2)


def _warnings(surrogate: Surrogate, scores: np.ndarray) -> list[str]:
    """What is wrong with the copies, the superpixels or the fit, one sentence each."""
    import numpy as np

    count = len(surrogate.weights)
    lost = int((~np.isfinite(scores)).sum())
    if lost == len(scores):
        return ["the model's score is not finite (NaN or infinity) for any sample: try another -p hide"]
    warnings = []
    if lost:
        warnings.append(f"{lost} of {len(scores)} samples have no finite score and were left out: try another -p hide")
    if count == 1:
        warnings.append(
            "the image is a single superpixel, so the map is flat: try more -p segments or another segmenter"
        )
    if len(scores) - lost < count:
        warnings.append(f"{len(scores) - lost} samples for {count} superpixels: raise -p samples, or have fewer superpixels")  # fmt: skip
    if surrogate.r2 is None:
        warnings.append("the score does not change when superpixels are hidden")
    elif not surrogate.significant():
        warnings.append("no superpixel's weight stands out from chance: raise -p samples")
    elif surrogate.r2 < POOR_FIT:
        warnings.append(
            f"the linear model explains little of the score (R² {surrogate.r2:.2f}): do not rely on this map"
        )
    return warnings


def _picture(labels: np.ndarray, weights: np.ndarray, show: int) -> Attachment:
    """A further file: the picture with the `show` strongest positive superpixels outlined and the rest dimmed (PNG)."""
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
