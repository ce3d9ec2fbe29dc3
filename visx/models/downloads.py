"""Downloading default weights: what is on this machine already, and downloads that fail within seconds with advice."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from visx.errors import VisxError, said_by

NETWORK_TIMEOUT = 10.0  # seconds without an answer after which a download fails
THREE_WAYS = "three ways on: --weights FILE (a checkpoint you have), --weights random, or the built-in --model efficientnet_lite0"


def prepare_hub() -> None:
    """What huggingface_hub reads when it is imported: downloads fail within seconds, logs have no progress bars."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", str(int(NETWORK_TIMEOUT)))
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(int(NETWORK_TIMEOUT)))
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def cached_by_timm(name: str) -> str | None:
    """The path of a timm model's default weights in the hub's cache on this machine; None where they are not there."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id or config.custom_load:
        return None
    files = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    paths = (try_to_load_from_cache(config.hf_hub_id, file) for file in files)
    return next((path for path in paths if isinstance(path, str)), None)


def reach_hub() -> None:
    """Send one request to the hub, which raises where there is no network. The hub's own client would try twelve times."""
    from huggingface_hub import constants, get_session

    get_session().head(constants.ENDPOINT, timeout=NETWORK_TIMEOUT)


@contextmanager
def downloading(what: str, where: str, advice: str = THREE_WAYS) -> Iterator[None]:
    """While this context is open, downloads time out, and every failure becomes one `VisxError` with advice.

    `what` is downloaded from `where`, for the message, `advice` is its hint. Output of torch's downloader goes to standard error, because standard
    output is for data.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:  # URLError, OSError, the hub's own errors, a wrong hash
        raise VisxError(f"cannot get {what} from {where}: {said_by(error)}", hint=advice) from None
    finally:
        socket.setdefaulttimeout(before)
