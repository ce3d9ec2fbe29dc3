"""`visx report`: the page of what `visx explain` wrote, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visx.cli.app import app
from visx.errors import ExitCode, VisxError


@pytest.fixture
def explained(tmp_path, monkeypatch, capsys):
    """A folder in which a real run has written to `out/`."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "import visx\nfrom torch import nn\n"
        "def build():\n"
        "    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))\n"
        "    return visx.wrap(net, size=32, labels=['cat', 'dog', 'cup', '<b>car</b>'])\n"
    )
    Path("images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(f"images/{name}")
    Path("images/broken.png").write_bytes(b"no picture")
    words = ["explain", "images", "-m", "gradcam,backprop,cam", "-t", "top2", "-M", "net.py:build", "-o", "out", "-q"]
    assert app([*words, "--device", "cpu"], standalone_mode=False) == ExitCode.SOME_FAILED
    capsys.readouterr()


def test_the_page_of_a_run_holds_all_of_it(explained, capsys):
    assert app(["report", "out"], standalone_mode=False) == 0
    assert capsys.readouterr().out.strip() == str(Path("out/report.html"))
    page = Path("out/report.html").read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    maps = [r for r in data["results"] if "error" not in r]
    assert len(maps) == 12 and len(data["results"]) == 13 and len(data["images"]) == 3
    assert {r["kind"] for r in maps} == {"map", "gradient", "signed"} and all(r["map"] and r["box"] for r in maps)
    assert "12 maps of 3 images, 1 error " in page


def test_it_can_be_written_elsewhere_and_speaks_json(explained, capsys):
    assert app(["report", "out", "-o", "pages/run.html", "--inline-mb", "0", "--json"], standalone_mode=False) == 0
    said = json.loads(capsys.readouterr().out)
    assert (
        said["report"] == str(Path("pages/run.html"))
        and said["results"] == 12
        and said["errors"] == 1
        and not said["inline"]
    )
    assert said["page_bytes"] == Path("pages/run.html").stat().st_size
    assert sum(p.stat().st_size for p in Path("pages/run-files").iterdir()) == said["picture_bytes"]


@pytest.mark.parametrize("folder", ["nowhere", "images"])
def test_a_folder_without_a_run_is_a_usage_error(explained, folder):
    with pytest.raises(VisxError) as caught:
        app(["report", folder], standalone_mode=False)
    assert caught.value.code == ExitCode.USAGE
