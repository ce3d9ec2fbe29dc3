"""On a CUDA device: the maps of the CPU within 1e-3 of their range, and how far half precision is off.

Skipped, with the reason, where there is no such device.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import visx
from nets import images, seeded
from oracles import CHEAP, answers, assert_unchanged, fingerprint, maps_of, model_of, net_for, pearson
from visx.methods.contract import Method

pytestmark = pytest.mark.cuda
CUDA = torch.device("cuda")
SAMPLE = "samples/coffee.png"

# On efficientnet_lite0 and `samples/coffee.png`, measured on a CPU: the correlation with float32's map.
# Input gradients of a deep network are rough, so that half precision moves them far more than CAMs.
HALF = {
    "cam": {"bf16": 0.99, "fp16": 0.999},
    "gradcam": {"bf16": 0.99, "fp16": 0.999},
    "deconvnet": {"bf16": 0.98, "fp16": 0.999},
    "guided_backprop": {"bf16": 0.9, "fp16": 0.98},
    "guided_gradcam": {"bf16": 0.9, "fp16": 0.98},
    "backprop": {"bf16": 0.6, "fp16": 0.9},
    "input_x_gradient": {"bf16": 0.6, "fp16": 0.9},
}


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a part of the expected map's range."""
    return float(np.abs(found - expected).max() / np.ptp(expected))


def test_maps_equal_the_cpu_s(method: Method, record_property: Callable[[str, object], None]) -> None:
    model, x = model_of(seeded(net_for(method), dtype=torch.float32), 32), images(3, 32, dtype=torch.float32)
    params = CHEAP.get(method.name, {})
    expected = maps_of(answers(model, method.name, x, "top2", **params))
    found = maps_of(answers(model, method.name, x, "top2", device=CUDA, **params))
    for b in range(3):
        for t in range(2):
            record_property(f"{b},{t}", off(found[b, t], expected[b, t]))
            assert off(found[b, t], expected[b, t]) <= 1e-3


@pytest.mark.parametrize("name", ["cam", "gradcam", "guided_backprop", "deconvnet"])
def test_maps_of_the_built_in_model_equal_the_cpu_s(name: str, request: pytest.FixtureRequest) -> None:
    sample = str(request.config.rootpath / SAMPLE)
    expected = visx.explain(visx.load_model(), sample, name, target="espresso").map
    assert off(visx.explain(visx.load_model(device="cuda"), sample, name, target="espresso").map, expected) <= 1e-3


@pytest.mark.parametrize("name", ["backprop", "input_x_gradient"])
def test_plain_gradients_of_the_built_in_model_equal_the_cpu_s(name: str, request: pytest.FixtureRequest) -> None:
    """In float32 rounding moves a few ReLUs across zero, which shows in single pixels; in float64 it does not."""
    sample = str(request.config.rootpath / SAMPLE)

    def gradient(device: str, dtype: torch.dtype) -> np.ndarray:
        model = visx.load_model(device=device)
        model.module.to(dtype)
        return visx.explain(model, sample, name, target="espresso").map

    assert off(gradient("cuda", torch.float64), gradient("cpu", torch.float64)) <= 1e-6
    assert pearson(gradient("cuda", torch.float32), gradient("cpu", torch.float32)) >= 0.9998


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_states_its_error(
    name: str, precision: str, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    """The error goes into the test report (`--junit-xml`); a correlation that is gone fails."""
    sample, model = str(request.config.rootpath / SAMPLE), visx.load_model(device="cuda")
    full, half = (visx.explain(model, sample, name, target="espresso", precision=p) for p in ("fp32", precision))
    record_property("largest difference over range", off(half.map, full.map))
    record_property("correlation", pearson(half.map, full.map))
    assert pearson(half.map, full.map) >= HALF[name][precision], (off(half.map, full.map), pearson(half.map, full.map))


def test_model_and_random_state_on_the_device_are_unchanged(method: Method) -> None:
    module = seeded(net_for(method), dtype=torch.float32).to(CUDA).train()
    torch.backends.cuda.matmul.allow_tf32, before_tf32 = True, torch.backends.cuda.matmul.allow_tf32
    try:
        before, random_state = fingerprint(module), torch.cuda.get_rng_state_all()
        answers(model_of(module, 32), method.name, images(1, 32, dtype=torch.float32), **CHEAP.get(method.name, {}))
        assert_unchanged(before, fingerprint(module))
        for old, new in zip(random_state, torch.cuda.get_rng_state_all(), strict=True):
            assert torch.equal(old, new)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before_tf32
