"""The reference for tokens that are left out: every attention with the hidden tokens' keys at minus infinity."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SOFTMAXES = (torch.softmax, F.softmax, Tensor.softmax)


class Masked(TorchFunctionMode):
    """Inside, no query sees a hidden token, and means over the patches are over those that stay.

    `visible` (rows, patches) bool; `before` and `behind` are the numbers of other tokens around the patches.
    """

    def __init__(self, visible: Tensor, before: int, behind: int = 0) -> None:
        super().__init__()
        rows = len(visible)
        ends = [torch.ones(rows, n, dtype=torch.bool) for n in (before, behind)]
        self.patches, self.keys = visible, torch.cat([ends[0], visible, ends[1]], 1)
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        rows, count = self.keys.shape
        if func is F.scaled_dot_product_attention:
            self.seen += 1
            extra = args[1].shape[-2] - count  # class tokens that join in later
            assert kwargs.get("attn_mask") is None and extra in (0, 1)
            kwargs["attn_mask"] = F.pad(self.keys, (extra, 0), value=True)[:, None, None]
        elif func is F.multi_head_attention_forward:
            self.seen += 1
            assert args[1].shape[:2] == (count, rows) and kwargs.get("key_padding_mask") is None
            kwargs["key_padding_mask"] = ~self.keys
        elif func in _SOFTMAXES and args[0].shape[-1] == count and args[0].dim() == 4:
            self.seen += 1
            args = (args[0].masked_fill(~self.keys[:, None, None], -torch.inf), *args[1:])
        elif func in (torch.mean, Tensor.mean) and args[0].dim() == 3 and args[0].shape[1] == self.patches.shape[1]:
            weights = self.patches.to(args[0].dtype)[:, :, None]
            return (args[0] * weights).sum(1) / weights.sum(1)
        return func(*args, **kwargs)


@torch.no_grad()
def masked(net: nn.Module, image: Tensor, visible: Tensor, before: int, behind: int = 0) -> Tensor:
    """The output (rows, K) of a network for copies of an image (C, H, W) whose hidden patches no attention sees."""
    with Masked(visible, before, behind) as mode:
        result = net(image.expand(len(visible), *image.shape))
    assert mode.seen > 0, "no attention was met"
    return result
