"""What a model's raw output means, and the scalars of it that are explained.

The meaning is found once, by running the model (visx/network/meaning.py). Everything that scores uses it:
`Outputs.columns` turns a raw output into one column a class, `Outputs.scores` turns columns into the explained scalars.
Both are differentiable and treat each row by itself.

| kind | column | logit | prob | logprob |
| --- | --- | --- | --- | --- |
| logits (B, K) | z_k | z_k | softmax | log softmax |
| probabilities (B, K) | p_k | log p_k | p_k | log p_k |
| sigmoid, logits | z_k | z_k | sigmoid z_k | log sigmoid z_k |
| sigmoid, probabilities | p_k | log p_k/(1 - p_k) | p_k | log p_k |
| sigmoid, one logit (B, 1) | (-z, z) | z_k | sigmoid z_k | log sigmoid z_k |
| sigmoid, one probability | (1 - p, p) | -/+ log p/(1 - p) | p_k | log p_k |
| regression (B, K) | the value | the value | the value | refused |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from visx.errors import unsupported
from visx.network.members import members, rows

ScoreKind = Literal["logit", "prob", "logprob"]
Kind = Literal["logits", "probabilities", "sigmoid", "regression", "features"]


@dataclass(frozen=True)
class Outputs:
    """What a raw output means.

    `member` is the path of the tensor inside a tuple, dict or dataclass, None where the output is one; `single` says that
    one logit (or probability) stands for two classes, `probable` that a sigmoid's values are probabilities already, and
    `classes` counts the columns (0: not checked). `seen` is the reason, in words.
    """

    kind: Kind = "logits"
    member: str | None = None
    single: bool = False
    probable: bool = False
    classes: int = 0
    seen: str = ""

    def values(self, raw: Any, batch: int) -> Tensor:
        """A raw output for `batch` images -> what objectives score (B, ...), one entry an image: the class columns (B, K)."""
        return self.columns(raw, batch)

    def columns(self, raw: Any, batch: int) -> Tensor:
        """A raw output for `batch` images -> class columns (B, K), in the output's own dtype. Raises `VisxError` (exit 4)
        where it is not what it was when the model was first run."""
        result = rows(self.tensor(raw), batch)
        if result is None or not result.is_floating_point():
            raise unsupported(f"the model returns {described(raw)} for {batch} images, not {self.expected}", WAY_ON)
        if self.single and self.probable:
            return torch.cat([1 - result, result], 1)
        if self.single:
            return result * result.new_tensor([-1.0, 1.0])
        if result.shape[1] < 2 and self.kind in ("logits", "probabilities"):
            raise unsupported("the model returns a single logit", "--means sigmoid or --means regression")
        return result

    def tensor(self, raw: Any) -> Any:
        """The tensor inside a raw output that is explained, as the model made it."""
        return raw if self.member is None else members(raw).get(self.member)

    def scores(self, columns: Tensor, ids: Tensor, kind: ScoreKind) -> Tensor:
        """Class columns (B, K), indices (B, T) -> the explained scalars (B, T), in float32 or better."""
        return self.table(columns, kind).gather(1, ids)

    def table(self, columns: Tensor, kind: ScoreKind) -> Tensor:
        """Class columns (B, K) -> every class's scalar (B, K), in float32 or better; finite where the columns are."""
        values = in_full(columns)
        if self.kind == "probabilities":
            return values if kind == "prob" else _log(values)
        if self.kind == "sigmoid":
            return self._independent(values, kind)
        if self.kind == "logits" and kind == "prob":
            return values.softmax(1)
        if self.kind == "logits" and kind == "logprob":
            return values.log_softmax(1)
        if kind == "logprob":
            raise unsupported(f"logprob: {self} have no probability", "--score logit explains the value itself")
        return values

    def _independent(self, values: Tensor, kind: ScoreKind) -> Tensor:
        if not self.probable:
            return values if kind == "logit" else values.sigmoid() if kind == "prob" else F.logsigmoid(values)
        if kind == "prob":
            return values
        if kind == "logprob":
            return _log(values)
        if self.single:  # of p alone: 1 - (1 - p) would lose a small p's digits
            odds = _log_odds(values[:, 1:])
            return torch.cat([-odds, odds], 1)
        return _log_odds(values)

    @property
    def has_probabilities(self) -> bool:
        """Whether `prob` is a probability."""
        return self.kind != "regression"

    @property
    def of_classes(self) -> bool:
        """Whether a column is a class."""
        return self.kind in ("logits", "probabilities", "sigmoid")

    @property
    def expected(self) -> str:
        """The form that every pass must return, in words."""
        where = "" if self.member is None else f"{self.member}: "
        width = "1" if self.single else "classes >= 2" if self.kind == "logits" else "K"
        return f"{where}{self.kind} of shape (N, {width})"

    @property
    def identity(self) -> dict[str, Any]:
        """As the manifest and the recipe have it: `kind`, for a sigmoid its `values`, and `head` where it is a member."""
        values = {"values": "probabilities" if self.probable else "logits"} if self.kind == "sigmoid" else {}
        return {"kind": self.kind, **values, **({} if self.member is None else {"head": self.member})}

    @property
    def plain(self) -> bool:
        """Whether it is a tensor of logits, which need not be said."""
        return self.kind == "logits" and self.member is None

    def remark(self, kind: ScoreKind) -> str:
        """What must be said of a score that is not the one its name suggests; empty where there is nothing."""
        if self.kind == "probabilities" and kind == "logit":
            return "the model gives probabilities, not logits: log p is explained as the logit"
        if self.kind == "sigmoid" and self.probable and kind == "logit":
            return "the model gives probabilities, not logits: log p/(1 - p) is explained as the logit"
        if self.kind == "regression" and kind == "prob":
            return "a regression has no probability: the value itself is explained"
        return ""

    def cut_off(self, column: float, kind: ScoreKind, dtype: torch.dtype = torch.float32) -> str:
        """A warning where a score of this column would be infinite and is cut off; empty elsewhere."""
        if not (self.kind == "probabilities" or self.probable) or kind == "prob":
            return ""
        both_ends = self.kind == "sigmoid" and kind == "logit"
        if column >= torch.finfo(dtype).tiny and not (both_ends and column > 1 - torch.finfo(dtype).eps / 2):
            return ""
        return (
            f"the probability is {column:g} to the model's precision: its {kind} is cut off where it would be infinite"
        )

    def __str__(self) -> str:
        names = {
            "logits": "logits, one a class",
            "probabilities": "probabilities that sum to one",
            "sigmoid": f"independent labels ({'probabilities' if self.probable else 'logits'})",
            "regression": f"value{'s' * (self.classes != 1)} of a regression",
            "features": "features, without a classifier",
        }
        text = f"{self.classes} {names[self.kind]}" if self.classes else names[self.kind]
        if self.single:
            text = f"one {'probability' if self.probable else 'logit'}, that of class 1 (class 0 is its opposite)"
        return text + ("" if self.member is None else f" (--head {self.member})")


LOGITS = Outputs()
WAY_ON = "wrap the model so that forward returns one tensor (N, classes)"


def described(raw: Any) -> str:
    """What a model returned, in words."""
    if isinstance(raw, Tensor):
        return f"{str(raw.dtype).removeprefix('torch.')} of shape {tuple(raw.shape)}"
    parts = members(raw)
    keys = ", ".join(f"{path} {tuple(part.shape)}" for path, part in parts.items())
    return f"a {type(raw).__name__}" + (f" of {keys[:200]}" if keys else "")


def _log(p: Tensor) -> Tensor:
    """log p, cut off at the smallest normal number."""
    return p.clamp_min(torch.finfo(p.dtype).tiny).log()


def _log_odds(p: Tensor) -> Tensor:
    """log p/(1 - p), each logarithm cut off where its argument is 0 in this precision."""
    return _log(p) - (1 - p).clamp_min(torch.finfo(p.dtype).eps / 2).log()


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
