"""Small ONNX files for tests, written by `onnx.helper`: a network of two convolutions and a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SIZE, CLASSES = 24, 3


class Net(nn.Module):
    """The torch network whose weights the files have."""

    def __init__(self, channels: int = 3, last: str = "") -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.a, self.b = nn.Conv2d(channels, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2)
            self.ra, self.rb, self.head = nn.ReLU(), nn.ReLU(), nn.Linear(8, CLASSES)
        self.last = {"": nn.Identity(), "Softmax": nn.Softmax(1), "Sigmoid": nn.Sigmoid()}[last]
        nn.init.normal_(self.head.weight, generator=torch.Generator().manual_seed(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.rb(self.b(self.ra(self.a(x))))
        return self.last(self.head(x.mean((2, 3))))


def write(
    path: Path,
    *,
    batch: int | str | None = "n",
    size: Sequence[int | str] = (SIZE, SIZE),
    channels: int | str = 3,
    nhwc: bool = False,
    element: str = "FLOAT",
    last: str = "",
    outputs: Sequence[str] = ("scores",),
    inputs: int = 1,
    opset: int = 13,
    external: str = "",
    whole_names: bool = True,
    prefix: str = "",
    extra: Sequence[Any] = (),
) -> nn.Module:
    """Write the network's file; returns the torch network. `outputs`: "scores", and "features" (N, 8) or "ids" (N,) int64;
    `external`: the file for its weights; `prefix`: before every node's name; `extra`: more nodes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    net = Net(channels if isinstance(channels, int) else 3, last).eval()
    kind = getattr(TensorProto, element)
    numbers = TensorProto.FLOAT16 if element == "FLOAT16" else TensorProto.FLOAT
    dtype = torch.float16 if element == "FLOAT16" else torch.float32
    weights = [numpy_helper.from_array(v.to(dtype).numpy(), k) for k, v in net.state_dict().items()]
    shape = [batch, *size, channels] if nhwc else [batch, channels, *size]
    named = [helper.make_tensor_value_info(f"x{i or ''}", kind, shape) for i in range(inputs)]
    first = "x"
    nodes = []
    if kind != numbers:
        nodes.append(helper.make_node("Cast", [first], ["x_cast"], to=numbers))
        nodes.append(helper.make_node("Mul", ["x_cast", "scale"], ["x_scaled"]))
        scale = torch.tensor(1.0 if element == "DOUBLE" else 1 / 255)
        weights.append(numpy_helper.from_array(scale.numpy(), "scale"))
        first = "x_scaled"
    if nhwc:
        nodes.append(helper.make_node("Transpose", [first], ["x_nchw"], perm=[0, 3, 1, 2]))
        first = "x_nchw"
    end = f"{outputs[0]}_before" if last else "scores"
    nodes += [
        helper.make_node("Conv", [first, "a.weight", "a.bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["ra"]),
        helper.make_node("Conv", ["ra", "b.weight", "b.bias"], ["b"], strides=[2, 2]),
        helper.make_node("Relu", ["b"], ["rb"]),
        helper.make_node("GlobalAveragePool", ["rb"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["features"]),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], [end], transB=1),
    ]
    if last:
        nodes.append(helper.make_node(last, [end], ["scores"], **({"axis": 1} if last == "Softmax" else {})))
    nodes.append(helper.make_node("ArgMax", ["scores"], ["ids"], axis=1, keepdims=0))
    nodes += extra
    for number, node in enumerate(nodes):
        node.name = f"{prefix}{node.op_type}_{number}"
    out = {
        "scores": helper.make_tensor_value_info("scores", numbers, [batch, CLASSES]),
        "features": helper.make_tensor_value_info("features", numbers, [batch, 8]),
        "ids": helper.make_tensor_value_info("ids", TensorProto.INT64, [batch]),
        "rb": helper.make_tensor_value_info("rb", numbers, None),
    }
    graph = helper.make_graph(nodes, "net", named, [out[name] for name in outputs], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if external:
        onnx.save_model(
            model, str(path), save_as_external_data=True, location=external, size_threshold=0, convert_attribute=False
        )
    else:
        path.write_bytes(model.SerializeToString())
    return net
