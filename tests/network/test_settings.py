"""What the caller's process and thread are set to does not change a map, and is as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import visx
from nets import TinyViT, seeded
from oracles import of_transformers
from visx.methods.contract import Method
from visx.network.isolation import undisturbed

SIZE = 24
FEW: dict[str, dict[str, Any]] = {
    "rise": {"masks": 8},
    "occlusion": {"patch": 8, "stride": 8},
    "lime": {"samples": 20, "segments": 6},
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 3},
    "meaningful_perturbation": {"iterations": 3, "mask_size": 6},
}
NEWER = hasattr(torch.backends, "fp32_precision")
PATHS = ("", "cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


def backend(path: str) -> Any:
    found = torch.backends
    for name in filter(None, path.split(".")):
        found = getattr(found, name)
    return found


def precisions() -> dict[str, str]:
    """What a caller can read of all settings; by the older interface, what it answers or that it raises."""
    found = {path: backend(path).fp32_precision for path in PATHS} if NEWER else {}
    for name, ask in (
        ("matmul", torch.get_float32_matmul_precision),
        ("tf32", lambda: torch.backends.cuda.matmul.allow_tf32),
        ("cudnn", lambda: torch.backends.cudnn.allow_tf32),
    ):
        try:
            found["older " + name] = str(ask())
        except RuntimeError:
            found["older " + name] = "raises"
    return found


@pytest.fixture
def as_at_the_start() -> Iterator[None]:
    yield
    if NEWER:
        for path in PATHS:
            backend(path).fp32_precision = "tf32" if path in ("cudnn.conv", "cudnn.rnn") else "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def fitting(method: Method) -> nn.Module:
    """A network that a method fits."""
    return seeded(TinyViT, dtype=torch.float32) if of_transformers(method) else net()


def explained(module: nn.Module, name: str) -> np.ndarray:
    model = visx.wrap(module, size=SIZE, resize=SIZE)
    return visx.explain(model, picture(), method=name, target=1, **FEW.get(name, {})).map


NEWLY = [(path, value) for path in PATHS for value in ("tf32", "ieee")] + [("mkldnn.matmul", "bf16")] if NEWER else []


@pytest.mark.usefixtures("as_at_the_start")
@pytest.mark.parametrize(("path", "value"), NEWLY)
def test_precisions_set_by_the_newer_interface(path: str, value: str) -> None:
    wanted, start, own = explained(net(), "backprop"), precisions(), backend(path).fp32_precision
    backend(path).fp32_precision = value
    before = precisions()
    module = net()
    with undisturbed(module):
        inside = precisions()
    assert {inside[p] for p in PATHS if p.split(".")[-1] in ("matmul", "conv", "rnn")} == {"ieee"}
    np.testing.assert_array_equal(explained(module, "backprop"), wanted)
    assert precisions() == before
    backend(path).fp32_precision = own  # a value that was its parent's is so still
    assert precisions() == start


@pytest.mark.usefixtures("as_at_the_start")
@pytest.mark.parametrize("value", ["medium", "high", "highest"])
@pytest.mark.parametrize("convolutions", [True, False])
def test_precisions_set_by_the_older_interface(value: str, convolutions: bool) -> None:
    wanted = explained(net(), "backprop")
    torch.set_float32_matmul_precision(value)
    torch.backends.cudnn.allow_tf32 = convolutions
    before = precisions()
    with undisturbed(net()):
        inside = precisions()
    assert (inside["older matmul"], inside["older cudnn"]) == ("highest", "False")
    np.testing.assert_array_equal(explained(net(), "backprop"), wanted)
    assert precisions() == before


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        assert torch.get_default_dtype() == dtype
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
        assert torch.empty(0).device.type == torch.device(device).type
    finally:
        torch.set_default_device(None)
        # where None is left behind, torch 2.6 cannot say its default device, which transformers asks for
        vars(torch._GLOBAL_DEVICE_CONTEXT).pop("device_context", None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def anomalies() -> Iterator[None]:
    with torch.autograd.set_detect_anomaly(True):
        yield
        assert torch.is_anomaly_enabled() and torch.is_anomaly_check_nan_enabled()


@contextmanager
def autocast(**more: Any) -> Iterator[None]:
    with torch.autocast("cpu", **more):
        yield
        assert torch.is_autocast_enabled("cpu")


class Passing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Dispatching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "autocast": autocast,
    "autocast_fp16": partial(autocast, dtype=torch.float16),
    "float64": partial(default_dtype, torch.float64),
    "float16": partial(default_dtype, torch.float16),
    "meta": partial(default_device, "meta"),
    "meta_context": partial(torch.device, "meta"),
    "deterministic": deterministic,
    "anomalies": anomalies,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "function_mode": Passing,
    "dispatch_mode": Dispatching,
    "saved_tensors": partial(torch.autograd.graph.saved_tensors_hooks, lambda t: t, lambda t: t),
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
def test_what_the_caller_has_switched_on(method: Method, surroundings: str) -> None:
    wanted, module = explained(fitting(method), method.name), fitting(method)
    with SURROUNDINGS[surroundings]():
        got = explained(module, method.name)
    np.testing.assert_array_equal(got, wanted)


class Making(nn.Module):
    """A forward that makes tensors of its own: on the device and in the precision of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) * torch.arange(1, 5)


@pytest.mark.parametrize("surroundings", ["autocast", "meta", "meta_context", "no_grad"])
def test_tensors_that_a_forward_makes(surroundings: str) -> None:
    torch.manual_seed(0)
    wanted, module = explained(Making(), "backprop"), Making()
    with SURROUNDINGS[surroundings]():
        np.testing.assert_array_equal(explained(module, "backprop"), wanted)


def test_everything_at_once() -> None:
    wanted, module = explained(net(), "gradcam"), net()
    with ExitStack() as stack:
        for name in ("autocast", "float64", "deterministic", "anomalies", "inference_mode", "function_mode"):
            stack.enter_context(SURROUNDINGS[name]())
        got = explained(module, "gradcam")
    np.testing.assert_array_equal(got, wanted)


def within(transform: Callable[..., Any], run: Callable[[], Any]) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        run()
        return x.sum()

    transform(function)(torch.zeros(3))


def under_fake_tensors(run: Callable[[], Any]) -> None:
    with FakeTensorMode():
        run()


@pytest.mark.parametrize(
    "surrounded",
    [
        partial(within, torch.func.vmap),
        partial(within, torch.func.grad),
        partial(within, torch.func.hessian),
        under_fake_tensors,
    ],
    ids=["vmap", "grad", "hessian", "fake"],
)
def test_where_there_are_no_values_nothing_is_explained(surrounded: Callable[[Callable[[], Any]], None]) -> None:
    module = net()
    with pytest.raises(visx.VisxError, match="nothing can be explained") as caught:
        surrounded(partial(visx.explain, module, picture()))
    assert caught.value.code == 2
    model = visx.wrap(module, size=SIZE, resize=SIZE)
    with pytest.raises(visx.VisxError, match="nothing can be explained"):
        surrounded(lambda: model.anatomy)
    assert explained(module, "backprop").any()
