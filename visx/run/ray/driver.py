"""`--engine ray`: the executor that sends batches through Ray Data to a pool of actors, processes that hold the model.

The driver, this process, looks for what is done, hands out whole batches and alone appends to the manifest. A worker loads
the model once, decodes, explains and writes the files as the local engine does, and sends the records back. Paths must therefore
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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from visx.engine.jobs import Job
from visx.engine.loaded import Loaded
from visx.errors import VisxError, said_by, usage
from visx.files import DiskFull
from visx.models import Model
from visx.network.fast import threads_of
from visx.run.threads import count_lanes
from visx.run.worker import Outcome, Records
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

from visx.run.progress import Progress
from visx.run.ray.worker import Assignment, Attempts, RayWorker, Report, Task

CONNECT_SECONDS = 10.0
BLOCKS = 10_000  # up to here each batch is a block; beyond, a block holds several: each costs the driver memory


class RayWorkers:
    """Carries a run out on the workers of a Ray cluster: the one this process is connected to, else the one at `address`,
    else what `ray.init()` finds or starts. `load` loads the model in a worker, on `device` there; `on_message` gets the
    workers' remarks."""

    behind = 0  # a worker reports what is written

    def __init__(
        self,
        model: Model,
        jobs: Sequence[Job],
        settings: Settings,
        load: Callable[[], Model],
        device: str = "auto",
        address: str | None = None,
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.model, self.jobs, self.settings = model, list(jobs), settings
        self.load_model, self.device, self.address, self.on_message = load, device, address, on_message

    def load(self, image: Loaded, data: bytes) -> None:
        """Nothing: the worker decodes the image."""

    def outcomes(
        self, batches: Iterable[list[Loaded]], size: int, inputs: int, pool: ThreadPoolExecutor, progress: Progress
    ) -> Generator[Iterable[Outcome], None, None]:
        """What becomes of every job on every image, batch by batch in the order in which they are done."""
        numbers = {id(job): number for number, job in enumerate(self.jobs)}
        rows: list[list[Assignment]] = [
            [(image.item, [(numbers[id(job)], specs) for job, specs in image.todo]) for image in batch]
            for batch in batches
        ]
        if not rows:
            return
        with _connected(self.address), contextlib.closing(self._reports(rows, inputs)) as reports:
            for report in reports:
                for text in report.remarks:
                    self.on_message(text)
                yield self._outcomes(report)
                if report.stop:
                    raise report.stop

    def unseen(self) -> Sequence[Outcome]:
        """None: what a worker has not reported is not known here."""
        return ()

    def _outcomes(self, report: Report) -> Iterator[Outcome]:
        """A report's outcomes, as the pipeline takes them."""
        last = {item.name: place for place, (item, _, _) in enumerate(report.outcomes)}
        for place, (item, number, result) in enumerate(report.outcomes):
            job = None if number is None else self.jobs[number]
            written: Future[Records] = Future()
            if isinstance(result, DiskFull):  # raised where the records are asked for, which stops the run
                written.set_exception(result)
            elif not isinstance(result, VisxError):
                written.set_result(result)
            yield Outcome(item, job, written if written.done() else cast(VisxError, result), last[item.name] == place)

    def _reports(self, rows: list[list[Assignment]], inputs: int) -> Generator[Report, None, None]:
        """The batches through Ray Data, in the order in which they are done."""
        network = self.model.black_box(self.settings.precision)
        threads = threads_of(count_lanes(network, self.jobs, inputs))
        count, share = _share(self.device, threads)
        attempts = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote()
        task = Task(
            self.load_model,
            self.model.weights,
            self.jobs,
            self.settings,
            inputs,
            threads,
            Path.cwd(),
            attempts,
        )
        data = ray.data.from_items(
            [{"number": number, "assignments": pickle.dumps(row)} for number, row in enumerate(rows)],
            override_num_blocks=min(len(rows), BLOCKS),
        ).map(
            RayWorker,
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
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # the run reports errors in its own words
        yield
    finally:
        ray.shutdown()
