"""The torch module of an ONNX file, by onnx2torch (extra `visx[onnx2torch]`): for methods that need gradients and layers.

It is taken only where its values agree with onnxruntime's on two pictures of noise.

Names in the file become Python code inside of the module (`torch.fx` writes its forward), so every name is replaced by one of
letters, digits and underscores first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from visx.errors import said_by
from visx.models.onnx.reading import File
from visx.models.preprocessing import taking_bgr, taking_nhwc
from visx.network import repeatable
from visx.network.function import Function

OPSETS = (17, 13)  # of ONNX's standard operations, which onnx2torch knows better than later ones
AGREE = 1e-4  # of the largest value, or of 1
EXTRA = "pip install 'visx[onnx2torch]' converts it, for methods that need gradients"


def convert(box: Function, file: File, shape: Sequence[int]) -> tuple[nn.Module | None, str]:
    """The module of a box for pictures (C, H, W), and in words how it was had; or None, and why there is none."""
    try:
        import onnx2torch  # noqa: F401
    except ImportError:
        return None, EXTRA
    input = file.input
    if input.dtype == torch.uint8:
        return None, "its pixels are whole numbers (uint8), which have no gradients"
    if input.dims[0] not in (None, 1):
        return None, f"it takes batches of {input.dims[0]} alone"
    if box.behaviour.one_row and not box.behaviour.single:
        return None, "its values depend on more than the picture"
    try:
        module = _module(box, file)
        with torch.no_grad():
            apart = _apart(box, module, shape)
    except Exception as error:  # whatever onnx2torch and the module that it made raise
        return None, f"onnx2torch does not convert it ({said_by(error)})"
    if not apart <= AGREE:
        return None, f"the module that onnx2torch makes of it gives other values ({apart:.2g} apart)"
    return module, f"converted to a torch module by onnx2torch (values within {apart:.1g} of onnxruntime's)"


def _module(box: Function, file: File) -> nn.Module:
    """The module, frozen, in evaluation mode, on the box's device; several outputs in a dict by their names in the file."""
    import onnx

    model = onnx.load(str(file.path))  # with weights in other files, which `reading` has checked
    _rename(model.graph)
    module = _converted(model)
    if len(model.graph.output) > 1:
        _by_name(module, file.outputs, [value.type.HasField("tensor_type") for value in model.graph.output])
    module = module.float() if box.dtype == torch.float32 else module
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.to(box.device)
    module = taking_nhwc(module) if box.nhwc else module
    return taking_bgr(module) if box.bgr else module


def _converted(model: Any) -> nn.Module:
    """The module of a model (onnx.ModelProto), with its operations in the versions that onnx2torch knows."""
    import onnx2torch
    from onnx import version_converter

    version = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    for older in (v for v in OPSETS if v < version):
        with suppress(Exception):  # whatever either of them raises
            return onnx2torch.convert(version_converter.convert_version(model, older))
    return onnx2torch.convert(model)


def _by_name(module: Any, names: Sequence[str], tensors: Sequence[bool]) -> None:
    """Let a graph module return a dict of its tensors instead of a tuple of all outputs."""
    (last,) = (node for node in module.graph.nodes if node.op == "output")
    kept = [value for value, tensor in zip(last.args[0], tensors, strict=True) if tensor]
    last.args = (dict(zip(names, kept, strict=True)),)
    module.recompile()


def _rename(graph: Any) -> None:
    """Give every node, value and weight of a graph (onnx.GraphProto) and its subgraphs a name that is safe in code: letters,
    digits and underscores of its own name, and a number where two would meet."""
    values: dict[str, str] = {"": ""}
    taken: set[str] = {""}

    def safe(name: str, known: dict[str, str] | None) -> str:
        if known is not None and name in known:
            return known[name]
        stem = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "node"
        stem = stem if not stem[0].isdigit() else f"n{stem}"
        new, number = stem, 1
        while new in taken:
            new, number = f"{stem}_{number}", number + 1
        taken.add(new)
        if known is not None:
            known[name] = new
        return new

    def walk(graph: Any) -> None:
        for value in (*graph.input, *graph.initializer, *graph.output, *graph.value_info):
            value.name = safe(value.name, values)
        for sparse in graph.sparse_initializer:
            sparse.values.name = safe(sparse.values.name, values)
        for node in graph.node:
            node.input[:] = [safe(name, values) for name in node.input]
            node.output[:] = [safe(name, values) for name in node.output]
            node.name = safe(node.name or node.op_type, None)
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    if inner.node:
                        walk(inner)

    walk(graph)


def _apart(box: Function, module: nn.Module, shape: Sequence[int]) -> float:
    """The largest difference of a module's values from the box's, as a part of the largest value, or of 1."""
    picture, others = repeatable.noise(shape)
    apart = 0.0
    for x in (picture, others[0]):
        wanted = box.scores_of(x)
        given: Tensor = box.outputs.values(module(x.to(box.device, box.dtype)), len(x)).to(wanted)
        apart = max(apart, float((given - wanted).abs().max() / wanted.abs().max().clamp_min(1)))
        if not bool(given.isfinite().all()):
            return float("nan")
    return apart
