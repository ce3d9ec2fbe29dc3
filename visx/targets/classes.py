"""Classes, and the values of a regression: from a `--target` (top1, topK, an index, a label, a CSV) to class columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visx.errors import VisxError, unknown, usage
from visx.targets.contract import Identity, Objective, Target, together

if TYPE_CHECKING:
    from torch import Tensor

    from visx.network.outputs import Outputs, ScoreKind


@dataclass(frozen=True)
class Column(Objective):
    """A class, or a value of a regression: one column of the output."""

    column: int
    identity: Identity

    @classmethod
    def of(cls, index: int, outputs: Outputs, labels: Sequence[str] | None) -> Column:
        """The class (or value) of this index."""
        label = label_of(index, outputs, labels)
        if outputs.of_classes:
            return cls(index, Identity("class", class_slug(index, label), label, index))
        return cls(index, Identity("out", value_slug(index, label), label, index))

    @classmethod
    def again(cls, identity: Mapping[str, Any], outputs: Outputs, labels: Sequence[str] | None) -> Column:
        """The class (or value) of which this is `Identity.json`."""
        return cls.of(int(identity["index"]), outputs, labels)

    def score(self, values: Tensor, outputs: Outputs, kind: ScoreKind) -> Tensor:
        """Class columns (N, K) -> (N,)."""
        return outputs.table(values, kind)[:, self.column]


def label_of(index: int, outputs: Outputs, labels: Sequence[str] | None) -> str:
    """The name of a class; its number where names are not known (of a regression's value: `out:N`)."""
    if labels and 0 <= index < len(labels):
        return labels[index]
    return str(index) if outputs.of_classes else f"out:{index}"


def class_slug(index: int, label: str) -> str:
    """A class as file names show it: its index and what of its label is safe in any file system."""
    words = "".join(c if c.isascii() and c.isalnum() else "-" for c in label.lower())
    name = "-".join(filter(None, words.split("-")))[:40].strip("-")
    return f"{index}-{name}" if name and name != str(index) else str(index)


def value_slug(index: int, label: str) -> str:
    """A regression's value as file names show it: `out-N`, and its label where it has one."""
    name = class_slug(index, label).removeprefix(f"{index}-").removeprefix("out-")
    return f"out-{index}" if name == str(index) else f"out-{index}-{name}"


@dataclass(frozen=True)
class TargetSpec(Target):
    """A parsed `--target`: the `top` classes of each image, one fixed `index`, or one class an image by `table`. `values`
    says that the model's outputs are values and no classes."""

    text: str
    top: int = 0
    index: int | None = None
    table: dict[str, str] | None = None
    values: bool = False

    @property
    def key(self) -> Hashable:
        """The class; of a table the text, too, since an image's class is not known yet."""
        return self.index, self.text if self.table else ""

    def objectives(self, values: Tensor, outputs: Outputs, labels: Sequence[str] | None) -> list[Objective]:
        """The classes of an image, given its class columns (K,). A row that is not finite has some, too: the engine reports
        it."""
        indices = values.topk(self.top).indices.tolist() if self.index is None else [self.index]
        return [Column.of(index, outputs, labels) for index in indices]

    def for_image(self, path: str, labels: Sequence[str] | None, classes: int) -> TargetSpec:
        """This target for one image: a table is looked up by the path as listed, else by the file name."""
        if self.table is None:
            return self
        posix = path.replace("\\", "/")
        matches = [key for key in self.table if posix == key or posix.endswith("/" + key)]
        wanted = self.table[max(matches, key=len)] if matches else self.table.get(posix.rpartition("/")[2])
        if wanted is None:
            raise VisxError(f"no target for this image in {self.text}", hint="add a row image,target")
        return TargetSpec(wanted, index=find_class(wanted, labels, classes, self.values), values=self.values)


def parse_targets(texts: Sequence[str], labels: Sequence[str] | None, classes: int, *, values: bool = False) -> Target:
    """Parse a repeated `--target`."""
    return together([parse_target(text, labels, classes, values=values) for text in texts or ("top1",)])


def parse_target(text: str, labels: Sequence[str] | None, classes: int, *, values: bool = False) -> TargetSpec:
    """Parse a `--target`; `labels` and `classes` are the model's, `values` says that these are values and no classes."""
    text = text.strip()
    top = re.fullmatch(r"top(\d+)", text)
    if top and values:
        if classes > 1 or int(top[1]) != 1:
            raise usage(
                f"target {text!r}: a regression has no likeliest value", f"name one, out:0 to out:{classes - 1}"
            )
        return TargetSpec("out:0", index=0, values=True)
    if top:
        count = int(top[1])
        if not 1 <= count <= classes:
            raise usage(f"target {text!r}: the model has {classes} classes", f"top1 to top{classes}")
        return TargetSpec(text, top=count)
    if text.lower().endswith(".csv"):
        return TargetSpec(text, table=_read_table(Path(text)), values=values)
    return TargetSpec(text, index=find_class(text, labels, classes, values), values=values)


def find_class(text: str, labels: Sequence[str] | None, classes: int, values: bool = False) -> int:
    """The class index of an index or a label (exact, else a unique part of one; case does not matter); of a regression's
    `values` the index in `out:N`."""
    text = text.strip()
    if re.fullmatch(r"out:\d+", text):
        if not values:
            raise usage(
                f"target {text!r} is for a regression, and this model's outputs are classes",
                "give a class index or a label, or say --means regression",
            )
        text = text.removeprefix("out:")
    if re.fullmatch(r"[+-]?\d+", text):
        index = int(text)
        if not 0 <= index < classes:
            raise usage(
                f"target {index} is out of range",
                f"the model's {'values' if values else 'classes'} are 0 to {classes - 1}",
            )
        return index
    if not labels:
        raise usage(f"target {text!r}: the labels of this model are not known", "give a class index, or --labels FILE")
    lowered = [label.lower() for label in labels]
    exact = [i for i, label in enumerate(lowered) if label == text.lower()]
    matches = exact or [i for i, label in enumerate(lowered) if text and text.lower() in label]
    if len(matches) == 1:
        return matches[0]
    if not matches:
        raise unknown("label", text, labels, "`visx predict` shows the labels of an image's likely classes")
    shown = ", ".join(f"{labels[i]} ({i})" for i in matches[:6]) + (", ..." if len(matches) > 6 else "")
    raise usage(f"target {text!r} fits {len(matches)} labels", f"one of {shown}; an index is always unique")


def _read_table(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise usage(f"cannot read the targets {path}: {getattr(error, 'strerror', None) or error}") from None
    if rows and [cell.strip().lower() for cell in rows[0][:2]] == ["image", "target"]:
        rows = rows[1:]
    bad = next((row for row in rows if len(row) < 2), None)
    if bad is not None or not rows:
        raise usage(
            f"{path}: every row must be image,target", f"found {','.join(bad)!r}" if bad else "the file is empty"
        )
    return {row[0].strip().replace("\\", "/").removeprefix("./"): row[1].strip() for row in rows}
