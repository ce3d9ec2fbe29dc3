"""Default weights from the network: what is here already, and downloads that fail soon and say what to do."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

from visx.errors import VisxError, said_by

NETWORK_TIMEOUT = 10.0  # seconds without an answer before a download is given up
THREE_WAYS = "three ways on: --weights FILE (a checkpoint you have), --weights random, or the built-in --model efficientnet_lite0"


def cached_by_timm(name: str) -> str | None:
    """The default weights of a timm model, if they lie in the hub's cache on this machine."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id or config.custom_load:
        return None
    files = (config.hf_hub_filename,) if config.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    found = (try_to_load_from_cache(config.hf_hub_id, file) for file in files)
    return next((path for path in found if isinstance(path, str)), None)


def reach_hub() -> None:
    """One request to timm's hub: the hub's own client would try a dead network twelve times over."""
    from huggingface_hub import constants, get_session

    get_session().head(constants.ENDPOINT, timeout=NETWORK_TIMEOUT)


@contextmanager
def downloading(what: str, where: str) -> Iterator[None]:
    """Turn every way a download can fail into one message with the ways on, and let none of them hang.

    What torch's downloader says goes to standard error: standard output is for data.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    except Exception as error:  # URLError, OSError, the hub's own family, a wrong hash: all mean "not to be had"
        raise VisxError(f"cannot get {what} from {where}: {said_by(error)}", hint=THREE_WAYS) from None
    finally:
        socket.setdefaulttimeout(before)
