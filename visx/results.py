"""Results: an answer as the files that hold it, the picture that is drawn of it and the record that the manifest keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from visx.artifacts import SCHEMA_VERSION, digest, make_folder, npy_bytes, write_whole
from visx.png import encode_png
from visx.render import gradient_picture, overlay

if TYPE_CHECKING:
    import numpy as np

    from visx.contract import Method
    from visx.engine import Answer, Job
    from visx.explaining import Loaded
    from visx.images.find import Item
    from visx.images.geometry import Placement
    from visx.journal import Journal
    from visx.models import Model
    from visx.state import Network
    from visx.targets import TargetSpec


@dataclass(frozen=True)
class Settings:
    """Everything a run's results depend on besides model and jobs, and how the run is to be carried out."""

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
    fail_fast: bool = False
    shard: tuple[int, int] | None = None

    @property
    def rendering(self) -> dict[str, Any] | None:
        """What decides the picture, given the map; None without one."""
        return {"colormap": self.colormap, "alpha": self.alpha} if self.overlay else None


class Recorder:
    """Writes results, and knows those that are written already."""

    def __init__(self, model: Model, network: Network, settings: Settings) -> None:
        self.model, self.network, self.settings = model, network, settings
        self._asked: dict[tuple[Job, str], str] = {}

    def write(self, image: Loaded, job: Job, answers: Sequence[Answer], seconds: float) -> list[dict[str, Any]]:
        """Write the files of a job's answers on an image; returns their records for the manifest."""
        records: list[dict[str, Any]] = []
        rest, seen = list(answers), set[int]()
        for spec in image.targets_of(job):
            mine, rest = rest[: spec.count], rest[spec.count :]
            if len(mine) == 1 and mine[0].target in seen:
                continue  # it is one of the top classes, whose file and record it has
            seen |= {answer.target for answer in mine}
            common = {"seconds": round(seconds / len(answers), 4), "targets": len(mine)}
            for rank, answer in enumerate(mine):
                records.append({**self._write(image, job, spec, answer), **common, "rank": rank})
        return records

    def _write(self, image: Loaded, job: Job, spec: TargetSpec, answer: Answer) -> dict[str, Any]:
        s = self.settings
        assert image.picture is not None and image.place is not None
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
        asked = self._settings_of(job, spec)
        return {
            **record_of(self.model, job, answer, str(image.item.path), image.place, s.seed, s.precision, self.network),
            "remarks": list(image.picture.remarks),
            "files": files,
            "name": image.item.name,
            "rendering": s.rendering,
            "raw_channels": s.raw_channels,
            "image_sha256": image.digest,
            "image_stat": list(image.stat),
            "settings": asked,
            "recipe": digest([asked, image.digest]),
        }

    def done(
        self, journal: Journal, item: Item, job: Job, spec: TargetSpec, stat: tuple[int, int], sha256: Callable[[], str]
    ) -> list[dict[str, Any]]:
        """The records of a job on an image if its results lie in OUT, whole and drawn as asked; else nothing.

        An image of the size and modification time that were recorded is taken as unchanged; any other is read.
        """
        s, asked = self.settings, self._settings_of(job, spec)
        found = journal.find(item.name, asked)
        for record in found:
            unchanged = record["image_stat"] == list(stat) or record["image_sha256"] == sha256()
            drawn = not s.overlay or record["rendering"] == s.rendering
            complete = (record["raw_channels"] or not s.raw_channels) and self._whole(record)
            if not (unchanged and drawn and complete):
                return []
        return found

    def _whole(self, record: dict[str, Any]) -> bool:
        """Whether every file of a record is there, and the map has its size (a power cut can leave files empty)."""
        height, width = record["input_size"]
        for kind, name in record["files"].items():
            if name is None or (kind == "overlay" and not self.settings.overlay):
                continue
            try:
                size = (self.settings.out / name).stat().st_size
            except (OSError, ValueError):  # no such file, or a name that no file can have
                return False
            if size == 0 or (kind == "npy" and size < 4 * height * width):
                return False
        return True

    def _settings_of(self, job: Job, spec: TargetSpec) -> str:
        """The digest of all that a result follows from, but for the image's content and name."""
        key = (job, spec.text)
        if key not in self._asked:
            size = list(self.model.input_size)
            self._asked[key] = digest([self._variant(job), job.method.name, job.layer, spec.text, size])
        return self._asked[key]

    def _variant(self, job: Job) -> dict[str, Any]:
        """What the RECIPE of a file name stands for: everything that is not the image, the layer or the target."""
        return {
            "model": self.model.name,
            "weights": self.model.weights.sha256,
            "outputs": self.model.outputs.identity,
            "params": job.params.model_dump(mode="json"),
            "score": job.kind,
            "seed": self.settings.seed,
            "precision": self.settings.precision,
            "preprocessing": asdict(self.model.preprocess),
        }

    def _stem(self, job: Job, answer: Answer) -> str:
        s = self.settings
        default = (
            s.default_model
            and self.model.outputs.plain
            and job.default_params
            and s.seed == 0
            and s.precision == "fp32"
        )
        layer = "".join(c if c.isalnum() or c in "._-" else "-" for c in job.layer or "")
        parts = [job.method.name, layer, answer.slug, "" if default else digest(self._variant(job))[:8]]
        return ".".join(part for part in parts if part)


def record_of(
    model: Model, job: Job, answer: Answer, image: str, place: Placement, seed: int, precision: str, network: Network
) -> dict[str, Any]:
    """A result as the manifest has it, but for what the run adds (files, recipe, time)."""
    shapes = (layer.shape for layer in model.anatomy.layers if layer.name == job.layer)
    return {
        "schema_version": SCHEMA_VERSION,
        "image": image,
        "method": job.method.name,
        "params": job.params.model_dump(mode="json"),
        "model": model.name,
        "weights": {"name": model.weights.name, "sha256": model.weights.sha256},
        "outputs": model.outputs.identity,
        "layer": job.layer,
        "layer_shape": next((list(shape) for shape in shapes if shape), None),
        "target": answer.target if model.outputs.kind != "regression" else None,
        **({"objective": {"kind": "out", "index": answer.target}} if model.outputs.kind == "regression" else {}),
        "label": answer.label,
        "score": answer.score,
        "score_kind": answer.score_kind,
        "probability": answer.probability,
        "seed": seed,
        "device": str(network.device),
        "precision": precision,
        "input_size": list(model.input_size),
        "input_channels": model.preprocess.channels,
        "range": model.preprocess.range and list(model.preprocess.range),
        "crop": [round(v, 3) for v in place.box],
        "min": float(answer.map.min()),
        "max": float(answer.map.max()),
        "extras": answer.extras,
        "warnings": answer.warnings,
    }


def draw(
    rgb: np.ndarray,
    place: Placement,
    job: Job,
    values: np.ndarray,
    channels: np.ndarray | None,
    colormap: str,
    alpha: float,
    scale: tuple[float, float] | None = None,
) -> np.ndarray:
    """A result's picture (H, W, 3) uint8: a gradient picture where the method declares one, else an overlay.

    `scale` replaces the limits of the map (of the gradient, where that is drawn)."""
    if job.method.picture == "gradient" and channels is not None:
        return gradient_picture(rgb, channels, place, scale)
    return overlay(rgb, values, place, is_signed(job), colormap, alpha, scale)


def is_signed(job: Job) -> bool:
    """Whether negative values of this job's maps mean something."""
    return has_sign(job.method, job.params.model_dump())


def has_sign(method: Method, params: Mapping[str, Any]) -> bool:
    """Whether negative values mean something: as the method declares, or because `relu=false`/`reduce` says so."""
    if params.get("relu") is False:
        return True
    if "reduce" in params:
        return params["reduce"] in ("sum", "mean")
    return method.signed
