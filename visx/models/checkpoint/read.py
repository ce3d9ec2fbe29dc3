"""Reading state dicts from files. Nothing in a file is executed.

Training scripts save other objects beside the weights (arguments, dates, numpy numbers). The classes of these are listed in
`HARMLESS` and become `_Inert` objects, so that not even those classes are instantiated. A pickle with any other class is refused.
"""

from __future__ import annotations

import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visx.errors import VisxError, said_by, usage

# Keys under which training scripts save the weights, outermost first. Averaged weights come before the others, as in timm.
AVERAGED = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "teacher")
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "student",
)
SAVE = "save the weights alone: torch.save(model.state_dict(), FILE), or as .safetensors"
HARMLESS = (
    "argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.date", "datetime.time",
    "datetime.timedelta", "datetime.timezone", "uuid.UUID", "decimal.Decimal", "fractions.Fraction",
    *(f"pathlib{room}.{name}" for room in ("", "._local")
      for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.{name}" for name in ("dtype", "ndarray", "bool_", "int64", "int32", "float64", "float32", "random.mtrand.RandomState")),
    *(f"numpy.dtypes.{name}DType" for name in ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32",
                                               "UInt64", "Float16", "Float32", "Float64", "Str", "Object")),
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata", "omegaconf.base.SCMode", "typing.Any", "typing.Union", "typing.Optional",
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path", "Enum")),
    "mmengine.logging.history_buffer.HistoryBuffer",
    "torch.torch_version.TorchVersion",
)  # fmt: skip
# Classes that are dicts under another name
DICTS = (
    *(f"{room}.AttributeDict" for room in ("lightning_fabric.utilities.data", "lightning.fabric.utilities.data",
                                           "pytorch_lightning.utilities.parsing")),
    "mmengine.config.config.ConfigDict", "mmcv.utils.config.ConfigDict",
    "addict.addict.Dict", "easydict.EasyDict", "yacs.config.CfgNode", "fvcore.common.config.CfgNode", "detectron2.config.config.CfgNode",
)  # fmt: skip
_CONTAINERS = (OrderedDict, frozenset, dict, list, set, tuple, int, float, complex, bool, str, bytes)
# Endings of files that hold a network in another form, and the advice for them
FOREIGN = {
    ".onnx": "it is a network with its weights: -M FILE.onnx",
    ".pt2": "an exported program: torch.export.load(FILE).module() in a file of yours, -M FILE.py:FACTORY",
    **dict.fromkeys(
        (".h5", ".keras", ".pb", ".tflite", ".mlmodel", ".engine"), "build the network in PyTorch: -M FILE.py:FACTORY"
    ),
}
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar", ".pkl", ".pickle")


class _Inert(dict[Any, Any]):
    """The replacement for an object that is not needed. It accepts everything that its pickle gives it, and keeps nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    __hash__ = object.__hash__  # type: ignore[assignment]


def _allowed() -> list[tuple[Any, str]]:
    """The names that a pickle may contain, each with the class or function that is called for it."""
    named = [(_Inert, name) for name in HARMLESS] + [(OrderedDict, name) for name in DICTS]
    own = [(kind, f"{kind.__module__}.{kind.__qualname__}") for kind in _CONTAINERS]
    return [*named, *own, (_mapping, "collections.defaultdict")]


def _mapping(*_: Any) -> OrderedDict[Any, Any]:
    return OrderedDict()


def read(path: Path, on_message: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The state dict in a `.safetensors` file, or in a `.pth`/`.pt` file, which is read with `weights_only=True`.

    `on_message` gets a remark where the file holds several sets of weights. Raises `VisxError` where the file is missing,
    damaged, not a checkpoint, or would run code.
    """
    if path.is_dir() or path.name.endswith(".index.json"):
        raise usage(
            f"{path}: weights in several files are not read", "save them as one: torch.save(model.state_dict(), FILE)"
        )
    if not path.is_file():
        raise usage(f"no such checkpoint: {path}")
    if path.suffix.lower() in FOREIGN:
        raise usage(f"{path} holds no PyTorch weights", FOREIGN[path.suffix.lower()])
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals(_allowed()):  # type: ignore[arg-type]
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise VisxError(f"cannot read {path}: {error.strerror or error}") from None
    except MemoryError:
        raise VisxError(f"{path} does not fit into memory") from None
    except Exception as error:  # the unpickler raises any exception for damaged bytes
        raise _refused(path, error) from None
    return unwrap(content, path, on_message)


def _refused(path: Path, error: Exception) -> VisxError:
    """The error for a file that torch.load refuses, in words for a user."""
    if path.stat().st_size == 0:
        return VisxError(f"{path} is empty (0 bytes)")
    if _is_script(path):
        return usage(
            f"{path} is a TorchScript archive, a network and no weights",
            "def make(): return torch.jit.load(FILE) in a file of yours, -M FILE.py:make",
        )
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted:
        return VisxError(
            f"{path} holds more than tensors ({wanted[1]}), and visx runs no code from a checkpoint", hint=SAVE
        )
    if "PytorchStreamReader" in str(error):
        return VisxError(f"{path} is damaged: a part of it is missing", hint="copy or download it again")
    if "weights only" in str(error).lower():
        return VisxError(f"{path} is damaged or not a checkpoint of tensors alone", hint=SAVE)
    return VisxError(f"{path} is damaged or not a checkpoint: {said_by(error)}", hint=SAVE)


def _is_script(path: Path) -> bool:
    """Whether the file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(re.fullmatch(r"[^/]+/(constants\.pkl|code/.*)", name) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return unwrap(load_file(path), path)
    except OSError as error:
        raise VisxError(f"cannot read {path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise VisxError(f"{path} is damaged or not a safetensors file: {said_by(error)}") from None


def unwrap(content: object, path: Path, on_message: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The state dict inside the content of a checkpoint: its tensors and the modules' extra states, by name.

    `on_message` gets a remark where averaged weights are taken. Raises `VisxError` where there is no state dict, or where it
    has tensors that cannot be copied into a module.
    """
    for _ in range(4):
        known = [k for k in (*AVERAGED, *WRAPPERS) if isinstance(content, Mapping) and _holds(content.get(k))]
        if not known:
            break
        assert isinstance(content, Mapping)
        if known[0] in AVERAGED and len(known) > 1:
            on_message(f"{path.name}: the averaged weights ({known[0]!r}) are loaded, not {known[1]!r}")
        content = content[known[0]]
    if isinstance(content, _Inert) or not isinstance(content, Mapping):
        raise VisxError(f"{path} holds a {type(content).__name__.strip('_')}, not a state dict", hint=SAVE)
    state: dict[str, Any] = OrderedDict(
        (str(k), v) for k, v in content.items() if isinstance(v, Tensor) or str(k).endswith("_extra_state")
    )
    if not any(isinstance(v, Tensor) for v in state.values()):
        raise VisxError(f"{path} holds no tensors", hint=SAVE)
    odd = [k for k, v in state.items() if isinstance(v, Tensor) and not plain(v)]
    if odd:
        raise VisxError(
            f"{path} holds tensors that are sparse, nested, quantized, complex or empty shells: {short(odd)}"
        )
    metadata = getattr(content, "_metadata", None)
    if isinstance(metadata, Mapping):  # versions, by which modules recognise older files
        state._metadata = metadata  # type: ignore[attr-defined]
    return state


def _holds(content: object) -> bool:
    """Whether this is a mapping with a tensor somewhere in it."""
    if not isinstance(content, Mapping) or isinstance(content, _Inert):
        return False
    return any(isinstance(v, Tensor) or (isinstance(v, Mapping) and _holds(v)) for v in content.values())


def plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, real, on the CPU and not quantised; only such tensors can be copied into a module."""
    dense = not tensor.is_nested and tensor.layout is torch.strided and tensor.device.type == "cpu"
    return dense and not tensor.is_quantized and not tensor.is_complex()


def short(keys: list[str], most: int = 3) -> str:
    """The first `most` of the names, as text."""
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
