"""What a module gave: logits, feature maps and graphs, checked, and the scores that are explained."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from visx.errors import unsupported

ScoreKind = Literal["logit", "prob", "logprob"]


def explained(logits: Tensor, ids: Tensor, kind: ScoreKind) -> Tensor:
    """Logits (N, K), class indices (N, T) -> the explained scalars (N, T), in float32 or better."""
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if kind == "prob":
        logits = logits.softmax(1)
    elif kind == "logprob":
        logits = logits.log_softmax(1)
    return logits.gather(1, ids)


def check_logits(output: Any, batch: int) -> Tensor:
    """A module's output, if it is logits (B, K >= 2); else an error (exit 4) that says how to wrap the model."""
    way_on = "wrap the model so that forward returns logits of shape (N, classes), classes >= 2"
    if not isinstance(output, Tensor):
        keys = f" with keys {', '.join(map(str, output))[:80]}" if isinstance(output, dict) else ""
        raise unsupported(f"the model returns a {type(output).__name__}{keys}, not a tensor of logits", way_on)
    if output.dim() != 2 or output.shape[0] != batch or not output.is_floating_point():
        raise unsupported(
            f"the model returns {output.dtype} of shape {tuple(output.shape)} for {batch} images, not logits", way_on
        )
    if output.shape[1] < 2:
        raise unsupported(
            "the model returns a single logit, so no class can be told from another",
            "return two: torch.cat([torch.zeros_like(z), z], 1)",
        )
    return output


def in_full(tensor: Tensor) -> Tensor:
    """Half precision as float32; others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def require_graph(tensor: Tensor, what: str = "the input") -> None:
    """An error (exit 4) where no gradient can flow from an output back to `what`."""
    if not tensor.requires_grad:
        raise unsupported(
            f"the model's output does not depend on {what} in a way that can be differentiated",
            "does its forward use no_grad or detach?",
        )


def spatial(output: Any, name: str) -> Tensor:
    """A layer's output, if it is a feature map (N, channels, height, width); else an error (exit 4)."""
    if not isinstance(output, Tensor) or output.dim() != 4 or not output.is_floating_point():
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise unsupported(
            f"layer {name} gives {shape}, not a feature map (N, channels, height, width)",
            "`visx layers MODEL` shows the layers that do",
        )
    return output
