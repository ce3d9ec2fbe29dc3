"""The files of `visx sensitivity`: JSON, CSV, and for each group a picture with one row an image and one column a setting."""

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
from visx.store.settings import Settings, sharded

CELL, GAP, LINE = 176, 6, 15  # pixels
MOST_ROWS = 12  # images in a picture


def write_sensitivity(settings: Settings, result: Sensitivity, group: Group, model: Model) -> Path:
    """Writes `sensitivity.json` and `sensitivity.csv` with all groups so far, and the picture of `group`; returns the path of
    `sensitivity.json`. Raises `VisxError` where a file cannot be written.
    """
    make_folder(settings.out)
    path, table, picture = (
        settings.out / sharded(f"sensitivity.{end}", settings.shard)
        for end in ("json", "csv", f"{picture_name(group)}.png")
    )
    record = {
        "schema_version": SCHEMA_VERSION,
        "table": result.rows(),
        "groups": [
            {
                "model": g.model, "method": g.method, "varied": g.varied,
                "settings": [
                    {"name": s.name, "params": s.job.params.model_dump(mode="json"), "layer": s.job.layer,
                     "score_kind": s.job.kind, "seed": s.seed, "noise": s.noise}
                    for s in g.settings
                ],
            }
            for g in result.groups
        ],
        "errors": result.errors,
    }  # fmt: skip
    write_whole(path, to_json(record).encode() + b"\n")
    rows = [
        (g.model, g.method, g.varied, s.image, s.target, s.first, s.second, s.metric, s.value)
        for g in result.groups
        for s in g.scores
    ]
    titles = ("model", "method", "varied", "image", "target", "first", "second", "metric", "value")
    write_whole(table, csv_bytes(titles, rows))
    if group.samples:
        write_whole(picture, png_bytes(group_picture(group, model, result)))
    return path


def picture_name(group: Group) -> str:
    """The part of the file name that identifies a group's picture, in characters that every file system takes."""
    words = f"{group.model}.{group.method}.{group.varied}"
    return "".join(c if c.isascii() and (c.isalnum() or c in "._=-") else "-" for c in words)[:120]


def group_picture(group: Group, model: Model, result: Sensitivity) -> Image.Image:
    """The picture of a group: one row an image (at most 12), the image as the network sees it, then one column a setting.

    Below each map are its own metrics, and the mean of each metric of two maps over the pairs with that map.
    """
    rows = list(group.samples.items())[:MOST_ROWS]
    lines = max(len(result.metrics), 2)
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
        sheet.paste(_fit(_input_picture(model, sample.item.path)), (GAP, top))
        for line, text in enumerate((name, sample.record.label)):
            pen.text((GAP, top + CELL + 2 + line * LINE), _short(pen, text, 11), "black", font(11))
        for column, setting in enumerate(group.settings, 1):
            if setting.name not in row:
                continue
            left = GAP + column * (CELL + GAP)
            values = row[setting.name].map()
            sheet.paste(_fit(colorize(values, setting.job.signed)), (left, top))
            for line, metric in enumerate(result.metrics):
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
        (GAP, height - LINE // 2), _caption(result.metrics, len(group.samples) - len(rows)), "black", font(11), "lm"
    )
    return sheet


def _caption(metrics: Sequence[Metric], left_out: int) -> str:
    """The caption: what the numbers are, and how many images are left out."""
    paired = ", ".join(m.name for m in metrics if m.kind == "pair")
    own = ", ".join(m.name for m in metrics if m.kind != "pair")
    texts = [f"{paired}: mean over the map's pairs"] if paired else []
    texts += [f"{own}: of the map itself"] if own else []
    return "; ".join(texts + ([f"{left_out} more images are in the tables"] if left_out else []))


def _short(pen: ImageDraw.ImageDraw, text: str, size: int) -> str:
    """The text, cut and ended with dots where it is wider than a cell."""
    if pen.textlength(text, font(size)) <= CELL:
        return text
    while text and pen.textlength(f"{text}...", font(size)) > CELL:
        text = text[:-1]
    return f"{text}..."


def _input_picture(model: Model, path: Path) -> np.ndarray:
    """The image as the network sees it, (h, w, 3) uint8 RGB."""
    x, _ = model.preprocess(model.preprocess.decode(read(path)).pixels)
    mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (model.preprocess.mean, model.preprocess.std))
    pixels = np.rint(np.clip(x * std + mean, 0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, 2)


def _fit(rgb: np.ndarray) -> Image.Image:
    """The picture, resized to a cell."""
    return Image.fromarray(np.ascontiguousarray(rgb)).resize((CELL, CELL), Image.Resampling.BILINEAR)
