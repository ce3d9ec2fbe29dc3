"""`--engine ray`: a run's batches go through Ray Data to an actor pool, each of whose processes holds the model.

This process looks for what is done, deals whole batches out and alone appends to the manifest. A worker loads the model
once, decodes, explains and writes the files as the local engine does, and sends the records back. Paths must therefore
mean the same on every machine; a machine that finds other weights is refused. Ray restarts a worker that died and does
its batch again; a batch over which worker after worker dies is a failure of its images, not of the run.

A batch is one row and one block of the data set, because Ray Data cuts rows into batches by its own lights. A worker has
a GPU where there are any, else as many threads as a lane of this process: their number can move the last bits of a map.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from visx.engine.jobs import Job
from visx.engine.loaded import Loaded, grouped
from visx.errors import VisxError, said_by, usage
from visx.files import DiskFull
from visx.images.find import Item
from visx.models import Model
from visx.run.pipeline import AHEAD, Run
from visx.run.threads import count_lanes, threads_of
from visx.store.record import Failure, Record
from visx.store.settings import Settings

os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # read at import: Ray would print deaths to standard output
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no network is needed, so none is used
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
try:
    import ray
    import ray.data
    import ray.exceptions
except ImportError:
    raise usage("--engine ray needs Ray", "pip install 'visx[ray]'") from None

from visx.run.ray.worker import Attempts, Deal, Report, Task, Worker

CONNECT_SECONDS = 10.0
BLOCKS = 10_000  # up to here each batch is a block; beyond, a block holds several: each costs the driver memory


class RayRun(Run):
    """A run that is carried out by the workers of a Ray cluster: the one this process is connected to, else the one at
    `address`, else what `ray.init()` finds or starts. `load` loads the model in a worker, on `device` there."""

    def __init__(
        self,
        model: Model,
        jobs: Sequence[Job],
        settings: Settings,
        load: Callable[[], Model],
        device: str = "auto",
        address: str | None = None,
        on_record: Callable[[Record | Failure], None] = lambda record: None,
        said: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(model, jobs, settings, torch.device("cpu"), on_record, said)
        self.model, self.load, self.device, self.address, self.said = model, load, device, address, said

    def _load(self, item: Item) -> Loaded:
        """Here an image is only looked at: the worker decodes it."""
        return self._look(item)[0]

    def _carry_out(self, items: Sequence[Item], inputs: int) -> None:
        size = self.explainer.sized(inputs)
        with ThreadPoolExecutor(2, thread_name_prefix="visx-io") as pool:
            batches = list(grouped(self._left(self._ahead(pool, items, AHEAD * size)), size))
        if not batches:
            return
        numbers = {id(job): number for number, job in enumerate(self.jobs)}
        rows = [
            [(image.item, [(numbers[id(job)], specs) for job, specs in image.todo]) for image in batch]
            for batch in batches
        ]
        with _connected(self.address), contextlib.closing(self._reports(rows, inputs)) as reports:
            for report in reports:
                for text in report.remarks:
                    self.said(text)
                for item, number, found in report.outcomes:
                    self._take(item, None if number is None else self.jobs[number], found)
                if report.stop:
                    raise report.stop
                for _ in {item.name for item, _, _ in report.outcomes}:
                    self._count_image()

    def _take(self, item: Item, job: Job | None, found: list[Record] | VisxError) -> None:
        if isinstance(found, DiskFull):
            raise found
        if isinstance(found, VisxError):
            self._fail(item, found, job)
        else:
            self._keep(found)

    def _reports(self, rows: list[list[Deal]], inputs: int) -> Generator[Report, None, None]:
        """The batches through Ray Data, in the order in which they are done."""
        threads = threads_of(count_lanes(self.explainer.network, self.jobs, inputs))
        count, share = _share(self.device, threads)
        attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
        task = Task(
            self.load,
            self.model.weights,
            self.jobs,
            self.settings,
            inputs,
            threads,
            Path.cwd(),
            attempts,
        )
        data = ray.data.from_items(
            [{"number": number, "deals": pickle.dumps(row)} for number, row in enumerate(rows)],
            override_num_blocks=min(len(rows), BLOCKS),
        ).map(
            Worker,
            fn_constructor_args=(task,),
            compute=ray.data.ActorPoolStrategy(size=min(count, len(rows))),
            **share,
        )
        data.context.enable_progress_bars = False
        try:
            for row in data.iter_rows():
                yield pickle.loads(row["report"])
        except ray.exceptions.RayError as error:
            raise VisxError(
                f"Ray gave up: {said_by(error)}", hint="the same command goes on where this stopped"
            ) from error


def _share(device: str, threads: int) -> tuple[int, dict[str, Any]]:
    """How many workers of so many threads the cluster holds, and what each has of it."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus and device in ("auto", "cuda"):
        return gpus, {"num_gpus": 1, "num_cpus": 1}
    if device.startswith("cuda"):
        hint = "--device auto takes what there is" if device == "cuda" else "Ray deals them out: --device cuda"
        raise usage(f"--engine ray: the cluster has {gpus} GPUs, and no {device}", hint)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    threads = max(1, min(threads, max(cpus)))
    return max(1, sum(n // threads for n in cpus)), {"num_cpus": threads}


def check_address(address: str | None) -> None:
    """Refuse a HOST:PORT where nothing listens: Ray would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if not host or "://" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise VisxError(f"cannot reach Ray at {address}: {error.strerror or error}") from None


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A connection to Ray, ended here if it was made here. Ray's SIGTERM handler is put aside: it would lose the reason."""
    if ray.is_initialized():
        yield
        return
    check_address(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise VisxError(f"cannot reach Ray{f' at {address}' if address else ''}: {said_by(error)}") from None
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what matters is said in the run's own words
        yield
    finally:
        ray.shutdown()
