"""The target contract: an `Objective` is one thing to explain of one image.

It is a differentiable scalar of the model's values for the image, and an identity: the kind, a slug for file names, a
label, JSON. A kind of target is one file in `visx/targets/`. It reads what `--target` says and, on the clean pass over
an image, answers with the image's objectives. It is handed the values, what they mean, and labels; it knows no model.

Values are (B, ...), one entry an image, as `Outputs.values` returns them: class columns (B, K), maps (B, K, h, w).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from visx.errors import VisxError

if TYPE_CHECKING:
    from torch import Tensor

    from visx.network.outputs import Outputs, ScoreKind


@dataclass(frozen=True)
class Identity:
    """What tells one explained thing from another: its `kind` ("class", "out", "unit"), the `slug` that file names have,
    and a `label` for people. `index` is the number of a class, of a value or of a unit's channel, None where there is none;
    `details` is further JSON."""

    kind: str
    slug: str
    label: str
    index: int | None = None
    details: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def json(self) -> dict[str, Any]:
        """As the manifest has it: the kind, the index where there is one, and the details."""
        return {"kind": self.kind, **({} if self.index is None else {"index": self.index}), **self.details}


def reference_of(identity: Mapping[str, Any]) -> int | str:
    """How tables refer to what `Identity.json` names: by the number of a class or of a value, else by all that it says."""
    index = identity.get("index")
    if identity.get("kind") in ("class", "out") and isinstance(index, int):
        return index
    values = [part for value in identity.values() for part in (value if isinstance(value, list) else [value])]
    return "-".join(str(value) for value in values if value is not None)


class Objective(ABC):
    """One thing to explain of one image. `column` is the class column whose score it is, None where it is no class
    column: so the objectives of a whole batch are scored by one gather of columns."""

    identity: Identity
    column: int | None

    @abstractmethod
    def score(self, values: Tensor, outputs: Outputs, kind: ScoreKind) -> Tensor:
        """The explained scalar (N,) of the values (N, ...) of N copies of the image, differentiable, in float32 or better.
        Raises `VisxError` (exit 4) for a kind of score that the objective has not."""


class Target(ABC):
    """What is to be explained of an image, `text` as `--target` has it.

    `top` is K of `topK`, the K strongest of their kind; 0 for any other target. `index` is the number of the class (or
    value) where that is known before the image is seen, else None.
    """

    text: str
    top: int = 0
    index: int | None = None

    @abstractmethod
    def objectives(self, values: Tensor, outputs: Outputs, labels: Sequence[str] | None) -> list[Objective]:
        """The objectives of an image, given its values (...) from a clean pass, on the CPU. Raises `VisxError` where the
        image has none."""

    @property
    def each(self) -> tuple[Target, ...]:
        """The targets that it is made of: itself, where `--target` was given once."""
        return (self,)

    @property
    def key(self) -> Hashable:
        """Targets of an image with equal keys are the same."""
        return self.text

    @property
    def count(self) -> int:
        """How many objectives an image is likely to have. Images of equal counts are batched together."""
        return self.top or 1

    def for_image(self, path: str, labels: Sequence[str] | None, classes: int) -> Target:
        """This target for the image at a path as it was listed. Raises `VisxError` where it names none for it."""
        return self


class Several(Target):
    """Targets of an image, one after the other."""

    def __init__(self, *targets: Target) -> None:
        self._targets, self.text = targets, ", ".join(target.text for target in targets)

    @property
    def each(self) -> tuple[Target, ...]:
        """These targets."""
        return self._targets

    @property
    def count(self) -> int:
        """The sum of their counts."""
        return sum(target.count for target in self._targets)

    def for_image(self, path: str, labels: Sequence[str] | None, classes: int) -> Target:
        """Each of them for the image, those that are now the same once."""
        return together([target.for_image(path, labels, classes) for target in self._targets])

    def objectives(self, values: Tensor, outputs: Outputs, labels: Sequence[str] | None) -> list[Objective]:
        """The objectives of each of them, in their order."""
        return [objective for target in self._targets for objective in target.objectives(values, outputs, labels)]


class Fixed(Target):
    """A target of given objectives, the same for every image."""

    def __init__(self, *objectives: Objective) -> None:
        self._objectives, self.text = objectives, ", ".join(objective.identity.slug for objective in objectives)

    def objectives(self, values: Tensor, outputs: Outputs, labels: Sequence[str] | None) -> list[Objective]:
        """The given objectives."""
        return list(self._objectives)


def together(targets: Sequence[Target]) -> Target:
    """Several targets as one: the largest topK first, the others in their order, each once."""
    tops = sorted((target for target in targets if target.top), key=lambda target: -target.top)[:1]
    others: dict[Hashable, Target] = {}
    for target in targets:
        if not target.top:
            others.setdefault(target.key, target)
    parts = (*tops, *others.values())
    return parts[0] if len(parts) == 1 else Several(*parts)


class Objectives:
    """The objectives of a batch: `rows` has T of them for each of B images. A single row stands for any number of copies of
    its image."""

    def __init__(self, rows: Sequence[Sequence[Objective]], outputs: Outputs) -> None:
        self.rows, self.outputs = rows, outputs
        self._columns: Tensor | None = None
        self._of_columns = all(objective.column is not None for row in rows for objective in row)

    @property
    def count(self) -> int:
        """T, the number of objectives of each image."""
        return len(self.rows[0])

    def columns(self, like: Tensor) -> Tensor | None:
        """The class columns (B, T) int64 on the device of a tensor; None where an objective is no class column."""
        import torch

        if self._of_columns and (self._columns is None or self._columns.device != like.device):
            numbers = [[objective.column for objective in row] for row in self.rows]
            self._columns = torch.tensor(numbers, device=like.device)
        return self._columns

    def scores(self, values: Tensor, kind: ScoreKind) -> Tensor:
        """Values (B, ...), or (N, ...) of N copies of one image -> the explained scalars (B, T) or (N, T), differentiable, in
        float32 or better."""
        import torch

        columns = self.columns(values)
        if columns is not None:
            return self.outputs.scores(values, columns.expand(len(values), -1), kind)
        if len(self.rows) == 1:
            return torch.stack([objective.score(values, self.outputs, kind) for objective in self.rows[0]], 1)
        rows = zip(self.rows, values.split(1), strict=True)
        return torch.stack([torch.cat([o.score(value, self.outputs, kind) for o in row]) for row, value in rows])

    def of(self, b: int) -> Objectives:
        """The objectives of image `b`: a single row, which stands for any number of its copies."""
        return self if len(self.rows) == 1 else self[b : b + 1]

    def __getitem__(self, images: slice) -> Objectives:
        return Objectives(self.rows[images], self.outputs)

    def pairs(self) -> Objectives:
        """Every pair of image and objective as an image of its own: B x T rows of one objective, image by image."""
        return Objectives([[objective] for row in self.rows for objective in row], self.outputs)


@dataclass
class Targets:
    """The targets of one batch, one an image, and what they resolve to on the first clean pass over the batch.

    `resolve` sets `objectives` and `values` (B, ...) float32. Methods that make a clean pass of their own call it with the
    values of that pass, so that no other is needed. All images get the same number of objectives: where an image has fewer
    than another, its first one is repeated. `asked[b]` has an entry for each objective of image b that is no repetition:
    the number of the target that it answers. `errors[b]` says why image b has none.
    """

    specs: Sequence[Target]
    outputs: Outputs
    labels: Sequence[str] | None = None
    objectives: Objectives | None = None
    values: Tensor | None = field(default=None, repr=False)
    asked: Sequence[Sequence[int]] = ()
    errors: dict[int, VisxError] = field(default_factory=dict)

    def resolve(self, values: Tensor) -> Objectives:
        """The objectives, given the clean values (B, ...) of these images. Raises `VisxError` where no image has any."""
        if self.objectives is None:
            self.values = values.detach().float()
            rows, asked = [], []
            for b, (row, spec) in enumerate(zip(self.values.cpu(), self.specs, strict=True)):
                results: list[list[Objective]] = []  # one a target of the image
                try:
                    results = [each.objectives(row, self.outputs, self.labels) for each in spec.each]
                except VisxError as error:
                    self.errors[b] = error
                rows.append([objective for some in results for objective in some])
                asked.append([number for number, some in enumerate(results) for _ in some])
            most = max(map(len, rows))
            if not most:
                raise self.errors[0]
            other = next(row[0] for row in rows if row)
            padded = [row + [row[0] if row else other] * (most - len(row)) for row in rows]
            self.objectives, self.asked = Objectives(padded, self.outputs), asked
        return self.objectives

    def scores(self, values: Tensor, kind: ScoreKind) -> Tensor:
        """Clean values (B, ...) -> the explained scalars (B, T), resolved on them if that was not done yet."""
        return self.resolve(values).scores(values, kind)

    @property
    def uneven(self) -> bool:
        """Whether images of a resolved batch have different numbers of objectives."""
        return len(set(map(len, self.asked))) > 1

    def some(self, images: slice) -> Targets:
        """The targets of some images of a resolved batch, padded to the largest number of objectives among these alone."""
        assert self.objectives is not None and self.values is not None, "the targets are not resolved yet"
        numbers, asked = range(len(self.asked))[images], self.asked[images]
        most = max(1, *map(len, asked))
        objectives = Objectives([row[:most] for row in self.objectives.rows[images]], self.outputs)
        errors = {numbers.index(b): error for b, error in self.errors.items() if b in numbers}
        return Targets(self.specs[images], self.outputs, self.labels, objectives, self.values[images], asked, errors)
