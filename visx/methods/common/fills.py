"""Fills: the pixels that perturbation methods put in the place of those they hide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator

if TYPE_CHECKING:
    from torch import Tensor

    from visx.methods.contract import Request

BLUR_SIGMA = 10.0  # pixels; leaves colours and brightness, no texture and no edge
FILL_HELP = (
    "what hides: zero (normalised 0, the training set's mean colour), mean (the image's own colour), grey (pixel 0.5), "
    "black, blur (the image blurred), or a grey between 0 and 1"
)


def _grey(value: Any) -> Any:
    if isinstance(value, float) and not 0 <= value <= 1:
        raise ValueError("a grey lies between 0 (black) and 1 (white)")
    return value


Fill = Annotated[Literal["zero", "mean", "grey", "black", "blur"] | float, AfterValidator(_grey)]


def fill_image(req: Request, b: int, fill: str | float) -> Tensor:
    """(C, H, W): the fill of image `b`, normalised, in the image's dtype and on its device."""
    import torch

    x = req.x[b]
    if fill == "zero":
        return torch.zeros_like(x)
    if fill == "mean":
        return x.mean((1, 2), keepdim=True).expand_as(x)
    if fill == "blur":
        from visx.ops.blur import gaussian_blur

        return gaussian_blur(x[None], BLUR_SIGMA)[0]
    pixel = {"grey": 0.5, "black": 0.0}[fill] if isinstance(fill, str) else fill
    return req.normalised(pixel).expand_as(x)
