"""An ONNX file, checked and described without running it. Weights in other files stay there.

A file may name any path for its weights. Only files in its own folder are taken: an absolute path, `..`, and a link that leads
elsewhere are refused, before onnxruntime sees the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from visx.errors import VisxError, said_by, unsupported, usage
from visx.models.checkpoint import digest_file
from visx.network.heads import Squash

AGAIN = "copy or download it again"
OWN = "a function of yours may make scores of it: def make(): return visx.wrap(function, size=224), -M FILE.py:make"
# ONNX's names of element types -> torch's, and how onnxruntime writes them
TYPES = {"FLOAT": torch.float32, "FLOAT16": torch.float16, "DOUBLE": torch.float64, "UINT8": torch.uint8}
_SAME = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "CastLike", "Dropout", "Clip", "Transpose")
_LAST: dict[str, Squash] = {"Softmax": "softmax", "Sigmoid": "sigmoid", "HardSigmoid": "sigmoid"}


@dataclass(frozen=True)
class Input:
    """The one input: its name, element type, and dimensions, None where any size is taken."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | None, ...]


@dataclass(frozen=True)
class File:
    """An ONNX file: its parsed content (onnx.ModelProto, without weights in other files), the names of its outputs, and the
    sha256 of it and of all files with its weights."""

    path: Path
    model: Any
    input: Input
    outputs: tuple[str, ...]
    digest: str


def read(path: Path) -> File:
    """Read and check a file. Raises `VisxError`: exit 1 where it is damaged or lacks weights, 2 where it or the extra is not
    there, 4 where its input is no batch of pictures."""
    if not path.is_file():
        raise usage(f"no such file: {path}", "FILE.onnx")
    try:
        import onnx
        import onnxruntime  # noqa: F401  (said now, not when something is computed)
    except ImportError as error:
        raise usage(f"{path.name} needs {error.name or 'onnxruntime'}", "pip install 'visx[onnx]'") from None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VisxError(f"cannot read {path}: {error.strerror or error}") from None
    if not data:
        raise VisxError(f"{path} is empty (0 bytes)", hint=AGAIN)
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # whatever protobuf raises for damaged bytes
        raise VisxError(f"{path} is damaged or not an ONNX file: {said_by(error)}", hint=AGAIN) from None
    if not model.graph.node or not model.graph.output:
        raise VisxError(f"{path} is damaged or not an ONNX file: it holds no network", hint=AGAIN)
    external = _external(path, model)
    digest = hashlib.sha256(data).hexdigest()
    if external:
        parts = [digest, *(f"{name} {digest_file(path.parent / name)}" for name in sorted(external))]
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return File(path, model, _input(path, model), _outputs(path, model), digest)


def _input(path: Path, model: Any) -> Input:
    """The input. Raises `VisxError` (exit 4) where there are several, or it is no batch of pictures."""
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs)
        raise unsupported(
            f"{path.name} takes {len(inputs)} inputs ({names}), and a picture is one" if inputs
            else f"{path.name} takes no input",
            OWN,
        )  # fmt: skip
    (value,) = inputs
    tensor = value.type.tensor_type
    kind = dict(map(reversed, onnx.TensorProto.DataType.items())).get(tensor.elem_type, "of no known type")
    if not value.type.HasField("tensor_type") or kind not in TYPES:
        shown = kind.lower() if value.type.HasField("tensor_type") else "no tensor"
        raise unsupported(
            f"{path.name}: its input {value.name} is {shown}, not float32, float16, float64 or uint8", OWN
        )
    dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
    if not tensor.HasField("shape"):
        dims = (None,) * 4
    if len(dims) != 4:
        shape = " x ".join("?" if d is None else str(d) for d in dims) or "a single number"
        raise unsupported(
            f"{path.name}: its input {value.name} is {shape}, not a batch of pictures (N, C, H, W) or (N, H, W, C)", OWN
        )
    return Input(value.name, TYPES[kind], dims)


def _outputs(path: Path, model: Any) -> tuple[str, ...]:
    """The names of the outputs that are tensors. Raises `VisxError` (exit 4) where none is."""
    names = tuple(value.name for value in model.graph.output if value.type.HasField("tensor_type"))
    if not names:
        shown = ", ".join(value.name for value in model.graph.output)
        raise unsupported(
            f"{path.name}: its outputs ({shown}) are sequences or maps, not tensors of scores",
            "of a scikit-learn model: convert it with the option zipmap=False",
        )
    return names


def _external(path: Path, model: Any) -> set[str]:
    """The files in which weights lie, relative to the file's folder. Raises `VisxError` where one of them is not taken, is not
    there, or is too short."""
    import onnx

    names: set[str] = set()
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        parts = name.replace("\\", "/").split("/")
        if not name or name.startswith(("/", "\\")) or ":" in parts[0] or ".." in parts or "\0" in name:
            raise VisxError(
                f"{path}: it takes weights from {name or 'nowhere'!r}, and only files in its own folder are read",
                hint="save it with its weights beside it, or inside: onnx.save(model, FILE)",
            )
        file = path.parent / name
        if not file.is_file():
            raise VisxError(f"{path}: its weights lie in {name}, which is not beside it", hint="copy it there")
        if file.resolve().parent not in _folders(path, file):
            raise VisxError(
                f"{path}: {name} is a link to {file.resolve()}, and only files in its own folder are read",
                hint="copy the file there",
            )
        try:
            end = int(entries.get("offset") or 0) + int(entries.get("length") or 0)
        except ValueError:
            raise VisxError(f"{path} is damaged: where in {name} {tensor.name} lies is no number", hint=AGAIN) from None
        if file.stat().st_size < end:
            raise VisxError(f"{path}: {name} is cut short: {file.stat().st_size} bytes of {end} and more", hint=AGAIN)
        names.add(name)
    return names


def _folders(path: Path, file: Path) -> set[Path]:
    """The folders in which the file of weights `file` may lie once links are followed: where it is named, and where the file
    itself lies (a cache keeps both elsewhere, under other names)."""
    return {path.parent.resolve() / file.parent.relative_to(path.parent), path.resolve().parent}


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor in a model: weights, constants, those of subgraphs and functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for graph in (attribute.g, *attribute.graphs):
                yield from _of_graph(graph)


def last_activation(model: Any, output: str) -> Squash:
    """The activation whose values an output holds, by the graph; empty where it is none."""
    makers = {name: node for node in model.graph.node for name in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in _SAME and node.input:
        node = makers.get(node.input[0])
    return _LAST.get(node.op_type, "") if node is not None else ""
