"""The record of a result: one line of the manifest, with types. This is the only file that knows the manifest's keys.

The fields of `Record` are the keys, in the order in which a line has them. A line of an older visx may lack some; the record
then has their defaults, and `as_dict` leaves them out. Nothing in a line is trusted: a value of another type than its field's
is left out, too, and named in `flaws`.

A line can have a thousand bytes and more, and a manifest a million lines. So what a result is found by (`key_of`, `map_of`)
is read from the end of a line, where visx writes it; a line whose keys are in another order is parsed whole.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Union, get_args, get_origin, get_type_hints

from visx.errors import VisxError
from visx.files import SCHEMA_VERSION, digest, to_json
from visx.store.lines import parse_object
from visx.targets.contract import reference_of

JSON = Mapping[str, Any]


@dataclass(frozen=True)
class Record:
    """One result: what was explained and how, and where its files are. Paths of files are relative to the folder of the run.

    `image` is the path as it was given, `name` the image's folder in the run; `target` the class index, None where
    `objective` says what was explained; `crop` (left, top, right, bottom) in pixels of the image; `rank` the place of this
    target among the `targets` that one `--target` named. `written` has of every file its size, its time of modification (ns)
    and the start of its sha256; `settings` is the digest of all that the result follows from but the image, `recipe` with it.
    """

    schema_version: int = 0
    image: str = ""
    method: str = ""
    params: JSON | None = None
    model: str = ""
    weights: JSON | None = None
    outputs: JSON | None = None
    preprocessing: JSON | None = None
    layer: str | None = None
    layer_shape: Sequence[int] | Sequence[Sequence[int]] | None = None  # of `A+B` one shape a layer
    target: int | None = None
    objective: JSON | None = None  # not written where it is None
    label: str = ""
    score: float | None = None
    score_kind: str = ""
    probability: float | None = None
    seed: int = 0
    device: str = ""
    precision: str = ""
    input_size: Sequence[int] = ()
    crop: Sequence[float] = ()
    min: float | None = None
    max: float | None = None
    extras: JSON | None = None
    warnings: Sequence[str] = ()
    remarks: Sequence[str] = ()
    fingerprint: JSON | None = None
    files: Mapping[str, str | None] | None = None
    written: JSON | None = None
    name: str = ""
    rendering: JSON | None = None
    raw_channels: bool = False
    image_sha256: str = ""
    image_stat: Sequence[int] = ()
    settings: str = ""
    recipe: str = ""
    seconds: float | None = None
    targets: int = 0
    rank: int = 0
    # no keys of their own:
    others: JSON | None = None  # what a line has besides
    flaws: Sequence[str] = ()  # keys whose values in the line are of another type than their fields

    @classmethod
    def of_values(cls, values: JSON) -> Record:
        """The record of the JSON object of a line."""
        # __init__ would fill in what the line lacks, and take ten times as long.
        record = object.__new__(cls)
        try:
            is_sound = all(map(isinstance, values.values(), map(_TYPES.__getitem__, values)))
        except KeyError:  # a key that visx does not know
            is_sound = False
        if is_sound:
            record.__dict__.update(values)
        else:
            known = {key: value for key, value in values.items() if key in _TYPES and isinstance(value, _TYPES[key])}
            others = {key: value for key, value in values.items() if key not in _TYPES}
            flaws = [key for key in values if key not in known and key not in others]
            record.__dict__.update(known, others=others, flaws=flaws)
        return record

    def as_dict(self) -> dict[str, Any]:
        """As JSON: keys in their order, last those that visx does not know."""
        values = dict(vars(self))
        values.pop("flaws", None)
        others = values.pop("others", None) or {}
        if values.get("objective") is None:
            values.pop("objective", None)
        return values | others

    def without_files(self) -> dict[str, Any]:
        """As JSON, of a result that is not stored."""
        values = self.as_dict()
        return {key: values[key] for key in (*_OF_ANSWER, "seconds") if key in values}

    @property
    def line(self) -> str:
        """The line of the manifest, without its newline."""
        return to_json(self.as_dict())

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing that resuming a run and showing the result need, and nothing is of another type."""
        values, files = vars(self), self.files or {}
        return (
            self.schema_version == SCHEMA_VERSION
            and not self.flaws
            and values.keys() >= _RESUMED
            and "overlay" in files
            and isinstance(files.get("npy"), str)
            and set(map(type, files.values())) <= {str, types.NoneType}
            and len(self.input_size) == 2
            and set(map(type, self.input_size)) == {int}
        )

    @property
    def key(self) -> tuple[str, str, int]:
        """What the result is found by: the image's name, the digest of the settings, the rank of the target."""
        return self.name, self.settings, self.rank

    @property
    def has_key(self) -> bool:
        """Whether the line says what the result is found by."""
        return "image" in vars(self) and vars(self).keys() >= _KEY

    @property
    def npy(self) -> str:
        """The file of the map; empty where the record names none."""
        return self._file("npy")

    @property
    def overlay(self) -> str:
        """The file of the picture; empty where there is none."""
        return self._file("overlay")

    def _file(self, kind: str) -> str:
        name = (self.files or {}).get(kind)
        return name if isinstance(name, str) else ""

    @property
    def links(self) -> dict[str, str]:
        """The files by their kind (`npy`, `overlay`, ...), but for paths that lead out of the folder of the run."""
        return {kind: name for kind, name in (self.files or {}).items() if name is not None and stays_inside(name)}

    @property
    def folder(self) -> str:
        """The folder of the result in that of the run: the image's name below its input root."""
        return str(PurePosixPath(self.npy).parent)

    @property
    def identity(self) -> JSON:
        """What was explained (`Identity.json`): the `objective`, or the class."""
        return {"kind": "class", "index": self.target} if self.objective is None else self.objective

    @property
    def reference(self) -> int | str:
        """How tables refer to what was explained, and what tells it from all else that was explained of an image."""
        return reference_of(self.identity)

    @property
    def index(self) -> int | None:
        """The number of the class, of a regression's value or of a unit's channel; None where there is none."""
        index = self.identity.get("index")
        return index if isinstance(index, int) else None

    @property
    def variant(self) -> str:
        """A digest of parameters, score and seed: what may differ between two results of one method, layer and target."""
        values = vars(self)
        return digest([values.get(key) for key in ("params", "score_kind", "seed")])

    @property
    def map_time(self) -> int:
        """When the map was written, in nanoseconds; 0 where the record does not say."""
        of_map = (self.written or {}).get("npy")
        time = of_map[1] if isinstance(of_map, list) and len(of_map) == 3 else 0
        return time if isinstance(time, int) else 0


@dataclass(frozen=True)
class Failure:
    """An image that failed, or one method on it: `error` is {code, message, hint}."""

    schema_version: int
    image: str
    method: str | None
    error: JSON

    @classmethod
    def of_error(cls, image: str, method: str | None, error: VisxError) -> Failure:
        """The failure that an error was."""
        return cls(
            SCHEMA_VERSION, image, method, {"code": int(error.code), "message": error.message, "hint": error.hint}
        )

    @classmethod
    def of_values(cls, values: JSON) -> Failure:
        """The failure of the JSON object of a line; `image` is empty where the line does not say what failed."""
        version, image, method, error = (values.get(key) for key in ("schema_version", "image", "method", "error"))
        return cls(
            version if isinstance(version, int) else 0,
            image if isinstance(image, str) and isinstance(error, dict) else "",
            method if isinstance(method, str) else None,
            error if isinstance(error, dict) else {},
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON, keys in their order."""
        return dict(vars(self))

    @property
    def line(self) -> str:
        """The line of the manifest, without its newline."""
        return to_json(self.as_dict())


def parse(line: bytes) -> Record | Failure | None:
    """What a line of a manifest says; None where it is no JSON object."""
    values = parse_object(line)
    if values is None:
        return None
    return Failure.of_values(values) if "error" in values else Record.of_values(values)


def parse_result(line: bytes) -> Record | None:
    """The result on a line; None where there is none."""
    record = parse(line)
    return record if isinstance(record, Record) else None


def key_of(line: bytes) -> tuple[str, str, int] | None:
    """What the result on a line is found by (`Record.key`); None where the line does not say. Nothing else is looked at."""
    values = _end_of(line, b', "name": ', _KEY)
    name, settings, rank = values.get("name"), values.get("settings"), values.get("rank")
    if isinstance(name, str) and isinstance(settings, str) and isinstance(rank, int):
        return name, settings, rank
    return None


def map_of(line: bytes) -> str:
    """The file of the map that the line speaks of (`Record.npy`). Nothing else is looked at."""
    files = _end_of(line, b', "files": ', {"files"}).get("files")
    name = files.get("npy") if isinstance(files, dict) else None
    return name if isinstance(name, str) else ""


def is_failure(line: bytes) -> bool:
    """Whether a line, as visx writes it, is of something that failed."""
    return b', "error": ' in line  # inside a JSON string the quotes would be escaped, so this is the key


def stays_inside(name: object) -> bool:
    """Whether this is a path that does not lead out of the folder that it is relative to."""
    if not isinstance(name, str) or not name or "\\" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _end_of(line: bytes, first: bytes, keys: set[str]) -> dict[str, Any]:
    """The end of a line, from the key `first` on, as an object; the whole line where that end does not have all `keys`."""
    start = line.rfind(first)
    values = parse_object(b"{" + line[start + 2 :]) if start > 0 else None
    return values if values is not None and keys <= values.keys() else parse_object(line) or {}


def _types_of(hint: Any) -> tuple[type, ...]:
    """The types that JSON has a field's values in."""
    hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    plain = [get_origin(one) or one for one in hints]
    in_json: dict[Any, tuple[type, ...]] = {Mapping: (dict,), Sequence: (list,), float: (int, float)}
    return tuple(one for each in plain for one in in_json.get(each, (each,)))


_TYPES = {key: _types_of(hint) for key, hint in get_type_hints(Record).items() if key not in ("others", "flaws")}
_OF_ANSWER = tuple(_TYPES)[: tuple(_TYPES).index("remarks")]  # what a result has before it is stored
_KEY = {"name", "settings", "rank"}
_RESUMED = {
    "image", "method", "layer", "label", "probability", "name", "settings", "rank", "targets", "files", "input_size",
    "warnings", "image_stat", "image_sha256", "rendering", "raw_channels",
}  # fmt: skip
