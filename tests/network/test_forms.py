"""Modules in odd forms: what each does to a map is what it does to the plain network's, and each is left as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import visx
from odd_networks import Base
from oracles import assert_unchanged, fingerprint
from visx.errors import ExitCode, VisxError
from visx.models import checkpoint as checkpoints
from visx.network import forms

PICTURE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
OCCLUSION = {"patch": 32, "stride": 32}


def net(kind: Callable[[], nn.Module] = Base) -> nn.Module:
    """A module with the same weights for every kind of `Base`, in float64 where rounding would hide a difference."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().double()


def explained(module: nn.Module, method: str = "backprop", **options: Any) -> np.ndarray:
    return visx.explain(visx.wrap(module, size=64, resize=64), PICTURE, method, **options).map


def same(module: nn.Module, method: str = "backprop", like: nn.Module | None = None, **options: Any) -> None:
    want = explained(like or net(), method, **options)
    assert np.ptp(want) > 0
    np.testing.assert_allclose(explained(module, method, **options), want, rtol=1e-5, atol=1e-7 * np.abs(want).max())


def refused(module: nn.Module, method: str, words: str, **options: Any) -> VisxError:
    with pytest.raises(VisxError) as caught:
        explained(module, method, **options)
    assert words in caught.value.message
    return caught.value


# ---- gradients that are cut
class FrozenBackbone(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.features[:3](x)
        return self.head(self.features[3:](x).mean((2, 3)))


class FrozenUpToTheHead(Base):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.features(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_a_part_of_forward_without_gradients_is_named(mode: str) -> None:
    class Part(Base):
        def forward(self, x: Tensor) -> Tensor:
            with getattr(torch, mode)():
                x = self.features(x)
            return self.head(x.clone().mean((2, 3)))

    for method in ("backprop", "guided_backprop", "integrated_gradients"):
        error = refused(net(Part), method, f"part of its forward runs under {mode}")
        assert error.code == ExitCode.UNSUPPORTED
    same(net(Part), "occlusion", **OCCLUSION)


@pytest.mark.parametrize("kind", [FrozenBackbone, FrozenUpToTheHead])
def test_grad_cam_behind_a_frozen_backbone(kind: type[nn.Module]) -> None:
    layers = ["features.5"] + ["features.4"] * (kind is FrozenBackbone)
    for layer in layers:
        same(net(kind), "gradcam", layer=layer)
    if kind is FrozenUpToTheHead:
        refused(net(kind), "gradcam", "part of its forward runs under no_grad", layer="features.1")


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda x: x.detach(), "cuts the graph (detach)"),
        (lambda x: x.data, "cuts the graph (.data)"),
        (lambda x: torch.from_numpy(x.detach().numpy()), "cuts the graph (detach, numpy)"),
        (lambda x: torch.from_numpy(x.numpy()), "its forward fails where gradients are recorded"),
        (lambda x: torch.tensor(x.tolist(), dtype=x.dtype), "no gradient leads from its output"),
    ],
)
def test_what_cuts_the_graph_is_named(cut: Callable[[Tensor], Tensor], words: str) -> None:
    class Cut(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(cut(self.features(x)).mean((2, 3)))

    assert refused(net(Cut), "backprop", words).code == ExitCode.UNSUPPORTED
    assert refused(net(Cut), "gradcam", words, layer="features.1").code == ExitCode.UNSUPPORTED
    same(net(Cut), "occlusion", **OCCLUSION)


def test_detaching_beside_the_way_is_no_cut() -> None:
    class Beside(Base):
        def forward(self, x: Tensor) -> Tensor:
            features = self.features(x)
            self.seen = features.detach()
            with torch.no_grad():
                self.mean = features.mean()
            return self.head(features.mean((2, 3)))

    same(net(Beside))


@pytest.mark.parametrize("method", ["backprop", "guided_backprop", "deconvnet", "gradcam", "smoothgrad", "occlusion"])
def test_checkpointing_that_is_not_reentrant_changes_nothing(method: str) -> None:
    class Checkpointed(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.features, x, use_reentrant=False).mean((2, 3)))

    options = {"occlusion": OCCLUSION, "smoothgrad": {"samples": 2}}.get(method, {})
    same(net(Checkpointed), method, **options)
    if method == "gradcam":
        same(net(Checkpointed), method, layer="features.1")
    if method == "deconvnet":
        same(net(Checkpointed), method, layer="features.4", unit="max")


@pytest.mark.parametrize("method", ["backprop", "deconvnet", "smoothgrad", "gradcam"])
def test_checkpointing_that_a_loaded_model_is_switched_to(method: str) -> None:
    model = visx.load_model("timm/test_resnet", "random")
    options: dict[str, Any] = {"target": 1, "layer": "layer2.0" if method == "gradcam" else None}
    options |= {"relu": False} if method == "gradcam" else {"samples": 2} if method == "smoothgrad" else {}
    want = visx.explain(model, PICTURE, method, **options).map
    model.module.set_grad_checkpointing(True)
    got = visx.explain(model, PICTURE, method, **options).map
    assert np.ptp(want) > 0 and np.abs(got - want).max() < 1e-3 * np.abs(want).max()


def test_a_relu_that_checkpointing_hides_is_refused_in_words() -> None:
    class Hidden(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.written, x, use_reentrant=False).mean((2, 3)))

        def written(self, x: Tensor) -> Tensor:
            x = self.features[:2](x)
            return self.features[3:](torch.maximum(x, torch.zeros_like(x)))

    refused(net(Hidden), "deconvnet", "checkpointing")


def test_reentrant_checkpointing_before_the_layer() -> None:
    class Early(Base):
        def forward(self, x: Tensor) -> Tensor:
            x = checkpoint(self.features[:3], x, use_reentrant=True)
            return self.head(self.features[3:](x).mean((2, 3)))

    same(net(Early), "gradcam", layer="features.4")
    error = refused(net(Early), "backprop", "re-entrant checkpointing")
    assert "gradcam" in error.hint


# ---- compiled, parallel, scripted
class Counting:
    """A backend of torch.compile that runs graphs as they are and counts how many it was given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


def compiled_whole(backend: Any) -> nn.Module:
    return torch.compile(net(), backend=backend)  # type: ignore[return-value]


def compiled_in_place(backend: Any) -> nn.Module:
    module = net()
    module.compile(backend=backend)
    return module


def compiled_part(backend: Any) -> nn.Module:
    module = net()
    module.features = torch.compile(module.features, backend=backend)  # type: ignore[assignment]
    return module


def compiled_function(backend: Any) -> nn.Module:
    class Inside(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.compile(lambda x: self.features(x), backend=backend)(x).mean((2, 3)))

    return net(Inside)


@pytest.mark.parametrize("make", [compiled_whole, compiled_in_place, compiled_part, compiled_function])
def test_compiled_modules_run_eagerly_for_us_and_are_compiled_still(make: Callable[[Any], nn.Module]) -> None:
    torch.compiler.reset()
    backend = Counting()
    module = make(backend).eval()
    for _ in range(2):
        for method in ("backprop", "guided_backprop", "gradcam"):
            same(module, method)
        same(module, "occlusion", **OCCLUSION)
    assert backend.graphs == 0
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(module(x), net().eval()(x))
    assert backend.graphs > 0


@pytest.mark.parametrize("make", [compiled_whole, compiled_part])
def test_layers_of_compiled_modules_have_plain_names_and_answer_to_both(make: Callable[[Any], nn.Module]) -> None:
    model = visx.wrap(make("eager"), size=64, resize=64)
    assert not any("_orig_mod" in layer.name for layer in model.anatomy.layers)
    plain = visx.explain(model, PICTURE, "gradcam", layer="features.1").map
    for name in ("_orig_mod.features.1", "features._orig_mod.1"):
        np.testing.assert_array_equal(visx.explain(model, PICTURE, "gradcam", layer=name).map, plain)
    with pytest.raises(VisxError, match="unknown layer"):
        visx.explain(model, PICTURE, "gradcam", layer="_orig_mod.featurs.1")


def test_the_stance_of_the_compiler_comes_back_from_nested_sessions() -> None:
    import torch._dynamo.eval_frame as frames

    before = frames._stance.stance
    with forms.eager():
        with forms.eager():
            assert frames._stance.stance == "force_eager"
        assert frames._stance.stance == "force_eager"
    assert frames._stance.stance == before
    with pytest.raises(ZeroDivisionError), forms.eager():
        _ = 1 / 0
    assert frames._stance.stance == before


def test_parallel_wrappers_are_seen_through(tmp_path: Path) -> None:
    same(nn.DataParallel(net()), "gradcam")
    same(nn.DataParallel(net()), "gradcam", layer="features.1")
    assert explained(nn.DataParallel(net()), "gradcam", layer="module.features.1").any()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        same(nn.parallel.DistributedDataParallel(net()), "guided_backprop")
        same(nn.parallel.DistributedDataParallel(net()), "occlusion", **OCCLUSION)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_a_scripted_part_leaves_the_eager_layers() -> None:
    class Part(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.late(self.early(x)).mean((2, 3)))

    def part() -> nn.Module:
        module = net(Part)
        module.early = torch.jit.script(copy.deepcopy(module.features[:3]))
        module.late = module.features[3:]
        return module

    same(part())
    np.testing.assert_allclose(explained(part(), "gradcam", layer="late.5"), explained(net(), "gradcam"), rtol=1e-6)
    assert refused(part(), "gradcam", "layer early is scripted", layer="early").code == ExitCode.UNSUPPORTED
    for name in ("guided_backprop", "libragrad", "attnlrp"):
        assert refused(part(), name, "scripted module early").code == ExitCode.UNSUPPORTED


@pytest.mark.filterwarnings("ignore")
def test_a_traced_module() -> None:
    module = torch.jit.trace(net().eval(), torch.zeros(1, 3, 64, 64, dtype=torch.float64))
    same(module)
    assert refused(module, "gradcam", "scripted or traced").code == ExitCode.UNSUPPORTED


# ---- numbers
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("parts", [["features", "head"], ["features"], ["head"]])
def test_full_precision_is_full_for_modules_whose_weights_are_half(dtype: torch.dtype, parts: list[str]) -> None:
    module = net().float()
    for part in parts:
        getattr(module, part).to(dtype)
    before = fingerprint(module)
    same(module, "backprop", like=copy.deepcopy(module).float())
    same(module, "occlusion", like=copy.deepcopy(module).float(), **OCCLUSION)
    assert_unchanged(before, fingerprint(module))


def test_complex_buffers_keep_their_imaginary_part_at_half_precision() -> None:
    class Turned(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("turn", torch.polar(torch.ones(64, 33), torch.full((64, 33), 0.7)))

        def forward(self, x: Tensor) -> Tensor:
            turned = torch.fft.irfft2(torch.fft.rfft2(x.to(torch.float32)) * self.turn)
            return super().forward(turned.to(x.dtype))

    module = net(Turned).float()
    full, bf16 = (explained(module, "backprop", precision=p, target=3) for p in ("fp32", "bf16"))
    assert np.corrcoef(full.ravel(), bf16.ravel())[0, 1] > 0.98
    module.turn = module.turn.real + 0j
    assert np.corrcoef(full.ravel(), explained(module, target=3).ravel())[0, 1] < 0.95  # what dropping it would give


def test_a_precision_that_the_module_cannot_run_at_is_said_before_any_image() -> None:
    class Numpy(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.from_numpy(self.features(x).detach().numpy()).mean((2, 3)))

    error = refused(net(Numpy).float(), "occlusion", "at bf16 fails", precision="bf16", **OCCLUSION)
    assert "fp32" in error.hint


def test_a_module_that_cannot_be_copied_says_so() -> None:
    module = net()
    module.last = module.head.weight * 2  # a tensor with a history cannot be copied
    same(module)
    refused(module, "occlusion", "cannot be copied", precision="bf16", **OCCLUSION)


@pytest.mark.parametrize("where", ["parameter", "buffer", "first of several"])
def test_pictures_come_in_the_type_of_the_convolutions(where: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            one = torch.ones(99 if where == "first of several" else 1, dtype=torch.float64)
            if where == "buffer":
                self.register_buffer("scale", one)
            else:
                self.scale = nn.Parameter(one)
            self.net = net().float()

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return self.net(x) * self.scale[0].float()

    same(Odd(), like=net().float())


def test_a_module_without_parameters_takes_the_type_of_its_buffers() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.randn(10, 3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x.relu().mean((2, 3)) @ self.weight.T

    assert np.ptp(explained(Fixed())) > 0
    assert np.ptp(explained(Fixed(), "occlusion", precision="bf16", **OCCLUSION)) > 0


# ---- state
@pytest.mark.parametrize(
    "odd",
    [
        torch.eye(10).to_sparse(),
        torch.eye(10).to_sparse_csr(),
        torch.eye(10) + 0j,
        torch.eye(10).conj() * 1j,
        torch.quantize_per_tensor(torch.eye(10), 0.1, 0, torch.quint8),
        torch.zeros(0),
        torch.tensor(3),
        torch.eye(10) > 0,
    ],
    ids=lambda t: f"{t.dtype}-{t.layout}",
)
def test_the_digest_tells_odd_buffers_apart(odd: Tensor) -> None:
    def holding(tensor: Tensor) -> nn.Module:
        module = net()
        module.register_buffer("odd", tensor)
        return module

    digest = checkpoints.digest_state(holding(odd))
    assert digest == checkpoints.digest_state(holding(odd.clone()))
    assert digest != checkpoints.digest_state(net())
    if odd.numel() > 1:
        dense = odd.dequantize() if odd.is_quantized else odd.to_dense() if odd.layout is not torch.strided else odd
        other = torch.quantize_per_tensor(dense.flip(0), 0.1, 0, torch.quint8) if odd.is_quantized else dense.flip(0)
        other = other.to_sparse() if odd.layout is torch.sparse_coo else other
        assert digest != checkpoints.digest_state(holding(other))
    same(holding(odd))


@pytest.mark.parametrize(
    "states", [({"version": 3}, {"version": 4}), ("a", "b"), (None, 0), ([torch.ones(2)], [torch.zeros(2)])]
)
def test_extra_state_counts(states: tuple[Any, Any]) -> None:
    class Extra(Base):
        state: Any = None

        def get_extra_state(self) -> Any:
            return self.state

        def set_extra_state(self, state: Any) -> None: ...

    modules = [net(Extra), net(Extra), net(Extra)]
    for module, state in zip(modules, (states[0], states[0], states[1]), strict=True):
        module.state = state
    digests = [checkpoints.digest_state(module) for module in modules]
    assert digests[0] == digests[1] != digests[2]
    same(modules[0])


def test_meta_tensors_are_refused() -> None:
    with torch.device("meta"):
        module = Base()
    with pytest.raises(VisxError, match=r"no values in features\.0\.weight.*meta device") as caught:
        visx.wrap(module)
    assert caught.value.code == ExitCode.USAGE
    assert "to_empty" in caught.value.hint
    module = net()
    module.register_buffer("empty", torch.zeros(2, device="meta"))
    with pytest.raises(VisxError, match="no values in empty"):
        visx.wrap(module)


def test_lazy_layers_take_their_shapes_at_wrap_and_always_the_same_values() -> None:
    def lazy() -> nn.Module:
        return nn.Sequential(
            nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
        ).train()

    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, other = (visx.wrap(lazy(), size=16, resize=16) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.weights == other.weights
    assert one.module.training  # left as it was
    assert torch.equal(one.module[1].running_mean, torch.zeros(4))  # the dry run moved no statistics
    like = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 5))
    like.load_state_dict(one.module.state_dict())
    picture = PICTURE[:16, :16]
    want = visx.explain(visx.wrap(like, size=16, resize=16), picture, "backprop").map
    np.testing.assert_array_equal(visx.explain(one, picture, "backprop").map, want)


def test_lazy_layers_that_do_not_fit_the_size_say_so() -> None:
    with pytest.raises(VisxError, match=r"fails on an input of 1x3x4x4.*Kernel size") as caught:
        visx.wrap(nn.Sequential(nn.LazyConv2d(4, 7), nn.Flatten(), nn.LazyLinear(5)), size=4)
    assert "another size" in caught.value.hint


# ---- forward
class KeywordOnly(Base):
    def forward(self, *, x: Tensor) -> Tensor:
        return super().forward(x)


class AnotherArgument(Base):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x)


class NoArgument(Base):
    def forward(self) -> Tensor:
        return super().forward(torch.zeros(1, 3, 64, 64))


class OfADict(Base):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["image"])


class OfAMapping(Base):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch.get("image"))  # type: ignore[arg-type]


class OfAList(Base):
    def forward(self, images: list[dict[str, Tensor]]) -> Tensor:
        return super().forward(torch.stack([image["pixels"] for image in images]))


@pytest.mark.parametrize("kind", [KeywordOnly, AnotherArgument, NoArgument, OfADict, OfAMapping, OfAList])
@pytest.mark.parametrize("method", ["occlusion", "backprop"])
def test_another_signature_is_refused_in_words(kind: type[nn.Module], method: str) -> None:
    error = refused(net(kind), method, "visx calls forward(x) with one batch of pictures, a tensor (N, C, H, W)")
    assert error.code == ExitCode.UNSUPPORTED
    assert f"{kind.__name__}.forward(" in error.message
    assert "forward(self, x)" in error.hint
    assert "another size" not in error.hint


def test_signatures_that_take_one_tensor_work() -> None:
    class Starred(Base):
        def forward(self, *images: Tensor, **options: Any) -> Tensor:
            return super().forward(*images)

    class Optional(Base):
        def forward(self, pixel_values: Tensor, mask: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
            return super().forward(pixel_values)

    same(net(Starred))
    same(net(Optional))


@pytest.mark.parametrize(
    ("forward", "hint"),
    [
        (lambda self, x: self.head(self.features(x).flatten(1)), "another size"),
        (lambda self, x: self.features(x[:, :1]), "one number for each channel"),
        (lambda self, x: self.features(x.float()), "float32"),
        (lambda self, x: x.nonsense(), "forward(self, x)"),
        (lambda self, x: {"a": x}["b"], "visx calls forward(x)"),
        (lambda self, x: 1 / 0, "visx calls forward(x)"),
    ],
)
def test_the_hint_fits_the_failure(forward: Callable[..., Any], hint: str) -> None:
    kind = type("Failing", (Base,), {"forward": forward})
    with pytest.raises(VisxError) as caught:
        explained(net(kind), "occlusion")
    assert hint in caught.value.hint
    assert ("another size" in caught.value.hint) == (hint == "another size")


@pytest.mark.parametrize("work", [lambda x: x.sub_(0.3).mul_(2), lambda x: x.data.mul_(3), lambda x: torch.relu_(x)])
@pytest.mark.parametrize("method", ["occlusion", "rise", "lime", "gradcam", "backprop", "integrated_gradients"])
def test_a_forward_that_works_in_place_on_its_input_never_sees_what_it_left(work: Any, method: str) -> None:
    class InPlace(Base):
        def forward(self, x: Tensor) -> Tensor:
            work(x)
            return super().forward(x)

    class Plain(Base):
        def forward(self, x: Tensor) -> Tensor:
            x = x.clone()
            work(x)
            return super().forward(x)

    options: dict[str, Any] = {"occlusion": OCCLUSION, "rise": {"masks": 16}, "lime": {"samples": 64}}
    options["integrated_gradients"] = {"steps": 3}
    same(net(InPlace), method, like=net(Plain), **options.get(method, {}))
    array = PICTURE.copy()
    explained(net(InPlace), method, **options.get(method, {}))
    assert np.array_equal(array, PICTURE)


def test_hooks_of_the_users_own_count_and_stay() -> None:
    def with_hooks(module: nn.Module) -> nn.Module:
        module.features[2].register_forward_hook(lambda m, args, output: output * 2)
        module.features[0].register_forward_pre_hook(lambda m, args: (args[0] * 1.5,))
        return module

    class Written(Base):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.features[3:](self.features[:3](x * 1.5) * 2).mean((2, 3)))

    module = with_hooks(net())
    for method in ("backprop", "guided_backprop", "gradcam"):
        same(module, method, like=net(Written))
    assert len(module.features[2]._forward_hooks) == len(module.features[0]._forward_pre_hooks) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_parametrisations_and_shared_weights(precision: str) -> None:
    module = net().float()
    nn.utils.parametrizations.weight_norm(module.features[0])
    nn.utils.parametrizations.spectral_norm(module.features[3])
    module.again = module.features[3]
    before = fingerprint(module)
    like = net().float()
    with torch.no_grad():
        for index in (0, 3):
            like.features[index].weight.copy_(module.eval().features[index].weight)
    module.train()
    for method in ("backprop", "gradcam", "guided_backprop"):
        if precision == "fp32":
            same(module, method, like=like)
        else:
            both = [explained(m, method, precision=precision).ravel() for m in (module, like)]
            assert np.corrcoef(both)[0, 1] > 0.999
    assert_unchanged(before, fingerprint(module))


@pytest.mark.accelerated
def test_three_dimensional_weights_beside_a_channels_last_network() -> None:
    model = visx.load_model("timm/lambda_resnet26t", "random")
    assert any(p.dim() == 5 for p in model.module.parameters())
    stem = model.module.stem.conv1.conv
    assert stem.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.anatomy.classes == 1000


@pytest.mark.parametrize("labels", [None, [f"c{i}" for i in range(10)]])
def test_a_head_that_is_replaced_after_wrapping(labels: list[str] | None) -> None:
    module = net()
    model = visx.wrap(module, size=64, resize=64, labels=labels)
    assert visx.explain(model, PICTURE, "backprop", target=9).target == 9
    module.head = nn.Linear(16, 7).double()
    if labels is None:
        assert visx.explain(model, PICTURE, "occlusion", target=6, **OCCLUSION).label == "6"
        assert model.classes == 7
        with pytest.raises(VisxError, match="out of range"):
            visx.explain(model, PICTURE, "backprop", target=9)
    else:
        with pytest.raises(VisxError, match="10 labels for a model of 7 classes") as caught:
            visx.explain(model, PICTURE, "backprop", target=6)
        assert "labels=" in caught.value.hint
        model.labels = tuple("abcdefg")
        assert visx.explain(model, PICTURE, "backprop", target=6).label == "g"
