"""The files of a model as transformers saves one: in a folder, or of a name of the hub, in its cache on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from visx.errors import VisxError, unknown, usage
from visx.models import downloads

PREFIX = "hf/"
CONFIG = "config.json"
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[\w.-]+)?")
_FORMS = f"{PREFIX}FOLDER as save_pretrained() writes it, or {PREFIX}NAME of the hub, for instance {PREFIX}microsoft/resnet-50"
_ELSEWHERE = (
    "where there is a network, `hf download NAME --local-dir FOLDER` gives a folder for hf/FOLDER; here is the built-in "
    "--model efficientnet_lite0"
)


class Files(Protocol):
    """The files of one model."""

    def get(self, file: str) -> Path | None:
        """Where a file is on this machine; None where the model has none of that name."""

    def first(self, files: Sequence[str]) -> Path | None:
        """Where the first of these files is that the model has, those before the others that need no network."""

    def advice(self) -> str:
        """What to do where the model has no configuration."""


class Folder:
    """The files in a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, file: str) -> Path | None:
        path = self.path / file
        return path if path.is_file() else None

    def first(self, files: Sequence[str]) -> Path | None:
        return next(filter(None, map(self.get, files)), None)

    def advice(self) -> str:
        inside = sorted(self.path.glob(f"*/{CONFIG}"))[:3]
        near = ", ".join(f"{PREFIX}{path.parent}" for path in inside)
        return f"did you mean {near}?" if near else _FORMS


class Hub:
    """The files of a name of the hub: those in its cache as they are, others downloaded into it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.revision: str | None = None  # the commit of the first file: all files are of one commit

    def get(self, file: str) -> Path | None:
        path = self._cached(file)
        return path if isinstance(path, Path) else None if path else self._downloaded(file)

    def first(self, files: Sequence[str]) -> Path | None:
        here = (self._cached(file) for file in files)
        return next((path for path in here if isinstance(path, Path)), None) or next(
            filter(None, map(self.get, files)), None
        )

    def advice(self) -> str:
        return _FORMS

    def _cached(self, file: str) -> Path | bool:
        """Where a file is in the cache; True where the cache knows that there is none, False where it knows nothing."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.name, file, revision=self.revision)
        return self._of_commit(path) if isinstance(path, str) else path is not None

    def _of_commit(self, path: str) -> Path:
        self.revision = self.revision or Path(path).parent.name
        return Path(path)

    def _downloaded(self, file: str) -> Path | None:
        """Where a file is after its download; None where there is none. Raises `VisxError`: exit 2 where the hub has no such
        model, exit 1 where it cannot be reached."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )

        what = f"{file} of {PREFIX}{self.name} (no folder here)"
        with downloads.downloading(what, "huggingface.co", _ELSEWHERE):
            try:
                downloads.reach_hub()
                return self._of_commit(hf_hub_download(self.name, file, revision=self.revision))
            except LocalEntryNotFoundError:  # no network; it counts as an EntryNotFoundError
                raise
            except EntryNotFoundError:
                return None
            except RepositoryNotFoundError as error:
                gated = isinstance(error, GatedRepoError)
        if gated:
            raise VisxError(
                f"{PREFIX}{self.name}: its owner wants to be asked first",
                hint=f"accept the terms at huggingface.co/{self.name}, then `hf auth login`",
            )
        known = (f"{PREFIX}{name}" for name, _, _ in cached())
        raise unknown("model", f"{PREFIX}{self.name}", known, "no folder here, and not on huggingface.co (or private)")


def files_of(name: str) -> Files:
    """The files of what stands behind `hf/`. A folder goes before a name of the hub. Raises `VisxError` (usage, exit 2) for
    what can be neither."""
    path = Path(name).expanduser()
    if name and path.is_dir():
        return Folder(path)
    if name and path.exists():
        raise usage(f"{PREFIX}{name} is a file", f"{_FORMS}; a file of weights: -w {name}")
    if not _NAME.fullmatch(name):
        raise usage(f"{PREFIX}{name}: no such folder", _FORMS)
    return Hub(name)


def cached() -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(name, folder, content of config.json) of the models in the hub's cache on this machine."""
    from huggingface_hub import constants

    for repository in sorted(Path(constants.HF_HUB_CACHE).glob("models--*")):
        try:
            commit = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
            folder = repository / "snapshots" / commit
            yield repository.name.removeprefix("models--").replace("--", "/"), folder, read_json(folder / CONFIG)
        except (OSError, VisxError):  # of another kind, or half downloaded
            continue


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `VisxError` where it cannot be read or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise VisxError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise VisxError(f"{path} is damaged: no JSON ({error})".splitlines()[0]) from None
    if not isinstance(content, dict):
        raise VisxError(f"{path} is damaged: a JSON {type(content).__name__}, no object")
    return content
