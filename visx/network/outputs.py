"""What a model's raw output means, and the scalars of it that are explained.

A model's meaning is found once, by running it (`recognise`), and everything that scores uses it: `Outputs.columns` makes
of a raw output one column a class, `Outputs.scores` of columns the explained scalars. Both are differentiable and treat
each row by itself.

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

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from visx.errors import unknown, unsupported, usage
from visx.network.heads import Ending, ending
from visx.network.members import members, nearest, rows

ScoreKind = Literal["logit", "prob", "logprob"]
Kind = Literal["logits", "probabilities", "sigmoid", "regression", "features"]
MEANS = ("logits", "probabilities", "sigmoid", "regression")  # what --means takes
LATER = ("embedding", "boxes", "masks")
SUMS_TO_ONE, HALF_SUMS_TO_ONE = 1e-4, 2e-2  # rounding of a row of probabilities, in half precision


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

    def columns(self, raw: Any, batch: int) -> Tensor:
        """A raw output for `batch` images -> class columns (B, K), in the output's own dtype. Raises `VisxError` (exit 4)
        where it is not what it was when the model was first run."""
        found = rows(self.tensor(raw), batch)
        if found is None or not found.is_floating_point():
            raise unsupported(f"the model returns {_described(raw)} for {batch} images, not {self.expected}", WAY_ON)
        if self.single and self.probable:
            return torch.cat([1 - found, found], 1)
        if self.single:
            return found * found.new_tensor([-1.0, 1.0])
        if found.shape[1] < 2 and self.kind in ("logits", "probabilities"):
            raise unsupported("the model returns a single logit", "--means sigmoid or --means regression")
        return found

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


def check_means(means: str | None) -> str | None:
    """`--means` as it is taken: a usage error (exit 2) for what is no kind, exit 4 for kinds that are not supported yet."""
    if means in LATER:
        raise unsupported(f"--means {means} is not supported yet", f"these are: {', '.join(MEANS)}")
    if means is not None and means not in MEANS:
        raise unknown("meaning", str(means), MEANS)
    return means


def recognise(
    raw: Any, *, means: str | None = None, head: str | int | None = None, headless: bool = False, labels: int = 0
) -> Outputs:
    """What the raw output of a pass over one picture means; with its autograd graph where there is one.

    `means` and `head` overrule what is found; `headless` says that the model itself knows of no classifier; `labels` is
    the number of class names (0: none), which only a classifier has. Raises `VisxError`: exit 2 for a `head` or `means`
    that does not fit, exit 4 for an output that is nothing of the kind, or has several members that could be it.
    """
    means = check_means(means)
    member, values = _pick(raw, head)
    if not values.is_floating_point() or values.numel() == 0:
        raise unsupported(f"the model returns {_described(raw)} for one image, not {LOGITS.expected}", WAY_ON)
    end = ending(values)
    found = replace(_meant(values, end, means) if means else _found(values, end), member=member)
    named = labels > 0 and labels in (found.classes, int(found.single))
    if not means and not named and (headless or not end.classifier):
        why = "the model says num_classes=0" if headless else "no layer makes classes of them"
        return Outputs("features", member, classes=values.shape[1], seen=why)
    return found


def _found(values: Tensor, end: Ending) -> Outputs:
    """The meaning of rows (1, K), by the graph and the values."""
    count, inside = values.shape[1], _within(values)
    total = float(values.detach().double().sum())
    sums = count > 1 and inside and abs(total - 1) < _rounding(values)
    if sums or (end.squash == "softmax" and not end.mixed and count > 1):
        why = "a softmax is inside" if end.squash == "softmax" else "they are not negative and sum to one"
        return Outputs("probabilities", classes=count, seen=why)
    probable = inside and (end.squash == "sigmoid" or (end.squash == "softmax" and not end.mixed))
    if count == 1:
        why = f"a {end.squash} is inside" if probable else ""
        return Outputs("sigmoid", single=True, probable=probable, classes=2, seen=why)
    if probable:
        return Outputs("sigmoid", probable=True, classes=count, seen="a sigmoid is inside")
    return Outputs("logits", classes=count)


def _meant(values: Tensor, end: Ending, means: str) -> Outputs:
    """The meaning that the user states, checked against the values."""
    count, inside = values.shape[1], _within(values)
    probable = inside and (bool(end.squash) or not end.known or _found(values, end).kind == "probabilities")
    if means == "regression":
        return Outputs("regression", classes=count, seen="as --means says")
    if means == "logits" and count < 2:
        raise usage("--means logits: the model returns one value", "--means sigmoid, or --means regression")
    if means == "probabilities" and not inside:
        low, high = float(values.detach().min()), float(values.detach().max())
        raise usage(f"--means probabilities: the model returns values from {low:.4g} to {high:.4g}", "0 to 1")
    if means == "probabilities" and count > 1:
        return Outputs("probabilities", classes=count, seen="as --means says")
    if means == "logits":
        return Outputs("logits", classes=count, seen="as --means says")
    probable = probable or means == "probabilities"
    return Outputs("sigmoid", single=count == 1, probable=probable, classes=max(count, 2), seen="as --means says")


def _within(values: Tensor) -> bool:
    """Whether no value is outside of what probabilities are, rounding apart."""
    return not bool(((values < -_rounding(values)) | (values > 1 + _rounding(values))).any())


def _rounding(values: Tensor) -> float:
    """How far a row of probabilities may be off one."""
    return SUMS_TO_ONE if torch.finfo(values.dtype).eps < SUMS_TO_ONE else HALF_SUMS_TO_ONE


def _pick(raw: Any, head: str | int | None) -> tuple[str | None, Tensor]:
    """The member of a raw output that is explained, and its rows (1, K)."""
    if isinstance(raw, Tensor):
        if head is not None:
            raise usage(f"--head {head}: the model returns one tensor", "leave out --head")
        found = rows(raw, 1)
        if found is None:
            raise unsupported(f"the model returns {_described(raw)} for one image, not {LOGITS.expected}", WAY_ON)
        return None, found
    parts = members(raw)
    if head is not None:
        path = nearest(parts, str(head))
        if path is None:
            raise unknown("head", str(head), list(parts), f"it returns {_described(raw)}")
        found = rows(parts[path], 1)
        if found is None:
            raise unsupported(f"--head {path}: it is {_described(parts[path])}, not {LOGITS.expected}", _choose(parts))
        return path, found
    fitting = {path: found for path, part in parts.items() if (found := _fits(part)) is not None}
    graphs = {path: found for path, found in fitting.items() if found.requires_grad} or fitting
    heads = {path: found for path, found in graphs.items() if ending(found).classifier} or graphs
    if len(heads) != 1:
        if not heads:
            raise unsupported(f"the model returns {_described(raw)}, and nothing in it is {LOGITS.expected}", WAY_ON)
        shown = ", ".join(f"{path} (N, {found.shape[1]})" for path, found in heads.items())
        raise unsupported(
            f"the model returns {_described(raw)}: {len(heads)} of its members could be the scores: {shown}",
            f"choose one, for instance --head {next(iter(heads))}",
        )
    return next(iter(heads.items()))


def _fits(part: Tensor) -> Tensor | None:
    """A member's rows (1, K), if it has the form of scores: scalars (losses) and integers have not."""
    return rows(part, 1) if part.dim() > 1 and part.is_floating_point() and part.numel() else None


def _choose(parts: dict[str, Tensor]) -> str:
    return "members: " + ", ".join(f"{path} {tuple(part.shape)}" for path, part in parts.items())[:300]


def _described(raw: Any) -> str:
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
