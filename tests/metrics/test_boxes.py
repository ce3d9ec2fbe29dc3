"""Metrics against annotated boxes: planted boxes, the geometry from picture to input, and files not to be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visx.errors import VisxError
from visx.images.geometry import Placement
from visx.metrics import get_metric
from visx.metrics.common.regions import Annotations, overlap, read_voc, to_input
from visx.metrics.contract import Measured

VOC = """<annotation><size><width>{w}</width><height>{h}</height><depth>3</depth></size>
<object><name>n01</name><bndbox><xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>50</ymax></bndbox></object>
<object><name>n01</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>5</xmax><ymax>6</ymax></bndbox></object>
</annotation>"""


def measure(name: str, values: np.ndarray, boxes: list[Any], seed: int = 0, **params: Any) -> Measured:
    metric = get_metric(name)
    found: Measured = metric.run(values, boxes, seed, metric.params(**params))
    return found


def planted(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    values = np.full((40, 60), -0.3)
    values[top:bottom, left:right] = 2.0
    return values


def test_a_planted_box_is_found() -> None:
    values = planted(10, 5, 30, 25)
    box = (10.0, 5.0, 30.0, 25.0)
    assert measure("localisation", values, [box]).value == 1
    assert measure("energy", values, [box]).value == pytest.approx(1)
    assert measure("pointing_game", values, [box]).value == 1


def test_half_a_box() -> None:
    values = planted(10, 5, 30, 25)
    box = (10.0, 5.0, 20.0, 25.0)
    assert measure("localisation", values, [box]).value == pytest.approx(0.5)
    assert measure("energy", values, [box]).value == pytest.approx(0.5)
    assert measure("energy", values, [(10.0, 5.0, 20.5, 25.0)]).value == pytest.approx(10.5 / 20)
    assert measure("localisation", values, [(50.0, 0.0, 60.0, 4.0), box]).value == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["localisation", "energy", "pointing_game"])
def test_a_maps_scale_does_not_matter(name: str) -> None:
    values = np.random.default_rng(0).normal(size=(40, 60))
    values[8:20, 10:30] += 2
    found = measure(name, values, [(10.0, 5.0, 30.0, 25.0)]).value
    for factor in (1e-6, 7.0):
        assert measure(name, factor * values, [(10.0, 5.0, 30.0, 25.0)]).value == pytest.approx(found)


def test_localisation_walks_the_thresholds() -> None:
    values = np.zeros((40, 60))
    values[5:25, 10:30], values[5:25, 30:50] = 1.0, 0.32
    found = measure("localisation", values, [(10.0, 5.0, 30.0, 25.0)])
    assert found.details["iou"] == pytest.approx([0.5] * 5 + [1.0] * 4)
    assert found.value == pytest.approx((2.5 + 4) / 9)
    assert measure("localisation", values, [(10.0, 5.0, 30.0, 25.0)], best=True).value == 1
    assert measure("localisation", -values, [(10.0, 5.0, 30.0, 25.0)]).value == 0


def test_the_pointing_game_has_one_point_and_a_tolerance() -> None:
    values = np.zeros((40, 60))
    values[0, 0] = 1
    assert measure("pointing_game", values, [(15.4, 0.0, 30.0, 5.0)]).value == 1
    assert measure("pointing_game", values, [(15.6, 0.0, 30.0, 5.0)]).value == 0
    assert measure("pointing_game", values, [(12.0, 12.0, 30.0, 30.0)]).value == 0  # 16.3 across the corner
    constant = [measure("pointing_game", np.ones((40, 60)), [(0, 0, 12, 40)], s, tolerance=0).value for s in range(200)]
    assert 0.1 < np.mean(constant) < 0.3  # a tie is no hit: the box holds a fifth of the pixels


def test_boxes_follow_the_crop() -> None:
    place = Placement((100.0, 50.0, 300.0, 250.0), (50, 100))
    assert to_input([(150, 100, 200, 300), (0, 0, 90, 40)], place) == [(25.0, 12.5, 50.0, 50.0)]
    with pytest.raises(VisxError, match="outside"):
        to_input([(0, 0, 90, 40)], place)


def test_overlap_of_two_boxes() -> None:
    assert overlap((0, 0, 10, 10), (5, 5, 15, 15)) == pytest.approx(25 / 175)
    assert overlap((0, 0, 10, 10), (20, 0, 30, 10)) == 0


def test_voc_and_csv_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(VOC.format(w=100, h=80))
    expected = [(10.0, 20.0, 30.0, 50.0), (0.0, 0.0, 5.0, 6.0)]
    assert Annotations(tmp_path).boxes(Path("photos/a.JPEG"), (80, 100)) == expected
    with pytest.raises(VisxError, match="is for a picture of 100x80, not 50x40"):
        Annotations(tmp_path).boxes(Path("a.JPEG"), (40, 50))
    with pytest.raises(VisxError, match="no annotated box for b"):
        Annotations(tmp_path).boxes(Path("b.JPEG"), (40, 50))
    table = tmp_path / "boxes.csv"
    table.write_text("image,left,top,right,bottom\na.jpg,10,20,30,50\nsub/a.jpg,1,2,3,4\na.jpg,0,0,5,6\n")
    assert Annotations(table).boxes(Path("x/a.jpg"), (80, 100)) == expected
    assert Annotations(table).boxes(Path("x/sub/a.jpg"), (80, 100)) == [(1.0, 2.0, 3.0, 4.0)]
    table.write_text("a.jpg,10,20,30\n")
    with pytest.raises(VisxError, match="every row must be image,left,top,right,bottom"):
        Annotations(table)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>', "DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>', "DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "http://127.0.0.1/a.dtd"><annotation/>', "DOCTYPE"),
        ('<?xml version="1.0" encoding="idna"?><annotation/>', "no Pascal VOC annotation"),
        ('<?xml version="1.0" encoding="none"?><annotation/>', "no Pascal VOC annotation"),
        ("<annotation>", "no Pascal VOC annotation"),
        ("", "no Pascal VOC annotation"),
        (VOC.replace("<xmin>10", "<xmin>nan"), "no Pascal VOC annotation"),
        (VOC.replace("<xmin>10", "<xmin>31"), "is no box"),
    ],
)
def test_hostile_and_broken_xml_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(text.format(w=100, h=80) if "{w}" in text else text)
    with pytest.raises(VisxError, match=said):
        read_voc(path, (80, 100))
