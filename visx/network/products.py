"""The products of attention weights with values that a pass makes, with what their weights are computed from.

They are found in either of two ways, both in the order of the pass: in the graph that autograd has recorded
(`in_graph`), or while operations run (`Stream`). An attention that is fused keeps no weights: they are computed from its
queries and keys when asked for, and belong to whoever asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils._python_dispatch import TorchDispatchMode

from visx.network.attention import NEAR, SOFTMAXES
from visx.network.graph import nodes
from visx.network.norms import align_norms
from visx.network.placement import ATTENTION
from visx.network.record import Record

_SOFTMAX_NODES = ("SoftmaxBackward0", "SafeSoftmaxBackward0")
_FUSED_NODES = "ScaledDotProduct"  # how the names of the nodes of PyTorch's fused attentions begin
_ARGUMENTS = ("query", "key", "value", "attn_mask", "attn_bias", "scale", "is_causal")


@dataclass(frozen=True)
class Product:
    """`weights()` gives (R, Nq, Nk) for all pictures and heads; `values` is (R, Nk, d); `shape` is (R, Nq, Nk). `edge` is
    where the gradient of the result arrives, None where gradients are not recorded; `flipped` says that the result is
    (R, d, Nq)."""

    weights: Callable[[], Tensor]
    values: Tensor
    shape: tuple[int, int, int]
    edge: GradientEdge | None = None
    flipped: bool = False

    def gradient(self, arrived: Tensor) -> Tensor:
        """The gradient of the weights (R, Nq, Nk), of that of the result as it arrives at `edge`."""
        flat = _full(arrived.flatten(0, -3))
        return (flat.transpose(1, 2) if self.flipped else flat) @ _full(self.values).transpose(1, 2)


def in_graph(output: Tensor) -> list[Product]:
    """The products that `output` was made from, in the order of the pass."""
    products = []
    for node in nodes(output):
        product = _product_at(node)
        if product is not None:
            products.append((node._sequence_nr(), product))
    return [product for _, product in sorted(products, key=lambda each: each[0])]


def queries_read(record: Record, score: Tensor) -> Tensor | None:
    """Which queries (R, Nq) of the rows of the last attention receive a gradient from the scores (1, K) of an open record;
    None where there is no attention, or no gradient."""
    if not any(node.attends for node in record.nodes.values()) or not score.requires_grad:
        return None
    products = in_graph(score)
    if not products:
        return None
    weights = torch.randn(score.shape, generator=torch.Generator().manual_seed(0)).to(score)
    align_norms(score)
    edge, arrived = products[-1].edge, None
    assert edge is not None
    with suppress(Exception):  # whatever a user's own backward raises
        (arrived,) = torch.autograd.grad((score * weights).sum(), [edge], retain_graph=True, allow_unused=True)
    if arrived is None or not arrived.any():
        return None
    return arrived.flatten(0, -3).ne(0).any(1 if products[-1].flipped else 2)


def _product_at(node: Any) -> Product | None:
    """The product that a node of autograd's graph stands for, if it is one of attention weights with values."""
    name = node.name()
    if name.startswith(_FUSED_NODES):
        saved = {key: getattr(node, f"_saved_{key}", None) for key in _ARGUMENTS}
        return _fused(saved, GradientEdge(node, 0))
    if name == "BmmBackward0":
        operands = node._saved_self, node._saved_mat2
        if all(isinstance(operand, Tensor) for operand in operands):
            for at, (before, _) in enumerate(node.next_functions):
                if _from_softmax(before, operands[at].numel()):
                    return _written(operands, at, GradientEdge(node, 0))
    return None


def _from_softmax(node: Any, count: int) -> bool:
    """Whether a softmax of `count` values leads to a node, with no product of two activations in between."""
    waiting, seen = [node], {node}
    while waiting and len(seen) <= NEAR:
        node = waiting.pop(0)
        if node is None:
            continue
        if node.name() in _SOFTMAX_NODES and node._saved_result.numel() == count:
            return True
        if _linear(node):
            for before, _ in node.next_functions:
                if before is not None and before not in seen:
                    seen.add(before)
                    waiting.append(before)
    return False


def _linear(node: Any) -> bool:
    """Whether a node is no product of two activations (a product with a parameter keeps only that)."""
    if node.name() == "BmmBackward0":
        return node._saved_self is None or node._saved_mat2 is None
    return not node.name().startswith(_FUSED_NODES)


def _written(operands: tuple[Tensor, Tensor], at: int, edge: GradientEdge | None) -> Product:
    """A product that is written out, whose operand number `at` has the weights."""
    weights, values = operands[at], operands[1 - at]
    if at == 1:
        weights, values = weights.transpose(1, 2), values.transpose(1, 2)
    rows, queries, keys = weights.shape
    return Product(lambda: _full(weights), values, (rows, queries, keys), edge, at == 1)


def _fused(arguments: Mapping[str, Any], edge: GradientEdge | None) -> Product:
    """A fused attention: weights = softmax(scale * queries @ keys + mask), computed anew."""
    query, key, value = arguments["query"], arguments["key"], arguments["value"]
    mask = next((m for m in (arguments.get("attn_mask"), arguments.get("attn_bias")) if isinstance(m, Tensor)), None)
    scale = arguments.get("scale")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)

    def weights() -> Tensor:
        scores = (_full(query) * scale) @ _full(key).transpose(-1, -2)
        if mask is not None and mask.dtype == torch.bool:
            scores.masked_fill_(~mask, -math.inf)
        elif mask is not None:
            scores += mask
        if arguments.get("is_causal"):
            scores.masked_fill_(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -math.inf)
        return scores.softmax(-1).flatten(0, -3)

    rows = math.prod(query.shape[:-2])
    return Product(weights, value.flatten(0, -3), (rows, query.shape[-2], key.shape[-2]), edge)


def _full(tensor: Tensor) -> Tensor:
    """A tensor without its graph, in single precision at least."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class Stream(TorchDispatchMode):
    """Inside, `on_product` is called with every product of attention weights with values, as soon as it is made.
    `parameters` are the network's: a product with one of them is a linear layer."""

    def __init__(self, on_product: Callable[[Product], None], parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self._on_product = on_product
        self._parameters = {_memory(parameter) for parameter in parameters}
        self._weights: list[Tensor] = []  # of the latest softmax, and what was made of it

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's own hook: see visx/network/trace.py."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if ATTENTION in name:
            names = [argument.name for argument in func._schema.arguments]
            self._on_product(_fused({**dict(zip(names, args, strict=False)), **(kwargs or {})}, None))
        elif name in SOFTMAXES:
            self._weights = [output]
        elif self._weights:
            self._follow(name, args, output)
        return output

    def _follow(self, name: str, args: Any, output: Any) -> None:
        """Look where the weights go: into a product, or into another tensor of as many values."""
        at = next((at for at, arg in enumerate(args) if isinstance(arg, Tensor) and self._shares(arg)), None)
        if at is None:
            return
        if name == "bmm" and _memory(args[1 - at]) not in self._parameters:
            self._weights = []
            self._on_product(_written((args[0], args[1]), at, None))
        elif isinstance(output, Tensor) and output.numel() == self._weights[0].numel() and not self._shares(output):
            self._weights.append(output)

    def _shares(self, tensor: Tensor) -> bool:
        memory = _memory(tensor)
        return any(memory == _memory(one) for one in self._weights)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
