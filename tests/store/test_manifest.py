"""The journal: mended, indexed, locked."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import filelock
import pytest

from visx.errors import VisxError
from visx.files import to_json
from visx.store.lock import GATE, SHARD, WHOLE
from visx.store.manifest import Journal, holds_results, records
from visx.store.record import Record


def values(name: str, rank: int = 0, targets: int = 1, settings: str = "s", **more: Any) -> dict[str, Any]:
    return {
        "schema_version": 1, "image": f"photos/{name}", "method": "gradcam", "layer": "relu", "label": "cat", "probability": 0.5,
        "name": name, "settings": settings, "rank": rank, "targets": targets, "files": {"npy": "x", "overlay": None},
        "input_size": [4, 4], "warnings": [], "image_stat": [1, 2], "image_sha256": "", "rendering": None,
        "raw_channels": False, **more,
    }  # fmt: skip


def record(*args: Any, **more: Any) -> Record:
    return Record.of_values(values(*args, **more))


def test_it_mends_itself(tmp_path: Path) -> None:
    good, error = b'{"a": 1}\n', to_json({"image": "x", "error": {"code": 1}}).encode() + b"\n"
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(good + error + b"\xff\n" + good + b'{"torn": ')
    with Journal(tmp_path) as journal:
        journal.append([record("b")])
    assert [r.as_dict() for r in records(tmp_path)] == [{"a": 1}, {"a": 1}, values("b")]
    assert path.read_bytes().endswith(to_json(values("b")).encode() + b"\n")
    assert error not in path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.jsonl"]


def test_a_job_is_found_when_all_of_its_targets_are_there(tmp_path: Path) -> None:
    whole = [record("a", 0, 2), record("a", 1, 2)]
    with Journal(tmp_path) as journal:
        journal.append(whole)
        journal.append([record("b", 0, 2)])
    journal = Journal(tmp_path)
    journal.read()
    assert journal.find("a", "s") == whole
    assert journal.find("b", "s") == journal.find("a", "other") == journal.find("c", "s") == []


def test_the_last_line_wins_and_other_journals_count(tmp_path: Path) -> None:
    with Journal(tmp_path, (1, 2)) as journal:
        journal.append([record("a", label="old")])
    with Journal(tmp_path) as journal:
        journal.append([record("b", label="first"), record("b", label="last")])
        journal.read()
        assert journal.find("a", "s")[0].label == "old"
        assert journal.find("b", "s")[0].label == "last"


@pytest.mark.parametrize(
    "odd",
    [[], 7, {}, values("a", files={"npy": 3}), values("a", input_size=[1]), values("a", rank="0"),
     {**values("a"), "schema_version": 99}, {**values("a"), "settings": None}, {**values("a"), "method": []},
     {k: v for k, v in values("a").items() if k != "image"}, {k: v for k, v in values("a").items() if k != "label"},
     values("a", probability="high"), values("a", files={"npy": None, "overlay": None}), values("a", files={"npy": "x"}),
     values("a", error={"code": 1}), values("a", extras=json.loads("[" * 60 + "]" * 60)),
     values("a", rank=0, targets=2), values("a", rank=1, targets=1)],
)  # fmt: skip
def test_lines_that_somebody_took_apart_are_passed_over(tmp_path: Path, odd: Any) -> None:
    (tmp_path / "manifest.jsonl").write_text(json.dumps(odd) + "\n" + json.dumps(values("b")) + "\n")
    with Journal(tmp_path) as journal:
        journal.read()
        assert journal.find("a", "s") == []
        assert journal.find("b", "s")


def test_a_failed_append_leaves_no_torn_line(tmp_path: Path) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            return int(self.file.write(data[:5]))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with Journal(tmp_path) as journal:
        journal.append([record("a")])
        journal._file = Full(journal._file)  # type: ignore[assignment]
        with pytest.raises(VisxError, match="No space left"):
            journal.append([record("b")])
    assert (tmp_path / "manifest.jsonl").read_text() == to_json(values("a")) + "\n"


def test_a_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").mkdir()
    with pytest.raises(VisxError, match="manifest"), Journal(tmp_path):
        pass


def test_a_name_deeper_in_a_record_is_not_its_name(tmp_path: Path) -> None:
    shuffled = {"name": "a", "settings": "s", "rank": 0} | values("a") | {"weights": {"by": 1, "name": "b"}, "last": 1}
    foreign = values("a", label="foreign") | {"name": "c", "more": {"by": 1, "name": "b", "settings": "s", "rank": 0}}
    (tmp_path / "manifest.jsonl").write_text(to_json(shuffled) + "\n" + to_json(foreign) + "\n")
    with Journal(tmp_path) as journal:
        journal.read()
        assert [found.as_dict() for found in journal.find("a", "s")] == [shuffled]
        assert [found.as_dict() for found in journal.find("c", "s")] == [foreign]
        assert journal.find("b", "s") == []


def test_two_names_of_one_hash_are_told_apart(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.append([record("a")])
        journal.read()
        journal._index[hash(("b", "s", 0))] = journal._index[hash(("a", "s", 0))]
        assert journal.find("b", "s") == []


def test_a_record_is_parsed_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(tmp_path) as journal:
        start = {"weights": {"by": 1, "name": "w"}, "extras": {"": "x" * 10_000}}
        journal.append([Record.of_values({**start, **values(str(i))}) for i in range(5)])
    parsed: list[int] = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: (parsed.append(len(text)), loads(text))[1])
    journal = Journal(tmp_path)
    journal.read()
    assert len(parsed) == 5
    assert max(parsed) < 1000
    assert journal.find("3", "s")[0].name == "3"


def test_an_error_is_no_result_wherever_it_stands(tmp_path: Path) -> None:
    """A run mends its own journal; those of shards it leaves alone."""
    (tmp_path / "manifest.1-of-2.jsonl").write_text(to_json(values("a", error={"code": 1})) + "\n")
    with Journal(tmp_path) as journal:
        journal.read()
        assert journal.find("a", "s") == []


def test_locks_that_killed_runs_left_hold_nobody_up_and_go(tmp_path: Path) -> None:
    for name in (GATE, WHOLE, f"{SHARD}1-of-2", f"{SHARD}7-of-9"):
        (tmp_path / name).touch()
    with Journal(tmp_path, (1, 2)) as shard:
        shard.append([record("a")])
        with pytest.raises(VisxError, match="another run"), Journal(tmp_path):
            pass
        assert shard.path.is_file(), "the shard that is at work keeps its lock"
        with pytest.raises(VisxError, match="another run"), Journal(tmp_path, (1, 2)):
            pass
    with Journal(tmp_path):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.1-of-2.jsonl", "manifest.jsonl"]


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, ""), OSError(errno.EOPNOTSUPP, "")])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with Journal(tmp_path) as journal:
        journal.append([record("a")])
    assert len(list(records(tmp_path))) == 1


def test_a_lock_that_may_not_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with pytest.raises(VisxError, match=r"cannot write .*Permission denied"), Journal(tmp_path):
        pass


def test_which_folders_hold_results(tmp_path: Path) -> None:
    failed = to_json(values("a", error={"code": 1})) + "\n"
    path, names = tmp_path / "manifest.1-of-2.jsonl", ["manifest.1-of-2.jsonl", "a.png"]
    shuffled = to_json(dict(reversed(values("a").items()))) + "\n"
    for text, expected in (
        (failed + to_json(values("a")) + "\n", True),
        (shuffled, True),
        (failed, False),
        ('{"files": {"npy": "a"}}\n', False),
        ('{"schema_version": 1, "files": {"npy": ', False),
        ("", False),
    ):
        path.write_text(text)
        assert holds_results(tmp_path, names) is expected
    path.write_text(shuffled)
    assert not holds_results(tmp_path, ["a.png", "manifest.json"])
