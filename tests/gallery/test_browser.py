"""The page in a real browser, opened from disk: filtered, sorted, its slider moved, read with a keyboard; it says nothing
to the console and asks nothing of the network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM or not DRIVER, reason="chromium and chromedriver are not installed"),
]
selenium = pytest.importorskip("selenium", reason="the extra `browser` is not installed")

from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1200,900",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


class Page:
    """An open page and what tests do with it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, path: Path) -> Page:
        self.driver.get_log("performance"), self.driver.get_log("browser")
        self.driver.get(path.resolve().as_uri())
        self.until("document.querySelectorAll('#grid .card').length > 0")
        return self

    def until(self, condition: str) -> None:
        WebDriverWait(self.driver, 20).until(lambda d: d.execute_script(f"return {condition}"), condition)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector)

    def labels(self) -> list[str]:
        return self.texts("#grid .card .class")

    def choose(self, control: str, value: str) -> None:
        Select(self.one(f"#{control}")).select_by_value(value)

    def slide(self, selector: str, value: int) -> None:
        self.js(
            "const s = document.querySelector(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input', {bubbles: true}))",
            selector,
            value,
        )

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """What the page asked for (the browser's own start page asks for things, too)."""
        sent = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        asked = [m["params"] for m in sent if m["method"] == "Network.requestWillBeSent"]
        return [
            p["request"]["url"]
            for p in asked
            if p["documentURL"].split("#")[0] == self.driver.current_url.split("#")[0]
        ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield Page(driver)
    driver.quit()


@pytest.fixture
def small(run):
    """Two images, two methods, three classes: six maps and an error."""
    a, b = run.image("cat.png"), run.image("dog.png", size=(50, 80), colour=(20, 120, 40))
    for number, (image, method, label, chance) in enumerate(
        [(a, "gradcam", "tabby", 0.9), (a, "cam", "tabby", 0.9), (a, "gradcam", "lynx", 0.05), (b, "gradcam", "beagle", 0.6),
         (b, "cam", "beagle", 0.6), (b, "rise", "tabby", 0.1)]
    ):  # fmt: skip
        values = np.linspace(-1 if method == "cam" else 0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
        run.add(image, method, values, label=label, target=number, probability=chance, seconds=number / 10,
                model="resnet" if image is b else "toy", params={"relu": True}, layer=None if method == "rise" else "layer4",
                warnings=["mind the gap"] if method == "cam" else [], extras={"gap": (number * 7) % 5} if number else {})  # fmt: skip
    run.error(run.root / "broken.png", "the image is damaged", "save it again")
    return run


@pytest.mark.parametrize("inline", [8_000_000, 0])
def test_opened_from_disk_all_pictures_load_and_nothing_leaves_the_page(small, write, page, inline):
    write(small, inline=inline)
    page.open(small.folder / "report.html")
    page.until("[...document.images].length >= 12 && [...document.images].every(i => i.complete && i.naturalWidth)")
    assert page.complaints() == []
    requests = page.requests()
    assert requests and {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert all(url.startswith((small.folder.resolve().as_uri(), "data:")) for url in requests)
    assert page.js("return [...document.images].every(i => i.alt)")


def test_the_network_is_refused_to_the_page_itself(small, write, page):
    write(small)
    page.open(small.folder / "report.html")
    refused = page.driver.execute_async_script(
        "const done = arguments[0]; document.addEventListener('securitypolicyviolation', e => done(e.violatedDirective));"
        "fetch('http://127.0.0.1:9/').catch(() => 0); setTimeout(() => done('nothing'), 3000)"
    )
    assert refused == "connect-src"
    page.complaints()


def test_filters_narrow_and_combine(small, write, page):
    write(small)
    page.open(small.folder / "report.html")
    assert page.one("#count").text == "7 shown"
    page.choose("label", "tabby")
    assert len(page.texts("#grid .card")) == 3 and page.one("#count").text == "3 of 7 shown"
    page.choose("method", "rise")
    assert page.labels() == ["tabby"]
    page.choose("label", ""), page.choose("method", "")
    page.choose("model", "resnet")
    assert page.labels() == ["beagle", "beagle", "tabby"]
    page.choose("model", "")
    page.one("#text").send_keys("DOG rise")
    assert page.labels() == ["tabby"]
    page.one("#text").clear()
    page.one("#text").send_keys("mind the gap")
    assert page.labels() == ["tabby", "beagle"]
    page.one("#text").clear()
    page.one("#text").send_keys("nothing has this name")
    assert page.texts("#grid .card") == []
    page.one("#text").clear(), page.one("#text").send_keys(" ")
    page.choose("state", "errors")
    assert "the image is damaged" in page.texts("#grid .card")[0] and page.one("#count").text == "1 of 7 shown"
    page.choose("state", "warnings")
    assert page.labels() == ["tabby", "beagle"]
    assert page.complaints() == []


def test_sorts_by_probability_time_class_and_any_figure_and_what_has_none_comes_last(small, write, page):
    write(small)
    page.open(small.folder / "report.html")
    page.choose("sort", "probability")
    ascending = [0.05, 0.1, 0.6, 0.6, 0.9, 0.9]
    assert page.texts("#grid .chance") == [f"{c:.1%}" for c in ascending]
    page.one("#direction").click()
    assert page.one("#direction").get_attribute("aria-pressed") == "true"
    assert page.texts("#grid .chance") == [f"{c:.1%}" for c in reversed(ascending)]
    assert "damaged" in page.texts("#grid .card")[-1]
    page.choose("sort", "seconds")
    assert page.labels() == ["tabby", "beagle", "beagle", "lynx", "tabby", "tabby"]
    page.one("#direction").click()
    page.choose("sort", "#gap")  # figures 2 4 1 3 0 of results 1..5, none of result 0
    assert page.labels() == ["tabby", "beagle", "tabby", "beagle", "lynx", "tabby"]
    assert "gap 0" in page.texts("#grid .card")[0]
    page.choose("sort", "label")
    assert page.labels() == ["beagle", "beagle", "lynx", "tabby", "tabby", "tabby"]


def test_the_slider_goes_from_the_picture_to_the_map(small, write, page):
    write(small)
    page.open(small.folder / "report.html")

    def opacity(kind: str) -> tuple[float, float, str]:
        return tuple(page.js(
            "const f = document.querySelector(`.frame.${arguments[0]}`); const map = getComputedStyle(f.querySelector('.seen img'));"
            "return [Number(map.opacity), Number(getComputedStyle(f.querySelector('.seen'), '::before').opacity),"
            " getComputedStyle(f.querySelector('.base')).filter]", kind))  # fmt: skip

    assert opacity("map") == (0.5, 1, "none") and opacity("signed") == (1, 1, "grayscale(1)")
    page.slide("#controls .alpha", 0)
    assert opacity("map")[:2] == (0, 0) and opacity("signed") == (0, 0, "grayscale(0)")
    page.slide("#controls .alpha", 100)
    assert opacity("map")[:2] == (1, 1) and opacity("signed")[:2] == (1, 1)
    page.one("#grid .card").click()
    assert page.one("#detail .alpha").get_attribute("value") == "100"
    page.slide("#detail .alpha", 25)
    assert page.one("#controls .alpha").get_attribute("value") == "25" and opacity("map") == (0.25, 0.5, "none")


def test_the_map_lies_where_the_network_looked(small, write, page):
    write(small)
    page.open(small.folder / "report.html")
    image, seen = page.js(
        "const f = document.querySelector('#grid .frame'); const box = e => { const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] };"
        "return [box(f.querySelector('.base')), box(f.querySelector('.seen img'))]"
    )  # fmt: skip
    scale = image[2] / 80
    assert seen == pytest.approx([image[0] + 20 * scale, image[1] + 10 * scale, 40 * scale, 40 * scale], abs=1)


def test_a_result_opens_with_its_recipe_beside_the_other_maps_of_its_image(small, write, page):
    write(small)
    page.open(small.folder / "report.html")
    page.driver.find_elements(By.CSS_SELECTOR, "#grid .card")[1].click()
    assert page.one("#heading").text == "tabby 90.0% · cam layer4"
    recipe = page.one("#recipe").text
    for expected in ("mind the gap", "relu", "true", "toy", "logit", "0.1 s", "fp32"):
        assert expected in recipe
    assert page.texts("#beside .class") == ["lynx", "tabby", "tabby"]  # the other image's maps are not here
    assert page.texts("#beside .card[aria-current=true] .small")[0] == "cam layer4"
    page.driver.find_elements(By.CSS_SELECTOR, "#beside .card")[0].click()
    assert page.one("#heading").text == "lynx 5.0% · gradcam layer4"
    href = page.one("#recipe a").get_attribute("href")
    assert href == (small.folder.resolve() / "cat.png" / "gradcam.2.npy").as_uri()
    page.one("#next").click()
    assert page.one("#heading").text.startswith("beagle 60.0%")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    assert page.one("#heading").text.startswith("lynx")
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not page.js("return document.getElementById('detail').open")
    # back where one was, as soon as the browser has told the page that the dialog is closed
    WebDriverWait(page.driver, 5).until(lambda driver: "lynx" in driver.switch_to.active_element.text)
    assert page.complaints() == []


def test_everything_is_within_reach_of_the_keyboard(small, write, page):
    write(small)
    page.open(small.folder / "report.html")
    body = page.one("body")
    body.send_keys("/")
    reached = [page.driver.switch_to.active_element.get_attribute("id")]
    for _ in range(7):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        active = page.driver.switch_to.active_element
        reached.append(active.get_attribute("id") or active.get_attribute("class"))
    assert reached == ["text", "label", "method", "model", "state", "sort", "direction", "alpha"]
    page.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert "tabby" in page.driver.switch_to.active_element.text
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert "lynx" in page.driver.switch_to.active_element.text
    page.driver.switch_to.active_element.send_keys(Keys.END)
    assert "damaged" in page.driver.switch_to.active_element.text
    page.driver.switch_to.active_element.send_keys(Keys.HOME, Keys.ENTER)
    assert page.one("#heading").text.startswith("tabby 90.0%")


def test_hostile_names_are_shown_as_text(hostile, write, page):
    write(hostile)
    page.open(hostile.folder / "report.html")
    page.until("[...document.images].every(i => i.complete)")
    squeezed = [" ".join(name.split()).replace("\u202e", "\ufffd") for name in hostile.hostile]
    assert page.labels() == squeezed
    assert page.js("return document.querySelectorAll('#grid script, #grid b, #grid iframe').length") == 0
    for number in range(len(squeezed) + 1):
        page.js("document.querySelectorAll('#grid .card')[arguments[0]].click()", number)
        assert page.js("return document.querySelectorAll('dialog script, dialog b, dialog iframe').length") == 0
        page.one("#close").click()
    page.choose("label", hostile.hostile[0])
    assert page.labels() == squeezed[:1]
    page.choose("sort", f"#{hostile.hostile[1]}")
    assert page.complaints() == []
    assert {url.split(":")[0] for url in page.requests()} <= {"file", "data"}


def test_of_many_results_only_those_in_view_exist_and_all_can_be_reached(run, write, page):
    image = run.image("a.png")
    record = run.add(image)
    for number in range(3000):
        run.write({**record, "target": number, "label": f"class{number:04}",
                   "files": {**record["files"], "npy": f"a.png/{number}.npy"}})  # fmt: skip
    write(run)
    page.open(run.folder / "report.html")
    assert page.one("#count").text == "3001 shown"
    assert len(page.labels()) < 100
    page.js("scrollTo(0, document.body.scrollHeight)")
    page.until("document.querySelector('#grid').textContent.includes('class2999')")
    assert len(page.labels()) < 100 and page.labels() == sorted(page.labels())
    page.js("scrollTo(0, 0)")
    page.until("document.querySelector('#grid').textContent.includes('class0000')")
    page.one("#grid .card").send_keys(Keys.END)
    assert "class2999" in page.driver.switch_to.active_element.text
    page.one("#text").send_keys("class15 ToY")
    assert page.one("#count").text == "100 of 3001 shown"
    boxes = page.js(
        "return [...document.querySelectorAll('#grid .card')].map(e => { const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height] })"
    )
    assert len({(round(w), round(h)) for _, _, w, h in boxes}) == 1
    assert len({(round(x), round(y)) for x, y, _, _ in boxes}) == len(boxes)
    assert page.complaints() == []


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window_and_the_dark_is_dark(small, write, page, width):
    write(small)
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        page.open(small.folder / "report.html")
        assert page.js("return document.documentElement.scrollWidth") <= width
        paper = {}
        for scheme in ("light", "dark"):
            page.driver.execute_cdp_cmd(
                "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            )
            paper[scheme] = page.js("return getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(250, 250, 250)", "dark": "rgb(24, 24, 27)"}
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
