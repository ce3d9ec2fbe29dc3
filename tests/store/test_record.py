"""The record: lines of the manifest as values with types, and back."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from visx.errors import VisxError
from visx.files import to_json
from visx.store.record import Failure, Record, is_failure, key_of, map_of, parse, parse_result, stays_inside

# A line as an earlier visx wrote it: without `outputs`, `preprocessing`, `remarks`, `fingerprint` and `written`.
OLDER = {
    "schema_version": 1, "image": "photos/a.png", "method": "gradcam", "params": {"relu": True}, "model": "toy",
    "weights": {"name": "random", "sha256": "0"}, "layer": "relu", "layer_shape": [8, 4, 4], "target": 3, "label": "cat",
    "score": 2.5, "score_kind": "logit", "probability": 0.5, "seed": 0, "device": "cpu", "precision": "fp32",
    "input_size": [32, 32], "crop": [0.0, 0.0, 8.0, 8.0], "min": 0.0, "max": 1.0, "extras": {}, "warnings": [],
    "files": {"npy": "a.png/x.npy", "overlay": None, "native": None, "channels": None}, "name": "a.png", "rendering": None,
    "raw_channels": False, "image_sha256": "1", "image_stat": [1, 2], "settings": "s", "recipe": "r", "seconds": 0.5,
    "targets": 1, "rank": 0,
}  # fmt: skip


def line(**changed: Any) -> bytes:
    return to_json({**OLDER, **changed}).encode() + b"\n"


def test_a_line_comes_back_to_the_byte() -> None:
    for text in (line(), line(fingerprint=None, remarks=["16 bits"]), line(layer="\udcff\n")):
        record = parse_result(text)
        assert record is not None and record.is_whole
        assert record.line.encode() + b"\n" == text


def test_a_record_that_is_made_writes_every_key_in_order_and_an_objective_only_where_it_has_one() -> None:
    keys = [field.name for field in dataclasses.fields(Record) if field.name not in ("others", "flaws")]
    assert list(json.loads(Record(objective={"kind": "out", "index": 1}).line)) == keys
    assert list(json.loads(Record().line)) == [key for key in keys if key != "objective"]
    assert [key for key in keys if key in OLDER] == list(OLDER)


def test_a_result_without_files_says_what_was_explained_and_how_long_that_took() -> None:
    values = Record(target=3, seconds=0.25, name="a.png").without_files()
    assert list(values)[-2:] == ["warnings", "seconds"] and values["target"] == 3
    assert not {"name", "files", "rank", "objective"} & values.keys()


def test_an_older_line_has_defaults_and_does_not_claim_them() -> None:
    record = parse_result(line())
    assert record is not None
    assert (record.written, record.remarks, record.map_time) == (None, (), 0)
    assert "written" not in record.as_dict()


def test_keys_that_visx_does_not_know_stay() -> None:
    record = parse_result(line(mine=[1], line="x", flaws=2))
    assert record is not None and record.is_whole
    assert record.as_dict() == {**OLDER, "mine": [1], "line": "x", "flaws": 2}


@pytest.mark.parametrize("key", [key for key in OLDER if key != "schema_version"])
def test_a_value_of_another_type_is_left_out(key: str) -> None:
    record = parse_result(line(**{key: {"other": 1} if not isinstance(OLDER[key], (dict, type(None))) else 7}))
    assert record is not None and list(record.flaws) == [key] and not record.is_whole
    assert key not in record.as_dict() and record.line


@pytest.mark.parametrize(
    "lacking", ["image", "method", "layer", "label", "probability", "name", "settings", "rank", "targets", "files",
                "input_size", "warnings", "image_stat", "image_sha256", "rendering", "raw_channels"],
)  # fmt: skip
def test_what_resuming_needs(lacking: str) -> None:
    record = Record.of_values({key: value for key, value in OLDER.items() if key != lacking})
    assert not record.flaws and not record.is_whole


@pytest.mark.parametrize(
    "changed",
    [{"files": {"npy": "x"}}, {"files": {"npy": None, "overlay": None}}, {"files": {"npy": "x", "overlay": 1}},
     {"input_size": [1]}, {"input_size": [1, "2"]}, {"schema_version": 2}],
)  # fmt: skip
def test_what_is_not_whole(changed: dict[str, Any]) -> None:
    record = parse_result(line(**changed))
    assert record is not None and not record.is_whole


def test_what_a_line_is_found_by_wherever_it_stands() -> None:
    shuffled = to_json(dict(reversed(OLDER.items()))).encode()
    for text in (line(), shuffled, line(more={"by": 1, "name": "b", "settings": "t", "rank": 2})):
        assert key_of(text) == ("a.png", "s", 0)
        assert map_of(text) == "a.png/x.npy"
    for text in (line(name=None), line(rank="0"), b"{torn", b"[]", b""):
        assert key_of(text) is None
    assert [map_of(text) for text in (line(files=7), line(files={"npy": 7}), b"{torn")] == ["", "", ""]


def test_the_index_of_a_class_and_of_a_value() -> None:
    assert Record(target=3).index == 3
    assert Record(objective={"kind": "out", "index": 1}).index == 1
    assert Record().index is None and Record(objective={"index": "1"}).index is None


def test_a_failure_comes_back() -> None:
    failure = Failure.of_error("a.png", None, VisxError('torn, "error": ', hint="check it"))
    text = failure.line.encode() + b"\n"
    assert list(json.loads(text)) == ["schema_version", "image", "method", "error"]
    assert parse(text) == failure and parse_result(text) is None and is_failure(text)
    assert not is_failure(line(label=', "error": '))


@pytest.mark.parametrize("error", [None, 7, [], "x"])
def test_a_failure_that_somebody_took_apart_names_no_image(error: Any) -> None:
    failure = parse(line(error=error))
    assert isinstance(failure, Failure) and failure.image == "" and failure.error == {}


@pytest.mark.parametrize("text", [b"", b"{torn", b"[1]", b"7", b"\xff", b'{"extras": ' + b"[" * 60 + b"]" * 60 + b"}"])
def test_what_is_no_object_is_no_record(text: bytes) -> None:
    assert parse(text) is None


def test_names_that_lead_out() -> None:
    assert stays_inside("a/b.npy") and stays_inside("a..b")
    for name in ("", "/a", "../a", "a/../../b", "a\\b", None, 7):
        assert not stays_inside(name)
    links = Record(files={"npy": "a/b", "overlay": "../c", "native": None}).links
    assert links == {"npy": "a/b"}
