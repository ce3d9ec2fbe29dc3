"""The HTML page of a run: data, plots and pictures inserted into the templates.

Everything that comes from a run is inserted as data, never as markup. The data are an inline JSON block without any `<`; the
script writes text by `textContent` only. The content security policy allows the page's own script and style (by their hashes)
and its pictures, and no connections.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from visx import __version__
from visx.files import make_folder, to_json, write_whole
from visx.gallery.pictures import (
    IMAGE_SIDE,
    Small,
    Store,
    find_image,
    kind_of,
    map_picture,
    overlay_picture,
    placement,
    plain_picture,
    shrink,
)
from visx.gallery.records import ReportedRun, numbers, read_run, recipes
from visx.run.progress import Progress
from visx.store.record import Record

if TYPE_CHECKING:
    from visx.images.geometry import Placement

Drawn = tuple[str, Small | None, list[float] | None]  # the kind of picture, the map, its box in percent of the image
BINS = 10
WORKERS = 4
DIRECTION_MARKS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def write_report(
    folder: Path,
    out: Path,
    inline_limit: int,
    on_message: Callable[[str], None],
    progress: Callable[[int, str], AbstractContextManager[Progress]],
) -> dict[str, Any]:
    """Write the page of the run in `folder` to the file `out`.

    Returns {report, results, errors, inline, page_bytes, picture_bytes}. Raises `VisxError` where the folder holds no run.

    Pictures of up to `inline_limit` bytes in all are inside the page, more in a folder `NAME-files` beside it.
    `on_message` gets remarks; `progress` is given how many results are drawn, and a word for that.
    """
    run = read_run(folder)
    store = Store(out.parent / f"{out.stem}-files", inline_limit)
    make_folder(out.parent)
    with progress(len(run.results), "drawing") as drawn:
        shown, images = _draw(run, store, drawn.advance)
    to_folder = quote(os.fsencode(os.path.relpath(folder, out.parent))) + "/"
    data = _data(run, shown, images, store, "./" if to_folder == "./" else to_folder)
    page = render_page(run, data, inline=store.inline).encode()
    write_whole(out, page)
    store.sweep()
    if run.skipped:
        on_message(f"{run.skipped} lines of the manifest are no results and were passed over")
    return {"report": str(out), "results": len(run.results), "errors": len(run.errors), "inline": store.inline,
            "page_bytes": len(page), "picture_bytes": store.bytes}  # fmt: skip


def _draw(run: ReportedRun, store: Store, advance: Any) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """The pictures of a run: {map, kind, box, ...} for each result, {name, src, width, height} for each image by its name."""
    by_image: dict[str, list[int]] = {}
    for number, record in enumerate(run.results):
        by_image.setdefault(record.image, []).append(number)
    for failure in run.errors:
        by_image.setdefault(failure.image, [])
    shown: list[dict[str, Any]] = [{} for _ in run.results]
    images: dict[str, dict[str, Any]] = {}

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="visx-page") as pool:
        work = ((run.folder, image, [run.results[n] for n in numbers]) for image, numbers in by_image.items())
        for (image, numbers), (base, maps) in zip(by_image.items(), pool.map(_draw_image, work), strict=True):
            images[image] = {"name": image}
            if base is not None:
                images[image] |= {"src": store.put(base.data), "width": base.width, "height": base.height}
            for number, (kind, picture, box) in zip(numbers, maps, strict=True):
                shown[number] = {"kind": kind, "map": None, "box": box}
                if picture is not None:
                    shown[number] |= {"map": store.put(picture.data), "width": picture.width, "height": picture.height}
                advance(1)
    return shown, images


def _draw_image(work: tuple[Path, str, list[Record]]) -> tuple[Small | None, list[Drawn]]:
    """The picture of one image and the drawings of its maps; runs in a worker's thread."""
    folder, image, records = work
    path = find_image(folder, image)
    rgb = plain_picture(path, records[0].preprocessing if records else None) if path else None
    if rgb is None:
        return None, [("overlay", overlay_picture(folder, record), None) for record in records]
    maps: list[Drawn] = []
    for record in records:
        kind = kind_of(record)
        try:
            place = placement(record)
            maps.append((kind, map_picture(folder, record, kind, place), _box(place, rgb.shape, kind)))
        except ValueError:  # the record does not say where the map lies
            maps.append(("overlay", overlay_picture(folder, record), None))
    return Small.of(shrink(rgb, IMAGE_SIDE)), maps


def _box(place: Placement, shape: tuple[int, ...], kind: str) -> list[float]:
    """The map's box in the image in percent: [left, top, width, height]."""
    left, top, right, bottom = place.box
    height, width = shape[:2]
    if kind == "gradient":  # it is cut out of the overlay, and so ends at the picture's border
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    across, down = 100 / width, 100 / height
    return [round(v, 3) for v in (left * across, top * down, (right - left) * across, (bottom - top) * down)]


def _data(
    run: ReportedRun, shown: Sequence[dict[str, Any]], images: dict[str, dict[str, Any]], store: Store, to_folder: str
) -> dict[str, Any]:
    """The data for the page's script: {images, recipes, results}; `to_folder` is the URL of the run's folder."""
    shared, which = recipes(run.results)
    order = {image: number for number, image in enumerate(images)}
    pictures = [{**image, "src": store.source(image["src"])} if "src" in image else image for image in images.values()]
    results = []
    for record, metrics, picture, recipe in zip(run.results, run.metrics, shown, which, strict=True):
        values = record.as_dict()
        results.append(
            {
                "image": order[record.image],
                "recipe": recipe,
                "kind": record.identity.get("kind"),
                **{key: values.get(key) for key in ("target", "label", "layer", "probability", "score", "seconds")},
                "range": [record.min, record.max],
                "numbers": numbers(record, metrics),
                "extras": record.extras or {},
                "warnings": [str(w) for w in record.warnings],
                **picture,
                "map": store.source(picture["map"]) if picture["map"] else None,
                "files": {kind: to_folder + quote(os.fsencode(name)) for kind, name in record.links.items()},
            }
        )
    for failure in run.errors:
        results.append(
            {
                "image": order[failure.image],
                "method": failure.method,
                "error": {key: str(failure.error.get(key) or "") for key in ("message", "hint")},
            }
        )
    return {"images": pictures, "recipes": shared, "results": results}


def render_page(run: ReportedRun, data: dict[str, Any], inline: bool) -> str:
    """The HTML of the page; `inline` says whether all pictures are inside the page."""
    import jinja2
    from markupsafe import Markup

    templates = files("visx") / "gallery" / "templates"
    style, script = ((templates / name).read_text("utf-8") for name in ("report.css", "report.js"))
    loader = jinja2.FunctionLoader(lambda name: (templates / name).read_text("utf-8"))
    environment = jinja2.Environment(autoescape=True, loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"figure": figure, "plain": plain}
    title = run.folder.resolve().name or "run"
    sources = "data:" if inline else "data: 'self' file:"
    policy = (
        f"default-src 'none'; img-src {sources}; style-src '{_hash(style)}'; "
        f"script-src '{_hash(script)}'; base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("report.html").render(
        title=title,
        version=__version__,
        policy=policy,
        style=Markup(style),
        script=Markup(script),
        data=Markup(embed(data)),
        results=len(run.results),
        errors=len(run.errors),
        images=len(data["images"]),
        histogram=histogram(run.results),
        times=list(mean_times(run.results)),
        classes=Counter(r.label for r in run.results).most_common(8),
        tables=run.tables,
    )


def embed(data: Any) -> str:
    """The value as JSON for a script element, without characters that could end the element or begin a comment."""
    text = json.dumps(json.loads(to_json(data)), separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(text: str) -> str:
    """The text without marks of text direction, which could disguise it, and without undecodable bytes of file names."""
    return DIRECTION_MARKS.sub("\ufffd", text).encode("utf-8", "replace").decode()


def figure(value: Any) -> str:
    """A value of a table as text, numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def histogram(results: Sequence[Record]) -> list[int]:
    """The number of results with a probability in each tenth of 0..1."""
    counts = [0] * BINS
    for record in results:
        if record.probability is not None:
            counts[min(BINS - 1, max(0, int(record.probability * BINS)))] += 1
    return counts


def mean_times(results: Sequence[Record]) -> Iterator[tuple[str, float]]:
    """(method, mean seconds for a map) of each method."""
    of_method: dict[str, list[float]] = {}
    for record in results:
        if record.seconds is not None:
            of_method.setdefault(record.method, []).append(record.seconds)
    for method, seconds in of_method.items():
        yield method, sum(seconds) / len(seconds)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
