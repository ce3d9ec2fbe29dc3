"""How a picture becomes the input, on every command that computes: --range, --size, --mean and their like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

RAMP = np.arange(48 * 64).reshape(48, 64)  # up to 3071: more than half of nothing but 12 bits
MORE = """
def eleven():
    net = Net()
    net.conv = nn.Conv2d(11, 8, 3, padding=1)
    return net
class Last(Net):
    def forward(self, x):
        assert x.shape[-1] == 3
        return super().forward(x.permute(0, 3, 1, 2))
def last(): return Last()
def first(): return Net()
"""
ELEVEN = ",".join(["0.5"] * 11)


@pytest.fixture
def pictures(visx: Any) -> Any:
    with Path("nets.py").open("a") as file:
        file.write(MORE)
    Image.fromarray(RAMP.astype(np.uint16)).save("ct.png")
    np.save("ct.npy", np.clip(RAMP / 4095, 0, 1).astype(np.float32))
    return visx


def manifest(folder: str = "visx-out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(folder, "manifest.jsonl").read_text().splitlines()]


def test_without_a_range_the_image_fails_with_its_values(pictures: Any) -> None:
    for command in (("explain",), ("predict",), ("compare",), ("evaluate",)):
        found = pictures(*command, "ct.png", "-M", "nets.py:good")
        assert found.code == 1 and "values are 0..3071" in found.err, command
    assert "--range 0,4095" in pictures("predict", "ct.png", "-M", "nets.py:good").err
    assert "--range 0,4095" in pictures("explain", "ct.png", "-M", "nets.py:good").err
    assert pictures("explain", "ct.png", "cat.png", "-M", "nets.py:good").code == 3


def test_a_range_is_the_float_picture_and_part_of_the_recipe(pictures: Any) -> None:
    def explained(*args: str) -> dict[str, Any]:
        found = pictures("explain", *args, "-M", "nets.py:good", "-m", "backprop", "-t", "1", "--json")
        assert found.code == 0
        return found.rows[0]

    wanted, narrow = explained("ct.npy"), explained("ct.png", "--range", "0,2047")
    record = explained("ct.png", "--range", "0,4095")
    assert record["score"] == pytest.approx(wanted["score"], rel=1e-6)
    assert record["preprocessing"]["range"] == [0, 4095] and wanted["preprocessing"]["range"] is None
    assert record["remarks"] == ["values 0..4095 are shown as black..white (as --range says)"]
    assert "floats of 0..1" in wanted["remarks"][0]
    assert record["recipe"] != narrow["recipe"] and record["files"]["npy"] != narrow["files"]["npy"]
    assert abs(record["score"] - narrow["score"]) > 1e-5
    again = pictures("explain", "ct.png", "-M", "nets.py:good", "-m", "backprop", "-t", "1", "--range", "0,4095.0")
    assert again.code == 0 and "1 already there" in again.err
    rows = [pictures("predict", name, "-M", "nets.py:good", "--json", *more).rows[0]["predictions"]
            for name, *more in (("ct.npy",), ("ct.png", "--range", "0,4095"))]  # fmt: skip
    assert [p["logit"] for p in rows[0]] == pytest.approx([p["logit"] for p in rows[1]], rel=1e-6)


def test_other_commands_take_the_range(pictures: Any) -> None:
    shared = ("ct.png", "-M", "nets.py:good", "--range", "0,4095", "-q")
    assert pictures("evaluate", *shared, "--metrics", "deletion", "-p", "deletion.steps=4").code == 0
    assert pictures("sensitivity", *shared, "--vary", "noise=0,0.1", "--metrics", "ssim").code == 0
    assert pictures("compare", *shared).code == 0
    assert pictures("explain", *shared).code == 0 and pictures("report", "visx-out").code == 0


def test_remarks_are_said_once_a_run(pictures: Any) -> None:
    Path("in").mkdir()
    for number in range(3):
        Image.fromarray((RAMP * 20).astype(np.uint16)).save(f"in/{number}.png")
    Path("in/x.jxl").touch()
    found = pictures("explain", "in", "-M", "nets.py:good")
    assert found.code == 0
    assert (
        found.err.count("values 0..65535") == 1 and found.err.count("passing over 1 file of other formats: 1 .jxl") == 1
    )
    assert all(len(record["remarks"]) == 1 for record in manifest())
    eight = pictures("explain", "cat.png", "-M", "nets.py:good", "--range", "0,9")
    assert eight.code == 0 and "8 bits are shown as they are" in eight.err


def test_the_whole_preprocessing_is_in_the_recipe(pictures: Any) -> None:
    seen = {}
    for options in (
        (), ("--size", "40"), ("--size", "40", "--resize", "50"), ("--size", "40", "--squash"), ("--mean", "0,0,0"),
        ("--std", "1,1,1"), ("--interpolation", "bicubic"), ("--size", "40,48", "--resize", "50x60"),
    ):  # fmt: skip
        found = pictures("explain", "cat.png", "-M", "nets.py:first", "-m", "backprop", "--json", *options)
        assert found.code == 0, (options, found.err)
        seen[found.rows[0]["recipe"], found.rows[0]["files"]["npy"]] = options
    assert len(seen) == 8
    sizes = [tuple(record["input_size"]) for record in manifest()]
    assert sizes.count((40, 40)) == 3 and sizes.count((40, 48)) == 1
    assert np.load(Path("visx-out", manifest()[-1]["files"]["npy"])).shape == (40, 48)


def test_channels_and_layout(pictures: Any) -> None:
    np.save("e.npy", np.random.default_rng(0).random((40, 50, 11), dtype=np.float32))
    eleven = ("-M", "nets.py:eleven", "--size", "32", "--mean", ELEVEN, "--std", ELEVEN)
    found = pictures("explain", "e.npy", *eleven, "-m", "backprop,occlusion", "--json", "-o", "bands")
    assert found.code == 0 and all(len(row["preprocessing"]["mean"]) == 11 for row in found.rows)
    assert pictures("report", "bands").code == 0
    found = pictures("explain", "cat.png", *eleven)
    assert found.code == 1 and "the picture has 3 channels, and the network takes 11" in found.err
    found = pictures("explain", "cat.png", "-M", "nets.py:eleven")
    assert found.code != 0 and "--mean, --std" in found.err
    rows = [
        pictures("explain", "cat.png", "-M", f"nets.py:{name}", "-m", "backprop", "-t", "1", "--json", *more).rows[0]
        for name, *more in (("first",), ("last", "--layout", "NHWC"))
    ]
    assert rows[0]["score"] == pytest.approx(rows[1]["score"], rel=1e-6)
    assert rows[0]["max"] == pytest.approx(rows[1]["max"], rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        ("--size", "x"), ("--size", "0"), ("--size", "1,2,3"), ("--resize", "1.5"), ("--squash", "--resize", "9"), ("--mean", "a"),
        ("--mean", "0.5"), ("--std", "0,0,0"), ("--layout", "CHW"), ("--interpolation", "cubic"), ("--range", "5"),
        ("--range", "5,5"), ("--range", "nan,1"), ("--range", "1,2,3"),
    ],
)  # fmt: skip
def test_wrong_values_are_usage_errors(pictures: Any, options: tuple[str, ...]) -> None:
    found = pictures("predict", "cat.png", "-M", "nets.py:first", *options)
    assert found.code == 2, found.err


def test_every_command_that_computes_has_them() -> None:
    from typer.main import get_command

    from visx.cli.app import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    wanted = {"--size", "--resize", "--squash", "--interpolation", "--mean", "--std", "--layout", "--range"}
    for name in ("explain", "predict", "compare", "evaluate", "sensitivity", "layers"):
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert wanted <= options, name
        assert all(getattr(p, "help", "x") for p in commands[name].params if p.name in ("model", "device", "range")), (
            name
        )


def test_no_option_of_the_built_in_model_goes_without_its_recipe(pictures: Any) -> None:
    names = [
        pictures("explain", "cat.png", "-t", "1", "--json", *options).rows[0]["files"]["npy"]
        for options in ((), ("--size", "96"), ("--mean", "0,0,0"), ("--range", "0,4095"), ("--layout", "NCHW"))
    ]
    assert names[0] == names[4] == "cat.png/gradcam.bn2.1-goldfish.npy" and len(set(names)) == 4
