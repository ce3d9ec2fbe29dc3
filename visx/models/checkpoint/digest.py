"""Digests (sha256) of a weights file and of a module's values."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visx.models.checkpoint.read import plain


def digest_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex digits."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(file.read()).hexdigest()
        )


def digest_state(module: nn.Module) -> str:
    """The sha256, in hex digits, of the names, types, shapes and values of a module's parameters, buffers and extra state."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        _add(digest, name, value)
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Any) -> None:
    """Add one entry of a state dict to the digest: a tensor of any layout, or any object of a module's extra state."""
    if isinstance(value, Tensor) and not plain(value.detach().cpu()):
        parts = _parts(value.detach().cpu())
        _add(digest, f"{name} {value.layout} {value.dtype} {tuple(value.shape)}", parts)
    elif isinstance(value, Tensor):
        flat = value.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {tuple(flat.shape)}\n".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            _add(digest, f"{name}.{key}", entry)
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(value):
            _add(digest, f"{name}.{index}", entry)
    else:
        try:
            content = pickle.dumps(value)
        except Exception:  # whatever pickling a user's object raises
            content = type(value).__qualname__.encode()
        digest.update(f"{name} ".encode() + content)


def _parts(tensor: Tensor) -> Any:
    """The dense tensors that a sparse, quantised, complex or nested tensor consists of."""
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
