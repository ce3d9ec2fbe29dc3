"""The speed of the page of a large run: writing, opening to the first picture, scrolling, filtering, sorting.

The run is synthetic (no network computes it): every result has its own smooth map, every image its own picture. Needs
chromium, chromedriver and `pip install 'visx[browser]'`.

    python benchmarks/report.py --results 10000 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select

METHODS = ("gradcam", "cam", "rise", "occlusion", "lime")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1400,1000",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
FIRST_PICTURE = """
const done = arguments[0], begin = performance.timeOrigin;
const look = () => {
  const image = document.querySelector('#grid img');
  if (image && image.complete && image.naturalWidth) requestAnimationFrame(() => done(performance.timeOrigin + performance.now() - begin));
  else setTimeout(look, 5);
};
look();
"""


def synthesise(folder: Path, results: int, classes: int = 1000) -> None:
    """A run of `results` maps, five methods an image, as `visx explain` would leave it."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(-(-results // len(METHODS))):
        image = folder / "images" / f"{number:05}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(image), cv2.resize(coarse, (512, 384), interpolation=cv2.INTER_CUBIC))
        target, chance = int(random.integers(classes)), float(random.random())
        (folder / "run" / image.name).mkdir(parents=True)
        for method in METHODS[: results - len(lines)]:
            values = cv2.resize(random.normal(size=(7, 7)).astype(np.float32), (224, 224))
            name = f"{image.name}/{method}.{target}.npy"
            np.save(folder / "run" / name, values if method in ("cam", "occlusion", "lime") else np.maximum(values, 0))
            record = {
                "schema_version": 1, "image": str(image), "method": method, "params": {}, "model": "synthetic",
                "weights": {"name": "none", "sha256": "0" * 64}, "layer": None, "target": target,
                "label": f"class {target}", "score": 10 * chance, "score_kind": "logit", "probability": chance,
                "seed": 0, "device": "cpu", "precision": "fp32", "input_size": [224, 224], "crop": [64, 0, 448, 384],
                "min": 0.0, "max": 1.0, "extras": {"figure": float(random.random())}, "warnings": [], "seconds": 0.1,
                "rendering": {"colormap": "turbo", "alpha": 0.5}, "files": {"npy": name, "overlay": None},
            }  # fmt: skip
            lines.append(json.dumps(record))
    (folder / "run" / "manifest.jsonl").write_text("\n".join(lines) + "\n")


def browser(profile: Path) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


def opened(page: Path) -> tuple[float, dict[str, float]]:
    """Seconds to the first picture in a fresh browser, and seconds of what people do then."""
    profile = Path(tempfile.mkdtemp())
    driver = browser(profile)
    try:
        driver.get("about:blank")
        driver.execute_cdp_cmd("Page.enable", {})
        begun = time.perf_counter()
        driver.get(page.as_uri())
        driver.execute_async_script(FIRST_PICTURE)
        first = time.perf_counter() - begun
        did = {}

        def timed(name: str, work: object) -> None:
            begun = time.perf_counter()
            work()  # type: ignore[operator]
            driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
            did[name] = time.perf_counter() - begun

        timed("scroll to the middle", lambda: driver.execute_script("scrollTo(0, document.body.scrollHeight / 2)"))
        timed("pictures there", lambda: driver.execute_async_script(FIRST_PICTURE))
        timed("sort", lambda: Select(driver.find_element(By.ID, "sort")).select_by_value("#figure"))
        timed("filter", lambda: driver.find_element(By.ID, "text").send_keys("7"))
        did["cards in the page"] = len(driver.find_elements(By.CSS_SELECTOR, "#grid .card"))
        return first, did
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    from visx.cli.talk import Talk
    from visx.gallery import write_report

    folder = Path(tempfile.mkdtemp())
    try:
        synthesise(folder, asked.results)
        begun = time.perf_counter()
        talk = Talk(quiet=True)
        made = write_report(folder / "run", folder / "run" / "report.html", 8_000_000, talk.say, talk.progress)
        print(f"written in {time.perf_counter() - begun:.1f} s: {made['results']} results, page {made['page_bytes'] / 1e6:.1f} MB, "
              f"pictures {made['picture_bytes'] / 1e6:.1f} MB {'in it' if made['inline'] else 'beside it'}")  # fmt: skip
        rounds = [opened(folder / "run" / "report.html") for _ in range(asked.rounds)]
        times = [first for first, _ in rounds]
        print(f"first picture: median {statistics.median(times):.2f} s, worst {max(times):.2f} s of {asked.rounds}")
        for name in rounds[0][1]:
            print(f"{name}: median {statistics.median(did[name] for _, did in rounds):.2f}")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
