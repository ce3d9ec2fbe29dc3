"""The sensitivity report: JSON, CSV, and the picture that SAM opens with, a row an image and a column a setting."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from visx.draw.colours import colorize
from visx.draw.curves import font, png_bytes
from visx.evaluate.tables import csv_bytes
from visx.files import SCHEMA_VERSION, make_folder, to_json, write_whole
from visx.images.decode import read
from visx.metrics.contract import Metric
from visx.models import Model
from visx.sensitivity.measure import Group, Sensitivity

CELL, GAP, LINE = 176, 6, 15
MOST_ROWS = 12


def write_sensitivity(out: Path, found: Sensitivity, group: Group, model: Model) -> None:
    """Write `sensitivity.json` and `.csv` with all that is found so far, and this group's picture."""
    make_folder(out)
    record = {
        "schema_version": SCHEMA_VERSION,
        "table": found.rows(),
        "groups": [
            {
                "model": g.model, "method": g.method, "varied": g.varied,
                "settings": [
                    {"name": s.name, "params": s.job.params.model_dump(mode="json"), "layer": s.job.layer,
                     "score_kind": s.job.kind, "seed": s.seed, "noise": s.noise}
                    for s in g.settings
                ],
            }
            for g in found.groups
        ],
        "errors": found.errors,
    }  # fmt: skip
    write_whole(out / "sensitivity.json", to_json(record).encode() + b"\n")
    rows = [
        (g.model, g.method, g.varied, s.image, s.target, s.first, s.second, s.metric, s.value)
        for g in found.groups
        for s in g.scores
    ]
    titles = ("model", "method", "varied", "image", "target", "first", "second", "metric", "value")
    write_whole(out / "sensitivity.csv", csv_bytes(titles, rows))
    if group.samples:
        write_whole(out / f"sensitivity.{picture_name(group)}.png", png_bytes(teaser(group, model, found)))


def picture_name(group: Group) -> str:
    """What tells this group's picture from others, safe in any file system."""
    words = f"{group.model}.{group.method}.{group.varied}"
    return "".join(c if c.isascii() and (c.isalnum() or c in "._=-") else "-" for c in words)[:120]


def teaser(group: Group, model: Model, found: Sensitivity) -> Image.Image:
    """One row an image (at most 12), first the picture as the network sees it, then one column a setting; beneath each map
    its own metrics, and the mean of each metric of two maps over the pairs that it is in."""
    rows = list(group.samples.items())[:MOST_ROWS]
    lines = max(len(found.metrics), 2)
    height = LINE * 3 + len(rows) * (CELL + LINE * lines + GAP)
    sheet = Image.new("RGB", ((1 + len(group.settings)) * (CELL + GAP) + GAP, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, LINE), _short(pen, group.method, 13), "black", font(13), anchor="lm")
    for column, setting in enumerate(group.settings, 1):
        middle = GAP + column * (CELL + GAP) + CELL // 2
        pen.text((middle, LINE), _short(pen, setting.name, 13), "black", font(13), anchor="mm")
    for number, ((name, target), row) in enumerate(rows):
        top = LINE * 2 + number * (CELL + LINE * lines + GAP)
        sample = next(iter(row.values()))
        sheet.paste(_fit(_seen(model, sample.item.path)), (GAP, top))
        for line, text in enumerate((name, sample.record.label)):
            pen.text((GAP, top + CELL + 2 + line * LINE), _short(pen, text, 11), "black", font(11))
        for column, setting in enumerate(group.settings, 1):
            if setting.name not in row:
                continue
            left = GAP + column * (CELL + GAP)
            values = row[setting.name].map()
            sheet.paste(_fit(colorize(values, setting.job.signed)), (left, top))
            for line, metric in enumerate(found.metrics):
                mine = [
                    s.value
                    for s in group.scores
                    if s.metric == metric.name and s.image == str(sample.item.path) and s.target == target
                    and setting.name in (s.first, s.second)
                ]  # fmt: skip
                if mine:
                    pen.text(
                        (left, top + CELL + 2 + line * LINE), f"{metric.name} {np.mean(mine):.2f}", "black", font(11)
                    )
    pen.text(
        (GAP, height - LINE // 2), _caption(found.metrics, len(group.samples) - len(rows)), "black", font(11), "lm"
    )
    return sheet


def _caption(metrics: Sequence[Metric], left_out: int) -> str:
    """What the numbers are, and how many images there was no room for."""
    paired = ", ".join(m.name for m in metrics if m.kind == "pair")
    own = ", ".join(m.name for m in metrics if m.kind != "pair")
    texts = [f"{paired}: mean over the map's pairs"] if paired else []
    texts += [f"{own}: of the map itself"] if own else []
    return "; ".join(texts + ([f"{left_out} more images are in the tables"] if left_out else []))


def _short(pen: ImageDraw.ImageDraw, text: str, size: int) -> str:
    """A text that fits a cell's width, its end left out if it must be."""
    if pen.textlength(text, font(size)) <= CELL:
        return text
    while text and pen.textlength(f"{text}...", font(size)) > CELL:
        text = text[:-1]
    return f"{text}..."


def _seen(model: Model, path: Path) -> np.ndarray:
    x, _ = model.preprocess(model.preprocess.decode(read(path)).pixels)
    mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (model.preprocess.mean, model.preprocess.std))
    pixels = np.rint(np.clip(x * std + mean, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, 2)


def _fit(rgb: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(rgb)).resize((CELL, CELL), Image.Resampling.BILINEAR)
