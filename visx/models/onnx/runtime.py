"""Sessions of onnxruntime: where they compute, with how many threads, and what their errors mean in words."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from visx.errors import VisxError, unsupported

_ERRORS = (
    (r"Unsupported model IR version|opset .* is under development|only \*guarantees\* support|Opset \d+ .*support",
     "is newer than this onnxruntime ({version}) reads", "pip install -U onnxruntime, or export it with a lower opset_version"),
    (r"not a registered function/op|No Op registered|Could not find an implementation|is not registered|Fatal error: .* is not a",
     "has operations that onnxruntime {version} does not have", "export it with the standard operations of ONNX, in float32"),
    (r"External data|external data|model_path must not be empty", "lacks weights that lie in other files", "copy them beside it"),
    (r"Protobuf parsing failed|INVALID_PROTOBUF|codec can't decode", "is damaged or not an ONNX file", "copy or download it again"),
)  # fmt: skip
# The code of an error, the file, and the place in onnxruntime's sources with its function
_CODES = r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed:\s*|/\S+\.(cc|h):\d+ .*?\) (?=[A-Z])"


def open_session(path: Path, device: torch.device) -> tuple[Any, torch.device, str]:
    """A session (onnxruntime.InferenceSession) for a device, the device that it computes on, and a remark where that is another
    one. Raises `VisxError`: exit 1 where the file is damaged, 4 where this onnxruntime cannot run it."""
    import onnxruntime

    there = onnxruntime.get_available_providers()
    wanted = _provider(device)
    chosen: list[Any] = [wanted] if wanted and wanted[0] in there else []

    def opened(providers: list[Any]) -> Any:
        # without fallback: it prints, and goes on elsewhere than asked
        return onnxruntime.InferenceSession(str(path), _options(onnxruntime), providers=providers, enable_fallback=0)

    session = None
    if chosen:
        with suppress(Exception):  # a provider whose libraries or device are not there
            session = opened([*chosen, "CPUExecutionProvider"])
    try:
        session = session or opened(["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a type of its own for each kind of failure
        raise refused(path, error) from error
    if device.type == "cuda" and session.get_providers()[0] == "CUDAExecutionProvider":
        return session, torch.device("cuda", device.index or 0), ""
    cpu = torch.device("cpu")
    if device.type == "cpu":
        return session, cpu, ""
    why = "could not use it" if chosen else "has no provider for it"
    hint = " (pip install onnxruntime-gpu)" if device.type == "cuda" and not chosen else ""
    return session, cpu, f"{path.name} runs on the CPU, not on {device}: this onnxruntime {why}{hint}"


def refused(path: Path, error: Exception) -> VisxError:
    """What is told a user of a file of which no session can be made."""
    import onnxruntime

    for pattern, words, hint in _ERRORS:
        if re.search(pattern, str(error)):
            text = f"{path} {words.format(version=onnxruntime.__version__)}: {_said(error)}"
            return unsupported(text, hint) if "onnxruntime" in words else VisxError(text, hint=hint)
    return VisxError(
        f"{path}: onnxruntime cannot read it: {_said(error)}", hint="onnx.checker.check_model may say more"
    )


def _said(error: Exception) -> str:
    """An error of onnxruntime without its codes and the places in its sources."""
    text = re.sub(_CODES, "", str(error))
    return f"{type(error).__name__}: {text.strip().splitlines()[0][:200] if text.strip() else ''}"


def _provider(device: torch.device) -> tuple[str, dict[str, Any]] | None:
    """The provider for a device, beside the CPU's own, with its options: full float32, the same way in every pass."""
    if device.type == "cuda":
        options = {"device_id": device.index or 0, "use_tf32": 0, "cudnn_conv_algo_search": "DEFAULT"}
        return "CUDAExecutionProvider", options
    if device.type == "cpu":
        return "OpenVINOExecutionProvider", {"device_type": "CPU", "precision": "FP32"}
    return None


def _options(onnxruntime: Any) -> Any:
    """As many threads as torch has, which do not burn a core while they wait; errors are raised, not printed."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
