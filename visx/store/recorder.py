"""Results as files: `Recorder` writes the files of an answer, and finds those that an earlier run wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from visx import targets
from visx.draw.png import encode_png
from visx.engine.batch import Answer
from visx.engine.jobs import Job
from visx.engine.loaded import Loaded
from visx.engine.picture import draw
from visx.files import SCHEMA_VERSION, Written, digest, make_folder, npy_bytes, still_there, write_whole
from visx.images.find import Item
from visx.images.geometry import Placement
from visx.models import Model, fingerprint
from visx.network.blackbox import BlackBox
from visx.network.paths import layer_paths
from visx.store import recipe
from visx.store.manifest import Journal
from visx.store.record import Record
from visx.store.settings import Settings
from visx.targets.contract import Target


class Recorder:
    """Writes the files of results into the output folder, and says which results are complete there."""

    def __init__(self, model: Model, network: BlackBox, settings: Settings) -> None:
        self.model, self.network, self.settings = model, network, settings
        self._fingerprint = model.fingerprint  # taken here, because writers run side by side
        self._asked: dict[tuple[Job, str], str] = {}

    def write(self, image: Loaded, job: Job, answers: Sequence[Answer], seconds: float) -> list[Record]:
        """Writes the files of a job's answers on an image, and returns their records for the manifest. `seconds` is the time
        that all the answers took."""
        records: list[Record] = []
        seen = set[str]()
        for number, spec in enumerate(image.targets_of(job)):
            of_target = [answer for answer in answers if answer.asked == number]
            if len(of_target) == 1 and of_target[0].objective.slug in seen:
                continue  # a class that is also one of the top ones: it has a file and a record already
            seen |= {answer.objective.slug for answer in of_target}
            for rank, answer in enumerate(of_target):
                record = self._write(image, job, spec, answer, seconds / len(answers))
                records.append(replace(record, targets=len(of_target), rank=rank))
        return records

    def _write(self, image: Loaded, job: Job, spec: Target, answer: Answer, seconds: float) -> Record:
        s = self.settings
        picture, place = image.ready.picture, image.ready.place
        folder = s.out / image.item.name
        make_folder(folder)
        stem = self._stem(job, answer)
        files: dict[str, str | None] = {"npy": None, "overlay": None, "native": None, "channels": None}
        written: dict[str, Written] = {}

        def put(kind: str, suffix: str, data: bytes) -> None:
            written[kind] = write_whole(folder / (stem + suffix), data)
            files[kind] = str(PurePosixPath(image.item.name) / (stem + suffix))

        put("npy", ".npy", npy_bytes(answer.map))
        if answer.native is not None:
            put("native", ".native.npy", npy_bytes(answer.native))
        if s.raw_channels and answer.channels is not None:
            put("channels", ".channels.npy", npy_bytes(answer.channels))
        if s.overlay:
            drawn = draw(picture.rgb, place, job, answer.map, answer.channels, s.colormap, s.alpha)
            put("overlay", ".png", encode_png(drawn))
        for suffix, make in answer.attachments.items():
            put(suffix.split(".")[0], f".{suffix}", make(picture.rgb, place))
        asked = self._settings_of(job, spec)
        path = str(image.item.path)
        return replace(
            record_of(self.model, job, answer, path, place, s.seed, s.precision, self.network, seconds),
            remarks=list(picture.remarks),
            fingerprint=self._fingerprint.as_dict() if self._fingerprint else None,
            files=files,
            written=written,
            name=image.item.name,
            rendering=s.rendering,
            raw_channels=s.raw_channels,
            image_sha256=picture.digest,
            image_stat=list(image.stat),
            settings=asked,
            recipe=digest([asked, picture.digest]),
        )

    def done(
        self, journal: Journal, item: Item, job: Job, spec: Target, stat: tuple[int, int], sha256: Callable[[], str]
    ) -> list[Record]:
        """The records of a job on an image if all its results are complete in OUT, and drawn as asked; else an empty list.

        `stat` is the image's size and modification time. If both are as recorded, the image is taken as unchanged; else its
        content is compared. The same holds for the files in OUT, because another result may have been written over one: of
        another image of this name, or drawn in another way.
        """
        s, asked = self.settings, self._settings_of(job, spec)
        records = journal.find(item.name, asked)
        for record in records:
            unchanged = record.image_stat == list(stat) or record.image_sha256 == sha256()
            drawn = not s.overlay or record.rendering == s.rendering
            same = fingerprint.same(record.fingerprint, self._fingerprint)
            complete = (record.raw_channels or not s.raw_channels) and self._whole(record)
            if not (unchanged and drawn and same and complete and self._named_alike(record, job, spec)):
                return []
        return records

    def _named_alike(self, record: Record, job: Job, spec: Target) -> bool:
        """Whether what a record explains still has the label that the record has; labels may have been edited since."""
        if not job.of_a_class or record.identity["kind"] not in targets.KINDS:
            return True
        objective = targets.again(record.identity, self.model.outputs, self.model.names)
        return spec.index in (None, record.index) and record.label == objective.identity.label

    def _whole(self, record: Record) -> bool:
        """Whether every file of a record is in OUT, with the content that was written for this record."""
        written = record.written
        return written is not None and all(
            still_there(self.settings.out, name, written.get(kind))
            for kind, name in (record.files or {}).items()
            if name is not None and (kind != "overlay" or self.settings.overlay)
        )

    def _settings_of(self, job: Job, spec: Target) -> str:
        """The digest of everything that a result follows from, except the image's content and name."""
        key = (job, spec.text)
        if key not in self._asked:
            asked = recipe.of_job(self.model, job, self.settings.seed, self.settings.precision)
            self._asked[key] = digest([asked, job.layer, spec.text])
        return self._asked[key]

    def _stem(self, job: Job, answer: Answer) -> str:
        mark = recipe.name_of(self.model, job, self.settings.seed, self.settings.precision)
        return ".".join(part for part in (job.method.name, _slug(job.layer or ""), answer.objective.slug, mark) if part)


def record_of(
    model: Model,
    job: Job,
    answer: Answer,
    image: str,
    place: Placement,
    seed: int,
    precision: str,
    network: BlackBox,
    seconds: float,
) -> Record:
    """The record of an answer, without those fields that need its files. `image` is the path of the image as it was given."""
    objective = answer.objective
    of_a_class = objective.kind == "class"
    return Record(
        schema_version=SCHEMA_VERSION,
        image=image,
        method=job.method.name,
        params=job.params.model_dump(mode="json"),
        model=model.name,
        weights={"name": model.weights.name, "sha256": model.weights.sha256},
        outputs=model.outputs.identity,
        preprocessing=recipe.of_preprocessing(model.preprocess),
        layer=job.layer,
        layer_shape=_shape(model, job),
        target=objective.index if of_a_class else None,
        objective=None if of_a_class else objective.json,
        label=objective.label,
        score=answer.score,
        score_kind=answer.score_kind,
        probability=answer.probability,
        seed=seed,
        device=str(network.device),
        precision=precision,
        input_size=list(model.input_size),
        crop=[round(v, 3) for v in place.box],
        min=float(answer.map.min()),
        max=float(answer.map.max()),
        extras=answer.extras,
        warnings=answer.warnings,
        seconds=round(seconds, 4),
    )


def _shape(model: Model, job: Job) -> list[Any] | None:
    """The shape of a job's layer without the batch; of `A+B`, a list of one for each."""
    names = layer_paths(model.module, job.layer) if job.layer else []
    by_name = {layer.name: list(layer.shape) for layer in model.anatomy.layers if layer.shape}
    shapes = [by_name.get(name) for name in names]
    return shapes if len(shapes) > 1 else shapes[0] if shapes else None


def _slug(layer: str) -> str:
    """A layer's name as part of a file name. Where characters had to be replaced, four hex digits of a digest are added, so
    that two layers never get the same one."""
    slug = "".join(c if c.isalnum() or c in "._-+" else "-" for c in layer)
    return slug if slug == layer else f"{slug}-{digest(layer)[:4]}"
