"""What a model's raw output means, found from one pass over one picture: by its values, and by its autograd graph; of a
black box by values alone, or by what its file names as its last operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from visx.errors import unknown, unsupported, usage
from visx.network.heads import Ending, Squash, ending
from visx.network.members import members, nearest, rows
from visx.network.outputs import LOGITS, WAY_ON, Outputs, described

MEANS = ("logits", "probabilities", "sigmoid", "regression")  # what --means takes
LATER = ("embedding", "boxes", "masks")
SUMS_TO_ONE, HALF_SUMS_TO_ONE = 1e-4, 2e-2  # rounding of a row of probabilities, in half precision


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
        raise unsupported(f"the model returns {described(raw)} for one image, not {LOGITS.expected}", WAY_ON)
    end = ending(values)
    result = replace(_meant(values, end, means) if means else _by_graph_and_values(values, end), member=member)
    named = labels > 0 and labels in (result.classes, int(result.single))
    if not means and not named and (headless or not end.classifier):
        why = "the model says num_classes=0" if headless else "no layer makes classes of them"
        return Outputs("features", member, classes=values.shape[1], seen=why)
    return result


def recognise_alone(
    raw: Any,
    more: Callable[[], Iterable[Any]],
    *,
    means: str | None = None,
    head: str | int | None = None,
    squash: Callable[[str | None], Squash] = lambda member: "",
) -> Outputs:
    """What the raw output of a black box for one picture means, by its values and those for `more` pictures, which are asked
    for where they all lie within 0..1. `squash` is the activation that a file names as the last before a member ("": none,
    or not known).
    `means`, `head` and errors as in `recognise`."""
    means = check_means(means)
    member, values = _pick(raw, head)
    if not values.is_floating_point() or values.numel() == 0:
        raise unsupported(f"the model returns {described(raw)} for one image, not {LOGITS.expected}", WAY_ON)
    if _within(values):
        values = torch.cat([values, *(_pick(other, head)[1] for other in more())])
    last = squash(member)
    end = Ending(bool(last), last)
    result = _meant(values, end, means) if means else _by_graph_and_values(values, end)
    if not means and not last and result.single and _within(values):
        result = replace(result, probable=True, seen="it lies within 0..1")
    return replace(result, member=member)


def _by_graph_and_values(values: Tensor, end: Ending) -> Outputs:
    """The meaning of rows (N, K), by the graph and the values."""
    count, inside = values.shape[1], _within(values)
    totals = values.detach().double().sum(1)
    sums = count > 1 and inside and bool(((totals - 1).abs() < _rounding(values)).all())
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
    probable = inside and (
        bool(end.squash) or not end.known or _by_graph_and_values(values, end).kind == "probabilities"
    )
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
        result = rows(raw, 1)
        if result is None:
            raise unsupported(f"the model returns {described(raw)} for one image, not {LOGITS.expected}", WAY_ON)
        return None, result
    parts = members(raw)
    if head is not None:
        path = nearest(parts, str(head))
        if path is None:
            raise unknown("head", str(head), list(parts), f"it returns {described(raw)}")
        result = rows(parts[path], 1)
        if result is None:
            raise unsupported(f"--head {path}: it is {described(parts[path])}, not {LOGITS.expected}", _choose(parts))
        return path, result
    fitting = {path: result for path, part in parts.items() if (result := _fits(part)) is not None}
    graphs = {path: result for path, result in fitting.items() if result.requires_grad} or fitting
    heads = {path: result for path, result in graphs.items() if ending(result).classifier} or graphs
    if len(heads) != 1:
        if not heads:
            raise unsupported(f"the model returns {described(raw)}, and nothing in it is {LOGITS.expected}", WAY_ON)
        shown = ", ".join(f"{path} (N, {result.shape[1]})" for path, result in heads.items())
        raise unsupported(
            f"the model returns {described(raw)}: {len(heads)} of its members could be the scores: {shown}",
            f"choose one, for instance --head {next(iter(heads))}",
        )
    return next(iter(heads.items()))


def _fits(part: Tensor) -> Tensor | None:
    """A member's rows (1, K), if it has the form of scores: scalars (losses) and integers have not."""
    return rows(part, 1) if part.dim() > 1 and part.is_floating_point() and part.numel() else None


def _choose(parts: dict[str, Tensor]) -> str:
    return "members: " + ", ".join(f"{path} {tuple(part.shape)}" for path, part in parts.items())[:300]
