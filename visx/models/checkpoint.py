"""Checkpoints: files -> state dicts, without executing anything, and state dicts -> modules with errors that explain."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visx.errors import VisxError, said_by, usage

# Where training scripts keep the weights, outermost first
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "module", "weights")
SAVE = "save the weights alone: torch.save(model.state_dict(), FILE), or as .safetensors"
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` file, or in a `.pth`/`.pt` file read with `weights_only=True` (a pickle that
    would run code is refused)."""
    if not path.is_file():
        raise usage(f"no such checkpoint: {path}")
    if path.suffix.lower() == ".safetensors":
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise VisxError(f"cannot read {path}: {error.strerror or error}") from None
    except MemoryError:
        raise VisxError(f"{path} does not fit into memory") from None
    except Exception as error:  # the unpickler meets damaged bytes with any exception; each means the same to a user
        raise _refused(path, error) from None
    return unwrap(content, path)


def _refused(path: Path, error: Exception) -> VisxError:
    if path.stat().st_size == 0:
        return VisxError(f"{path} is empty (0 bytes)")
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted:
        return VisxError(
            f"{path} holds more than tensors ({wanted[1]}), and visx runs no code from a checkpoint", hint=SAVE
        )
    if "weights only" in str(error).lower():
        return VisxError(f"{path} is damaged or not a checkpoint of tensors alone", hint=SAVE)
    return VisxError(f"{path} is damaged or not a checkpoint: {said_by(error)}", hint=SAVE)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return unwrap(load_file(path), path)
    except OSError as error:
        raise VisxError(f"cannot read {path}: {error.strerror or error}") from None
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise VisxError(f"{path} is damaged or not a safetensors file: {said_by(error)}") from None


def unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """Find the state dict inside what training scripts save around it, and strip prefixes that all keys share."""
    for _ in range(4):
        inner = (
            next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
            if isinstance(content, Mapping)
            else None
        )
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping):
        raise VisxError(f"{path} holds a {type(content).__name__}, not a state dict", hint=SAVE)
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        raise VisxError(f"{path} holds no tensors", hint=SAVE)
    odd = [k for k, v in state.items() if not _plain(v)]
    if odd:
        raise VisxError(
            f"{path} holds tensors that are sparse, nested, quantized, complex or empty shells: {_short(odd)}"
        )
    return state


def fit(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load `state` into `module`, prefixes of wrappers stripped; a mismatch lists missing and unexpected keys, shortened."""
    own = module.state_dict()
    state = _strip(state, set(own))
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k}: {_shape(state[k])} instead of {_shape(own[k])}"
        for k in own
        if k in state and own[k].shape != state[k].shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{len(keys)} {word} ({_short(keys)})"
            for word, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if keys
        ]
        raise VisxError(
            f"{path} does not fit the model: {'; '.join(parts)}", hint="is --model the network that was trained?"
        )
    module.load_state_dict(state)


def classes_in(module: nn.Module, state: dict[str, Tensor]) -> int | None:
    """The number of classes of a checkpoint that differs from `module` in its last weight's rows alone (fine-tuning
    replaces the head), else None."""
    own = module.state_dict()
    state = _strip(state, set(own))
    heads = [k for k in own if k in state and own[k].shape != state[k].shape]
    weights = [k for k in heads if own[k].dim() > 1]
    if not weights or not all(own[k].shape[1:] == state[k].shape[1:] for k in heads):
        return None
    if any(state[k].numel() > state[k].untyped_storage().nbytes() for k in heads):  # one row that claims to be many
        return None
    rows = {state[k].shape[0] for k in heads}
    return int(state[weights[-1]].shape[0]) if len(rows) == 1 else None


def digest_file(path: Path) -> str:
    """The sha256 of a file."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )


def digest_state(module: nn.Module) -> str:
    """The sha256 of a module's parameters, buffers and extra state, by name, type, shape and value."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        _take(digest, name, value)
    return digest.hexdigest()


def _take(digest: Any, name: str, value: Any) -> None:
    """Add one entry of a state dict: a tensor of any layout, or what `get_extra_state` or a packed layer put there."""
    if isinstance(value, Tensor) and not _plain(value.detach().cpu()):
        parts = _parts(value.detach().cpu())
        _take(digest, f"{name} {value.layout} {value.dtype} {tuple(value.shape)}", parts)
    elif isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _take(digest, f"{name}.{key}", entry)
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            _take(digest, f"{name}.{index}", entry)
    else:
        try:
            content = pickle.dumps(value)
        except Exception:  # whatever an object of somebody's own raises
            content = type(value).__qualname__.encode()
        digest.update(f"{name} ".encode() + content)


def _parts(tensor: Tensor) -> Any:
    """What a sparse, quantised, complex or nested tensor is made of."""
    if tensor.is_nested:
        return list(tensor.unbind())
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if tensor.is_quantized:
        return [tensor.dequantize(), tensor.int_repr()]
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        return [tensor.indices(), tensor.values()]
    return tensor.to_dense()


def _strip(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """Strip wrapper prefixes as long as that makes more keys fit."""
    while True:
        for prefix in PREFIXES:
            if all(k.startswith(prefix) for k in state) and not wanted & set(state):
                state = {k[len(prefix) :]: v for k, v in state.items()}
                break
        else:
            return state


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor is real numbers side by side, as a module's are: only those can be copied into one."""
    dense = not tensor.is_nested and tensor.layout is torch.strided and tensor.device.type == "cpu"
    return dense and not tensor.is_quantized and not tensor.is_complex()


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _short(keys: list[str], most: int = 3) -> str:
    return ", ".join(keys[:most]) + (", ..." if len(keys) > most else "")
