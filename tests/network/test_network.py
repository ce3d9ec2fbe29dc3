"""A model is never left changed: after success, a forward that raises, a hook that cannot be registered, and Ctrl-C."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nets import GapHead, TinyViT, Wrapped, images, seeded
from oracles import CHEAP, answers, assert_unchanged, column_scores, fingerprint, model_of, net_for
from visx import Model, VisxError
from visx.methods.contract import Method
from visx.network.isolation import undisturbed
from visx.network.network import Network

SIZE = 12


def lived_in(
    answer: Callable[[Tensor], object] = lambda logits: logits, build: Callable[[], nn.Module] = GapHead
) -> nn.Module:
    """A module as a user may have it: training partly, gradients kept, a hook, a frozen parameter, its own layout."""
    module = seeded(lambda: Wrapped(answer, build))
    module.train()
    net = module.net
    parts, numbers = (net.blocks, (1, 0, 2)) if build is TinyViT else (net.features, (0, 1, 4))
    first, still, hooked = (parts[number] for number in numbers)
    still.eval()
    net.fc.bias.requires_grad_(False)
    first.to(memory_format=torch.channels_last)
    net.fc.weight.grad = torch.full_like(net.fc.weight, 0.25)
    hooked.register_forward_hook(lambda m, args, output: None)
    net.fc.register_full_backward_hook(lambda m, a, b: None)
    return module


def drawing(logits: Tensor) -> Tensor:
    """A forward that draws from every global random stream."""
    torch.rand(1), np.random.rand(), random.random()
    return logits


class Countdown:
    """Raises `error` at the n-th call and ever after; passes its argument on before."""

    def __init__(self, calls: int, error: BaseException) -> None:
        self.left, self.error = calls, error

    def __call__(self, logits: Tensor) -> Tensor:
        self.left -= 1
        if self.left <= 0:
            raise self.error
        return drawing(logits)


def run(model: Model, method: Method, **more: object) -> None:
    answers(model, method.name, images(2, SIZE), "top2", copies=4, **CHEAP.get(method.name, {}), **more)  # type: ignore[arg-type]


def test_after_success(method: Method) -> None:
    module = lived_in(drawing, net_for(method))
    before = fingerprint(module)
    refused = pytest.raises(VisxError, match="random draws") if "droppable" in method.needs else nullcontext()
    with refused:
        run(model_of(module, SIZE), method)
    assert_unchanged(before, fingerprint(module))


def looks(build: Callable[[], nn.Module]) -> int:
    """How many passes the first look at a module makes."""
    counting = Countdown(10**6, RuntimeError())
    _ = model_of(lived_in(counting, build), SIZE).anatomy
    return 10**6 - counting.left


@pytest.mark.parametrize("at", ["first", "second", "last look", "first pass", "third pass"])
@pytest.mark.parametrize(
    "error", [RuntimeError("the forward pass failed"), KeyboardInterrupt()], ids=["error", "ctrl-c"]
)
def test_after_a_forward_that_raises(method: Method, at: str, error: BaseException) -> None:
    """Some forwards are the look at the module, the next are the method's, for one image at a time: the module draws."""
    last = looks(net_for(method))
    calls = {"first": 1, "second": 2, "last look": last, "first pass": last + 1, "third pass": last + 3}[at]
    module = lived_in(Countdown(calls, error), net_for(method))
    before = fingerprint(module)
    if at == "third pass" and method.single_pass:
        run(model_of(module, SIZE), method)  # it needs no second pass an image
        with pytest.raises(type(error)):
            module(images(1, SIZE))
    else:
        with pytest.raises((type(error), VisxError)):  # an error at the first look is told as one of the model's
            run(model_of(module, SIZE), method)
        assert_unchanged(before, fingerprint(module))


@pytest.mark.parametrize("which", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("calls", [1, 2, 5])
def test_after_a_hook_that_cannot_be_registered(which: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module, model = lived_in(), None
    before = fingerprint(module)
    model = model_of(module, SIZE)
    left, register = [calls], getattr(nn.Module, which)

    def failing(self: nn.Module, *args: object, **kwargs: object) -> object:
        left[0] -= 1
        if left[0] == 0:
            raise RuntimeError("no hook here")
        return register(self, *args, **kwargs)

    monkeypatch.setattr(nn.Module, which, failing)
    with pytest.raises(VisxError, match="no hook here"):
        _ = model.anatomy
    assert_unchanged(before, fingerprint(module))


def test_after_a_method_s_hook_that_cannot_be_registered(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """The anatomy known, the first hook that a method registers fails, then the second, where it has one."""
    module = lived_in(build=net_for(method))
    model = model_of(module, SIZE)
    _ = model.anatomy
    before = fingerprint(module)
    registered, register = [0], nn.Module.register_forward_hook

    def counting(self: nn.Module, *args: object, **kwargs: object) -> object:
        registered[0] += 1
        return register(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.Module, "register_forward_hook", counting)
    run(model, method)
    assert registered[0] > 0 or "layer" not in method.needs
    for number in range(1, min(registered[0], 2) + 1):
        left = [number]

        def failing(self: nn.Module, *args: object, left: list[int] = left, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                raise RuntimeError("no hook here")
            return register(self, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(nn.Module, "register_forward_hook", failing)
        whole_copies = method.name == "reciprocam" and number > 1  # which it makes where a shared pass fails
        with nullcontext() if whole_copies else pytest.raises(RuntimeError, match="no hook here"):
            run(model, method)
        assert_unchanged(before, fingerprint(module))


def test_after_a_backward_that_raises(method: Method) -> None:
    if "grad" not in method.needs or method.name == "cam":
        pytest.skip("makes no backward pass")
    if "rules" in method.needs:
        pytest.skip("no rule is known of a function of somebody's own, so that it is refused")

    class Refusing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[no-untyped-def]
            return x.clone()

        @staticmethod
        def backward(ctx, grad):  # type: ignore[no-untyped-def]
            raise RuntimeError("the backward pass failed")

    module = lived_in(Refusing.apply, net_for(method))
    before = fingerprint(module)
    with pytest.raises(RuntimeError, match="the backward pass failed"):
        run(model_of(module, SIZE), method)
    assert_unchanged(before, fingerprint(module))


def test_after_a_projection_of_a_unit() -> None:
    module = lived_in()
    before = fingerprint(module)
    model = model_of(module, SIZE)
    answers(model, "deconvnet", images(2, SIZE), unit="max", layer="net.features.4")
    assert_unchanged(before, fingerprint(module))
    with pytest.raises(VisxError, match="outside layer"):
        answers(model, "deconvnet", images(2, SIZE), unit="999", layer="net.features.4")
    assert_unchanged(before, fingerprint(module))


@pytest.fixture
def switches() -> Iterator[list[tuple[object, str]]]:
    """The settings that decide what float32 means on a GPU; as before when the test is over."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    names = [(matmul, "allow_tf32"), (cudnn, "allow_tf32"), (cudnn, "benchmark"), (cudnn, "deterministic")]
    before = [getattr(backend, name) for backend, name in names]
    yield names
    for (backend, name), value in zip(names, before, strict=True):
        setattr(backend, name, value)


@pytest.mark.parametrize("on", [True, False])
def test_inside_everything_is_eval_frozen_and_full_precision(on: bool, switches: list[tuple[object, str]]) -> None:
    module = lived_in()
    for backend, name in switches:
        setattr(backend, name, on)
    with undisturbed(module):
        assert not any(m.training for m in module.modules())
        assert not any(p.requires_grad for p in module.parameters())
        assert [getattr(backend, name) for backend, name in switches] == [False, False, False, True]
    assert [getattr(backend, name) for backend, name in switches] == [on] * 4
    assert module.training and not module.net.features[1].training
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    assert not flags.pop("net.fc.bias") and all(flags.values())


def test_the_answer_is_that_of_eval_mode(method: Method) -> None:
    """A module in training mode is explained as it predicts: no dropout, no batch statistics."""
    module = seeded(net_for(method))
    params = CHEAP.get(method.name, {})
    (still,) = answers(model_of(module, SIZE), method.name, images(1, SIZE), "1", **params)
    module.train()
    (moving,) = answers(model_of(module, SIZE), method.name, images(1, SIZE), "1", **params)
    assert np.array_equal(still[0].map, moving[0].map)  # type: ignore[index]
    assert module.training


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_grad_mode_of_the_caller_does_not_matter(method: Method, surroundings: Callable[[], object]) -> None:
    module, x, params = seeded(net_for(method)), images(1, SIZE), CHEAP.get(method.name, {})
    (expected,) = answers(model_of(module, SIZE), method.name, x, "1", **params)
    with surroundings():  # type: ignore[attr-defined]
        (found,) = answers(model_of(module, SIZE), method.name, x, "1", **params)
    assert np.array_equal(found[0].map, expected[0].map)  # type: ignore[index]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_scripted_module_is_refused_by_the_rules() -> None:
    scripted = torch.jit.script(seeded(GapHead))  # type: ignore[no-untyped-call]
    network = Network(scripted)
    fixed = column_scores(torch.zeros(1, 1, dtype=torch.int64))
    with network.session(), pytest.raises(VisxError, match="scripted") as caught:
        network.input_gradients(images(1, SIZE), fixed, "guided")
    assert caught.value.code == 4
