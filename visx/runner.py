"""The pipeline of a run: decode ahead, explain whole batches, render and write behind, one line in the manifest each.

Batches are padded to one size, which follows from the inputs listed and not from what is left to do, so a resumed run
writes the same bytes. One image's failure is one record; the rest of the run goes on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from visx.artifacts import SCHEMA_VERSION, Manifest, digest, make_folder, npy_bytes, to_json, write_whole
from visx.engine import Answer, Job, explain_batch
from visx.errors import ExitCode, VisxError
from visx.images import Picture, Placement, decode
from visx.inputs import Item
from visx.models import Model
from visx.render import encode_png
from visx.results import draw, record_of
from visx.scoring import out_of_memory
from visx.seeds import image_seed
from visx.state import Network
from visx.targets import Targets, TargetSpec

AUTO_BATCH = 16
AHEAD = 2  # batches decoded ahead and written behind


@dataclass(frozen=True)
class Settings:
    """Everything a run's results depend on besides its jobs, and how it is to be carried out."""

    out: Path
    target: TargetSpec
    seed: int = 0
    precision: str = "fp32"
    batch_size: int | None = None
    default_model: bool = True
    colormap: str = "turbo"
    alpha: float = 0.5
    overlay: bool = True
    raw_channels: bool = False
    resume: bool = True

    @property
    def rendering(self) -> dict[str, Any]:
        """What decides the picture, given the map."""
        return {"colormap": self.colormap, "alpha": self.alpha}


@dataclass
class Summary:
    """What became of a run: results written, results found done, and images that failed."""

    written: int = 0
    skipped: int = 0
    failed: int = 0
    images: int = 0

    @property
    def code(self) -> ExitCode:
        """The exit code this adds up to."""
        if not self.failed:
            return ExitCode.OK
        return ExitCode.SOME_FAILED if self.written + self.skipped else ExitCode.FAILURE


@dataclass
class _Loaded:
    """One decoded image on its way through the pipeline, with the jobs that are still to do."""

    item: Item
    picture: Picture
    x: np.ndarray
    place: Placement
    spec: TargetSpec
    jobs: list[Job] = field(default_factory=list)


class Run:
    """One run of jobs over images into a folder.

    `on_record` receives every manifest record (results found done too, and errors) in order; `on_progress` the number
    of images finished; `said` remarks worth a line.
    """

    def __init__(
        self,
        model: Model,
        jobs: Sequence[Job],
        settings: Settings,
        device: torch.device,
        on_record: Callable[[dict[str, Any], str], None] = lambda record, line: None,
        on_progress: Callable[[int], None] = lambda done: None,
        said: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.jobs, self.settings = model, list(jobs), settings
        self.network: Network = model.network(settings.precision, device)
        self.on_record, self.on_progress, self.said = on_record, on_progress, said
        self.manifest = Manifest(settings.out)
        self.summary = Summary()
        self._done: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self._halved: int | None = None

    def __call__(self, items: Sequence[Item]) -> Summary:
        """Explain every item. Interrupted, what was finished is kept and the exception goes on."""
        batch_size = min(self.settings.batch_size or AUTO_BATCH, len(items))
        self.manifest.open()
        if self.settings.resume:
            for record in self.manifest.records():
                if record.get("schema_version") == SCHEMA_VERSION and "recipe" in record:
                    self._done.setdefault((_folder(record), record["recipe"]), []).append(record)
        pool = ThreadPoolExecutor(2, thread_name_prefix="visx-io")
        try:
            with self.network.session():
                writing: deque[Future[dict[str, Any]]] = deque()
                try:
                    for batch in self._batches(self._ahead(pool, items, AHEAD * batch_size), batch_size):
                        self._explain(batch, batch_size, pool, writing)
                        while len(writing) > AHEAD * batch_size:
                            self._settle(writing.popleft())
                finally:
                    while writing:
                        self._settle(writing.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            self.manifest.close()
        return self.summary

    def _ahead(
        self, pool: ThreadPoolExecutor, items: Sequence[Item], count: int
    ) -> Iterator[tuple[Item, Future[_Loaded]]]:
        """Items in order with their decoding, at most `count` begun ahead."""
        begun: deque[tuple[Item, Future[_Loaded]]] = deque()
        for item in items:
            begun.append((item, pool.submit(self._load, item)))
            if len(begun) > count:
                yield begun.popleft()
        yield from begun

    def _load(self, item: Item) -> _Loaded:
        picture = decode(item.path)
        x, place = self.model.preprocess(picture.rgb)
        spec = self.settings.target.for_image(str(item.path), self.model.labels, self.model.classes)
        return _Loaded(item, picture, x, place, spec)

    def _batches(self, loaded: Iterator[tuple[Item, Future[_Loaded]]], size: int) -> Iterator[list[_Loaded]]:
        """Groups of images that have the same jobs to do; the done ones are reported, the broken ones recorded."""
        groups: dict[tuple[int, ...], list[_Loaded]] = {}
        for item, future in loaded:
            try:
                image = future.result()
            except VisxError as error:
                self._fail(item, error)
                continue
            image.jobs = [job for job in self.jobs if not self._already(image, job)]
            if not image.jobs:
                self._count_image()
                continue
            group = groups.setdefault(tuple(map(id, image.jobs)), [])
            group.append(image)
            if len(group) == size:
                yield groups.pop(tuple(map(id, image.jobs)))
        yield from groups.values()

    def _already(self, image: _Loaded, job: Job) -> bool:
        """Whether this job's results lie in OUT, whole and drawn as asked; if so they are reported as done."""
        found = self._done.get((image.item.name, self._recipe(image, job)))
        if not found:
            return False
        last = found[-(found[-1].get("targets") or 1) :]
        for record in last:
            files = record["files"]
            wanted = [name for kind, name in files.items() if name and kind != "overlay"]
            wanted += [files["overlay"] or "missing"] if self.settings.overlay else []
            if self.settings.overlay and record.get("rendering") != self.settings.rendering:
                return False
            if self.settings.raw_channels and job.method.picture == "gradient" and not files.get("channels"):
                return False
            if not all((self.settings.out / name).is_file() for name in wanted):
                return False
        for record in last:
            self.summary.skipped += 1
            self.on_record(record, to_json(record))
        return True

    def _recipe(self, image: _Loaded, job: Job) -> str:
        return digest({**self._variant(job), "image": image.picture.digest, "layer": job.layer, "target": image.spec.text,
                       "method": job.method.name, "input_size": self.model.input_size})  # fmt: skip

    def _variant(self, job: Job) -> dict[str, Any]:
        """What the RECIPE of a file name stands for: everything that is not the image, the layer or the target."""
        return {
            "model": self.model.name,
            "weights": self.model.weights.sha256,
            "params": job.params.model_dump(mode="json"),
            "score": job.kind,
            "seed": self.settings.seed,
            "precision": self.settings.precision,
        }

    def _stem(self, job: Job, answer: Answer) -> str:
        s = self.settings
        default = s.default_model and job.default_params and s.seed == 0 and s.precision == "fp32"
        layer = "".join(c if c.isalnum() or c in "._-" else "-" for c in job.layer or "")
        parts = [job.method.name, layer, answer.slug, "" if default else digest(self._variant(job))[:8]]
        return ".".join(part for part in parts if part)

    def _explain(self, batch: list[_Loaded], size: int, pool: ThreadPoolExecutor, writing: deque[Future[Any]]) -> None:
        """One batch through its jobs; every image's results go to the writers."""
        targets: dict[int, Targets] = {}
        failed: set[int] = set()
        for job in batch[0].jobs:
            begun = time.perf_counter()
            answers = self._with_less_memory(batch, job, size, targets)
            seconds = (time.perf_counter() - begun) / len(batch)
            for number, (image, found) in enumerate(zip(batch, answers, strict=True)):
                if isinstance(found, VisxError):
                    self._fail(image.item, found, job, count=number not in failed)
                    failed.add(number)
                    continue
                writing.extend(pool.submit(self._write, image, job, answer, len(found), seconds) for answer in found)
        for _ in range(len(batch) - len(failed)):
            self._count_image()

    def _with_less_memory(self, batch: list[_Loaded], job: Job, size: int, targets: dict[int, Targets]) -> list[Any]:
        """Explain in pieces of the padded size; when memory runs out, of half that size, and say so once."""
        while True:
            piece = min(size, self._halved or size)
            try:
                answers: list[Any] = []
                for start in range(0, len(batch), piece):
                    part = batch[start : start + piece]
                    shared = targets.setdefault(
                        start * 100_000 + piece, Targets([i.spec for i in _padded(part, piece)])
                    )
                    answers += self._compute(_padded(part, piece), len(part), job, shared)
                return answers
            except Exception as error:
                if not out_of_memory(error) or piece == 1:
                    raise
                self._halved = piece // 2
                self.said(f"out of memory: going on with batches of {self._halved}")

    def _compute(self, images: list[_Loaded], count: int, job: Job, targets: Targets) -> list[Any]:
        """Answers for the first `count` images; the others pad the batch."""
        x = torch.from_numpy(np.stack([image.x for image in images]))
        seeds = [image_seed(self.settings.seed, image.picture.digest) for image in images]
        copies = min(self.settings.batch_size or AUTO_BATCH, self._halved or AUTO_BATCH * 64)
        return explain_batch(
            self.model, self.network, job, x, targets.specs, seeds,
            targets=targets, count=count, copies=copies, said=self.said,
        )  # fmt: skip

    def _write(self, image: _Loaded, job: Job, answer: Answer, targets: int, seconds: float) -> dict[str, Any]:
        """Write one result's files, in a writer's thread; the record is for the manifest."""
        s = self.settings
        folder = s.out / image.item.name
        make_folder(folder)
        stem = self._stem(job, answer)
        files: dict[str, str | None] = {"npy": None, "overlay": None, "native": None, "channels": None}

        def put(kind: str, suffix: str, data: bytes) -> None:
            write_whole(folder / (stem + suffix), data)
            files[kind] = str(PurePosixPath(image.item.name) / (stem + suffix))

        put("npy", ".npy", npy_bytes(answer.map))
        if answer.native is not None:
            put("native", ".native.npy", npy_bytes(answer.native))
        if s.raw_channels and answer.channels is not None:
            put("channels", ".channels.npy", npy_bytes(answer.channels))
        if s.overlay:
            picture = draw(image.picture.rgb, image.place, job, answer.map, answer.channels, s.colormap, s.alpha)
            put("overlay", ".png", encode_png(picture))
        for suffix, make in answer.attachments.items():
            put(suffix.split(".")[0], f".{suffix}", make(image.picture.rgb, image.place))
        return {**record_of(self.model, job, answer, str(image.item.path), image.place, s.seed, s.precision, self.network),
                "recipe": self._recipe(image, job), "targets": targets, "rendering": s.rendering if s.overlay else None,
                "seconds": round(seconds / targets, 4), "files": files}  # fmt: skip

    def _settle(self, future: Future[dict[str, Any]]) -> None:
        """Wait for one result's files, then let the manifest and the listeners know."""
        record = future.result()
        line = to_json(record)
        self.manifest.append(line)
        self.summary.written += 1
        self.on_record(record, line)

    def _fail(self, item: Item, error: VisxError, job: Job | None = None, count: bool = True) -> None:
        if count:
            self.summary.failed += 1
            self._count_image()
        record = {
            "schema_version": SCHEMA_VERSION,
            "image": str(item.path),
            "method": job.method.name if job else None,
            "error": {"code": int(error.code), "message": error.message, "hint": error.hint},
        }
        line = to_json(record)
        self.manifest.append(line)
        self.on_record(record, line)

    def _count_image(self) -> None:
        self.summary.images += 1
        self.on_progress(1)


def _padded(images: list[_Loaded], size: int) -> list[_Loaded]:
    return images + [images[-1]] * (size - len(images))


def _folder(record: dict[str, Any]) -> str:
    return str(PurePosixPath(record["files"]["npy"]).parent)
