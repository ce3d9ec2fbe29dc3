"""The page of a run: what is in it, what it admits, and that whatever comes from a run stays data."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from visx.errors import ExitCode, VisxError


class Tags(HTMLParser):
    """Every element and every text of a page, the contents of its scripts by id."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.contents: dict[str, str] = {}
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = dict(attrs).get("id") or tag

    def handle_data(self, data: str) -> None:
        self.contents[self._open] = self.contents.get(self._open, "") + data


def data_of(page: str) -> dict[str, Any]:
    return json.loads(Tags(page).contents["data"])


def policy_of(page: str) -> str:
    return next(a["content"] or "" for _, a in Tags(page).elements if a.get("http-equiv") == "Content-Security-Policy")


def decoded(source: str, folder: Path | None = None) -> np.ndarray:
    import io

    content = (
        base64.b64decode(source.split(",", 1)[1])
        if source.startswith("data:")
        else (folder / unquote(source)).read_bytes()
    )
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_result_is_in_the_page_with_its_recipe_pictures_and_place(run, write):
    image = run.image("a.png", size=(80, 60))
    run.add(image, params={"relu": True}, warnings=["careful"], extras={"gap": 0.25, "note": "x"})
    summary, page = write(run)
    data = data_of(page)
    assert (summary["results"], summary["errors"], summary["inline"]) == (1, 0, True)
    [result], [picture], [recipe] = data["results"], data["images"], data["recipes"]
    assert (result["label"], result["probability"], result["target"]) == ("tabby", 0.5, 3)
    assert result["numbers"] == {"gap": 0.25} and result["warnings"] == ["careful"]
    assert (
        recipe["params"] == {"relu": True} and recipe["method"] == "gradcam" and recipe["weights"]["name"] == "random"
    )
    assert (picture["name"], picture["width"], picture["height"]) == (str(image), 80, 60)
    assert result["box"] == pytest.approx([25, 100 / 6, 50, 200 / 3], abs=1e-3)  # the crop 20,10..60,50 in 80 x 60
    assert np.abs(decoded(picture["src"])[2, 2].astype(int) - (200, 60, 30)).max() < 12
    assert decoded(result["map"]).shape == (32, 32, 3)


def test_the_map_is_coloured_as_the_run_was_and_a_signed_one_is_as_opaque_as_it_is_strong(run, write):
    image = run.image("a.png")
    halves = np.full((32, 32), 1.0, np.float32)
    halves[:, :16] = -1
    halves[:16] = 0
    run.add(image, method="cam", values=halves)
    run.add(image, method="gradcam", rendering={"colormap": "viridis", "alpha": 0.5})
    signed, unsigned = data_of(write(run)[1])["results"]
    assert (signed["kind"], unsigned["kind"]) == ("signed", "map")
    pixels = decoded(signed["map"]).astype(int)
    assert pixels[4, 16, 3] < 10 and pixels[28, 4, 3] > 245 and pixels[28, 28, 3] > 245
    assert (
        pixels[28, 4, 2] > pixels[28, 4, 0] + 50 and pixels[28, 28, 0] > pixels[28, 28, 2] + 50
    )  # blue against, red for
    top = decoded(unsigned["map"]).astype(int)[31, 31]
    assert np.abs(top - (253, 231, 37)).max() < 20  # viridis ends in yellow, turbo in dark red


def test_a_gradient_picture_comes_from_the_overlay_and_covers_what_the_network_saw(run, write):
    image = run.image("a.png")
    overlay = np.zeros((60, 80, 3), np.uint8)
    overlay[10:50, 20:60] = (10, 200, 90)
    record = run.add(image, method="guided_backprop")
    name = f"{image.name}/overlay.png"
    Image.fromarray(overlay).save(run.folder / name)
    run.write({**record, "files": {**record["files"], "overlay": name}})
    [result] = data_of(write(run)[1])["results"]
    assert result["kind"] == "gradient"
    assert np.abs(decoded(result["map"]).astype(int) - (10, 200, 90)).max() < 12
    assert result["box"] == pytest.approx([25, 100 / 6, 50, 200 / 3], abs=1e-3)


def test_past_its_limit_the_pictures_lie_beside_the_page_and_come_back_into_it(run, write):
    for name in ("a.png", "b ü.png"):
        run.add(run.image(name, colour=(len(name) * 20, 90, 90)))
    summary, page = write(run, inline=0)
    data = data_of(page)
    assert not summary["inline"]
    for source in [*(i["src"] for i in data["images"]), *(r["map"] for r in data["results"])]:
        assert re.fullmatch(r"report-files/[0-9a-f]+\.webp", source)
        assert decoded(source, run.folder).size
    assert "'self' file:" in policy_of(page)
    stale = run.folder / "report-files" / "old.webp"
    stale.write_bytes(b"")
    write(run, inline=0)
    assert not stale.exists()
    summary, page = write(run)
    assert summary["inline"] and not (run.folder / "report-files").exists()
    assert "file:" not in policy_of(page)


def test_links_lead_from_the_page_to_the_run_wherever_the_page_lies(run, write, tmp_path):
    record = run.add(run.image("100% #1?.png"))
    for out in (run.folder / "report.html", tmp_path / "elsewhere" / "page.html"):
        [result] = data_of(write(run, out=out)[1])["results"]
        href = result["files"]["npy"]
        assert "#" not in href and "?" not in href and ":" not in href
        assert (out.parent / unquote(href)).resolve() == (run.folder / record["files"]["npy"]).resolve()


def test_hostile_names_are_data_everywhere(hostile, write):
    _, page = write(hostile)
    tags = Tags(page)
    assert [tag for tag, _ in tags.elements].count("script") == 2
    assert not [
        tag for tag, attrs in tags.elements if tag in ("img", "b", "iframe") or any(a.startswith("on") for a in attrs)
    ]
    data = data_of(page)
    assert [r["label"] for r in data["results"] if "label" in r] == list(hostile.hostile)
    assert {w for r in data["results"] for w in r.get("warnings", ())} == {
        f"warned: {name}" for name in hostile.hostile
    }
    assert "\u202e" not in page  # in the data it is an escape, in the plots a mark that turns nothing round
    assert "<" not in tags.contents["data"]


def test_the_policy_admits_this_pages_script_and_style_alone(run, write):
    run.add(run.image("a.png"))
    _, page = write(run)
    policy = policy_of(page)
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for tag in ("style", "script"):
        inner = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)[-1]
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", page)


def test_results_are_the_last_of_their_file_and_errors_end_with_success(run, write):
    image = run.image("a.png")
    run.error(image, "no such layer")
    record = run.add(image)
    run.write({**record, "probability": 0.75})
    run.error(run.root / "missing.png", "cannot read the image", "check the path")
    run.write({**record, "image": str(image), "method": None, "error": {"message": "second", "hint": ""}})
    run.write("{torn")
    run.write({"no": "record"})
    run.write({**record, "files": {"npy": "../outside.npy"}})
    summary, page = write(run)
    data = data_of(page)
    assert [r["probability"] for r in data["results"] if "error" not in r] == [0.75]
    assert [r["error"]["message"] for r in data["results"] if "error" in r] == ["cannot read the image", "second"]
    assert (summary["results"], summary["errors"]) == (1, 2)


def test_metrics_beside_the_run_are_shown_and_given_to_their_results(run, write):
    a, b = run.image("a.png"), run.image("b.png")
    run.add(a), run.add(b), run.add(b, method="cam")
    table = [{"method": "gradcam", "metric": "deletion", "mean": 0.25, "std": 0.1, "better": "<low>"}]
    values = [
        {"image": "a.png", "method": "gradcam.layer4", "target": 3, "metric": "deletion", "value": 0.2},
        {"image": "b.png", "method": "gradcam", "target": None, "metric": "deletion", "value": 0.3},
        {"image": "b.png", "method": "gradcam", "target": 9, "metric": "insertion", "value": 0.9},
    ]
    (run.folder / "evaluation.json").write_text(json.dumps({"table": table, "values": values}))
    (run.folder / "sensitivity.json").write_text(json.dumps([{"method": "cam", "metric": "ssim", "mean": 0.8}]))
    _, page = write(run)
    assert [r["numbers"] for r in data_of(page)["results"]] == [
        {"deletion": 0.2},
        {"deletion": 0.3},
        {"ssim (mean of method)": 0.8},
    ]
    assert "evaluation.json" in page and '<td class="value">0.25</td>' in page and "&lt;low&gt;" in page


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"table": 5, "values": [3]}', "null", '[{"method": null}]'])
def test_a_table_that_is_none_is_passed_over(run, write, content):
    run.add(run.image("a.png"))
    (run.folder / "evaluation.json").write_text(content)
    assert data_of(write(run)[1])["results"][0]["numbers"] == {}


def test_without_the_image_its_overlay_stands_in_and_without_both_the_page_still_opens(run, write):
    image = run.image("a.png")
    record = run.add(image)
    Image.new("RGB", (80, 60), (0, 0, 200)).save(run.folder / "a.png" / "o.png")
    run.write({**record, "files": {**record["files"], "overlay": "a.png/o.png"}})
    other = run.image("b.png")
    run.add(other)
    image.unlink(), other.unlink()
    first, second = data_of(write(run)[1])["results"]
    assert first["kind"] == "overlay" and (first["width"], first["height"]) == (80, 60) and first["box"] is None
    assert np.abs(decoded(first["map"]).astype(int) - (0, 0, 200)).max() < 12
    assert second["map"] is None


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY", b"not a map"])
def test_a_damaged_map_leaves_the_image(run, write, damage):
    record = run.add(run.image("a.png"))
    (run.folder / record["files"]["npy"]).write_bytes(damage)
    data = data_of(write(run)[1])
    assert data["results"][0]["map"] is None and data["images"][0]["src"]


def test_the_plots_count_every_result(run, write):
    image = run.image("a.png")
    for target, chance in enumerate([0.0, 0.07, 0.5, 0.999, 1.0, None]):
        run.add(image, target=target, probability=chance, seconds=float(target))
    _, page = write(run)
    assert "2, 0, 0, 0, 0, 1, 0, 0, 0, 2 maps in tenths" in page
    assert "2.5 s" in page  # the mean of 0..5


def test_nothing_to_show_is_a_usage_error(run, write, tmp_path):
    for folder in (tmp_path / "none", run.folder):
        with pytest.raises(VisxError) as caught:
            run.folder = folder
            write(run)
        assert caught.value.code == ExitCode.USAGE


@pytest.mark.skipif(os.name != "posix", reason="file names are text here")
@pytest.mark.parametrize("inline", [8_000_000, 0])
def test_names_that_are_not_utf8_are_shown(run, write, inline):
    image = run.image("plain.png", colour=(10, 200, 30))
    odd = Path(os.fsdecode(os.fsencode(run.root / "images") + b"/caf\xe9 \xff.png"))
    image.rename(odd)
    run.add(odd)
    out = Path(os.fsdecode(os.fsencode(run.folder) + b"/r\xe9sum\xe9.html"))
    summary, page = write(run, inline=inline, out=out)
    assert summary["results"] == 1
    data = data_of(page)

    def shown(source):
        if source.startswith("data:"):
            return decoded(source)
        return np.asarray(Image.open(os.fsencode(run.folder) + b"/" + unquote_to_bytes(source)))

    base = shown(data["images"][0]["src"])
    assert base.shape == (60, 80, 3) and np.abs(base[2, 2].astype(int) - (10, 200, 30)).max() < 12
    assert shown(data["results"][0]["map"]).shape[:2] == (32, 32)
    link = os.fsencode(run.folder) + b"/" + unquote_to_bytes(data["results"][0]["files"]["npy"])
    assert np.load(os.fsdecode(link)).shape == (32, 32)


def test_numeric_pictures_are_shown_by_the_range_of_the_run(run, write):
    path = run.image("a.png")
    Image.fromarray(np.linspace(0, 4095, 4800).reshape(60, 80).astype(np.uint16)).save(path)
    run.add(path, preprocessing={"range": [0.0, 4095.0], "mean": [0.5] * 3})
    bands = run.root / "images" / "b.npy"
    np.save(bands, np.random.default_rng(0).random((60, 80, 11), dtype=np.float32))
    run.add(bands, preprocessing={"range": None, "mean": [0.5] * 11})
    run.add(run.image("c.png"), preprocessing={"range": 7, "mean": "many"})
    sources = [image.get("src") for image in data_of(write(run)[1])["images"]]
    grey = decoded(sources[0])
    assert grey[0, 0, 0] < 12 and grey[-1, -1, 0] > 243
    assert decoded(sources[1]).shape == (60, 80, 3)
    assert decoded(sources[2]).shape == (60, 80, 3)
