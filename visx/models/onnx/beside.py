"""The configuration beside an ONNX file: `net.json` of `net.onnx`, as timm writes it (`pretrained_cfg`, also inside the
`config.json` of a model on the Hugging Face hub).

| key | is |
| --- | --- |
| `input_size` | [C, H, W] |
| `crop_pct`, `crop_mode` | the part of the resized picture that is cut out; "center", "squash" or "border" |
| `interpolation` | of the resize: "bilinear", "bicubic", ... |
| `mean`, `std` | of pixels in 0..1, one number a channel |
| `labels` (`label_names`, `id2label`) | the classes' names: a list, or {index: name} |
| `channel_order` | "BGR" where the network takes blue first; `mean` and `std` are red first all the same |
| `means`, `head`, `layout` | as the options of these names |

All may be missing; other keys do not count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from visx.errors import VisxError, unknown, usage
from visx.models.labels import labels_of
from visx.models.preprocessing import INTERPOLATIONS, LAYOUTS, numbers, sides
from visx.network.meaning import check_means

_MODES = ("center", "squash", "border")
_LABELS = ("labels", "label_names", "id2label")
_PICTURES = ("input_size", "crop_pct", "crop_mode", "interpolation", "mean", "std")


@dataclass(frozen=True)
class Beside:
    """What a configuration says: `pictures` with timm's keys, those that are there; None for what it does not say."""

    name: str = ""
    pictures: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None
    means: str | None = None
    head: str | int | None = None
    layout: Literal["NCHW", "NHWC"] | None = None
    bgr: bool = False


def read(path: Path) -> Beside:
    """The configuration beside an ONNX file, empty where there is none. Raises `VisxError` (usage, exit 2) where it is no JSON
    object, or a value of it cannot be meant."""
    file = path.with_suffix(".json")
    if not file.is_file():
        return Beside()
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise usage(
            f"{file}, beside {path.name}, is no JSON object: {error}", "it says how pictures become the input"
        ) from None
    try:
        return _read(file.name, content)
    except VisxError as error:
        raise usage(f"{file}: {error.message}", error.hint) from None


def _read(name: str, content: dict[str, Any]) -> Beside:
    inner = content.get("pretrained_cfg")
    config = {**content, **inner} if isinstance(inner, dict) else content
    pictures = {key: config[key] for key in _PICTURES if config.get(key) is not None}
    if "input_size" in pictures:
        size = pictures["input_size"]
        if not isinstance(size, list) or len(size) != 3:
            raise usage(f"input_size {size!r:.60} is not [C, H, W]", "for instance [3, 224, 224]")
        sides("input_size", size[1:])
    scale = pictures.get("crop_pct", 1)
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale <= 1:
        raise usage(f"crop_pct {scale!r:.60} is not within 0..1", "for instance 0.875")
    for key, known in (("crop_mode", _MODES), ("interpolation", INTERPOLATIONS)):
        if key in pictures and pictures[key] not in known:
            raise unknown(key, str(pictures[key]), known)
    for key in ("mean", "std"):
        if key in pictures:
            pictures[key] = numbers(key, pictures[key])
    layout, order = config.get("layout"), config.get("channel_order", "RGB")
    for key, value, choices in (("layout", layout or "NCHW", LAYOUTS), ("channel_order", order, ("RGB", "BGR"))):
        if value not in choices:
            raise unknown(key, str(value), choices)
    labels = next((config[key] for key in _LABELS if config.get(key)), None)
    if labels is not None and not isinstance(labels, (list, dict)):
        raise usage(f"labels are {labels!r:.60}", "a list of names, or {index: name}")
    return Beside(
        name, pictures, None if labels is None else labels_of(labels), check_means(config.get("means")), config.get("head"),
        layout, order == "BGR",
    )  # fmt: skip
