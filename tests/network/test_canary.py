"""Undocumented names of torch that visx/network/ depends on: each exists in this torch.

Where torch renames one, the code often goes on without an error: a rule meets no ReLU, nothing is fused. These tests fail
then, and say which file depends on the name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from visx.network import forms, heads, placement, products
from visx.network.fast import onednn
from visx.network.rules import nodes as rules
from visx.network.rules.operations import PRODUCTS, operation
from visx.network.snapshot import GLOBAL_HOOKS

NAMES = {
    "_C._functorch.peek_interpreter_stack": "isolation.py: torch.func's transforms",
    "_guards.detect_fake_mode": "isolation.py: fake tensors",
    "Tensor._version": "fast/fold.py, fast/exact.py, record.py: values that were written to",
    "_ops.OpOverload": "forms.py: exported programs",
    "compiler.set_stance": "forms.py: compiled modules run eagerly",
    "nn.modules.conv._ConvNd": "forms.py: the type of the first convolution's weight",
    "nn.modules.module._global_forward_hooks": "fast/fold.py: nothing is folded under global hooks",
    "nn.modules.module._global_forward_pre_hooks": "fast/fold.py: nothing is folded under global hooks",
    "nn.modules.module._global_backward_hooks": "fast/fold.py: nothing is folded under global hooks",
    "nn.modules.module._global_backward_pre_hooks": "fast/fold.py: nothing is folded under global hooks",
    **{f"nn.modules.module.{name}": "snapshot.py, fast/fold.py: global hooks" for name in GLOBAL_HOOKS},
    "utils._python_dispatch.TorchDispatchMode._should_skip_dynamo": "trace.py: the compiler is not imported",
    "utils.checkpoint.CheckpointError": "gradients.py: forward that is run again",
    "utils.checkpoint.CheckpointFunction": "probe.py: re-entrant checkpointing, by its name",
    "ops.aten.relu.default": "rules/calls.py",
    "ops.aten.threshold_backward.default": "rules/calls.py",
    "ops.aten.hardtanh_backward.default": "rules/calls.py",
    "ops.aten.convolution_backward.default": "fast/exact.py",
    "ops.aten.native_batch_norm.out": "fast/exact.py",
    "ops.aten._softmax.default.is_view": "trace.py: views move places; choice.py: the weights of an attention",
    "ops.aten.relu.default.overloadpacket.__name__": "trace.py: operations by name",
    "default_generator.manual_seed": "settings.py: the seed of a pass",
    "nn.Module._apply": "forms.py, models/load.py: the values of a module in another form",
}
MODULE = {
    **dict.fromkeys(("_parameters", "_buffers", "_modules"), "isolation.py, restoring.py, models/preprocessing.py"),
    "_non_persistent_buffers_set": "models/preprocessing.py",
    **dict.fromkeys(
        ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"), "fast/fold.py, probe.py"
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_within_torch(name: str):
    try:
        reduce(getattr, name.split("."), torch)
    except AttributeError:
        if name.endswith("_should_skip_dynamo") and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
            pytest.skip("older versions of torch do not import the compiler here")
        pytest.fail(f"torch.{name} is gone, on which leans {NAMES[name]}")


@pytest.mark.parametrize("name", MODULE)
def test_a_table_of_a_module(name: str):
    assert name in vars(nn.Module()), f"nn.Module has no {name}, on which leans {MODULE[name]}"


def test_questions_of_a_tensors_form_have_these_names():
    asked = []

    class Names(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.ones(2, 3)
    with Names():
        _ = x.shape, x._version, x.data, x.dim(), x.size(), x.numel(), x.stride(), x.is_contiguous()
        x[0] = 0
    names = [func.__name__ for func in asked]
    assert names == ["__get__"] * 3 + ["dim", "size", "numel", "stride", "is_contiguous", "__setitem__"], (
        "on these names lean fast/pending.py, fast/windows.py and trace.py"
    )
    assert asked[0] == Tensor.shape.__get__, "an attribute is another function each time, on which lean all of them"


def test_wrappers_of_a_module_keep_it_under_these_names():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
    from torch.distributed.fsdp._common_utils import FSDP_WRAPPED_MODULE

    assert "_orig_mod" in torch.compile(nn.Identity())._modules, "on it lean forms.py and models/checkpoint/fit.py"
    assert "_checkpoint_wrapped_module" in checkpoint_wrapper(nn.Identity())._modules, "models/checkpoint/fit.py"
    assert FSDP_WRAPPED_MODULE == "_fsdp_wrapped_module", "models/checkpoint/fit.py"


def test_a_checkpoint_tells_the_versions_of_its_modules():
    assert nn.BatchNorm2d(1).state_dict()._metadata[""] == {"version": 2}, (
        "on it lean models/checkpoint/fit.py, read.py"
    )


@pytest.mark.parametrize("name", forms._QUANTISED)
def test_a_room_of_quantised_modules(name: str):
    room = importlib.import_module(name)
    own = [m for m in vars(room).values() if isinstance(m, type) and m.__module__.startswith(name)]
    assert any(issubclass(m, nn.Module) for m in own), f"no module lies in {name}, on which leans forms.py"


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has the older interface alone")
@pytest.mark.parametrize("name", ["_get_fp32_precision_getter", "_set_fp32_precision_setter"])
def test_a_setting_of_the_precision(name: str):
    assert hasattr(torch._C, name), f"torch._C.{name} is gone, on which leans settings.py: plain float32"


OPERATIONS = sorted(
    placement.MATMULS
    | placement._MOVES
    | placement._COPIES
    | placement._RESHAPES
    | placement._REDUCTIONS
    | placement._SCRAMBLING
)


@pytest.mark.parametrize("name", [*OPERATIONS, "convolution", "copy", "scaled_dot_product_attention"])
def test_an_operation_that_moves_places(name: str):
    assert hasattr(torch.ops.aten, name) or hasattr(torch.ops.aten, f"{name}_"), (
        f"torch.ops.aten.{name} is gone: trace.py takes its successor for an operation without places"
    )


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_onednns_convolution():
    x, weight = torch.ones(1, 4, 5, 5), torch.ones(4, 4, 3, 3)
    call = onednn.Convolution.called(F.conv2d, (x, weight), {})
    try:
        found = onednn.pointwise(x, onednn.packed(weight, call), None, call.geometry(), 6.0)
    except (RuntimeError, AttributeError) as error:
        pytest.fail(f"fast/onednn.py leans on torch.ops.mkldnn: {error}")
    assert bool((found == 6).all())


def values(*shape: int) -> Tensor:
    """A tensor whose operations are recorded."""
    return torch.rand(*(shape or (2, 3, 4, 4)), generator=torch.Generator().manual_seed(0)).requires_grad_()


def copied_into() -> Tensor:
    x = values() * 1
    x[0] = 0
    x[0].relu_()
    return x


GUIDE = "rules/nodes.py: the guided and the deconvnet rule"
MEANT = "heads.py: what the output means"
# A node's name, what makes it, and the values that are read of it
RULED: list[tuple[str, Callable[[], Tensor], tuple[str, ...]]] = [
    ("ReluBackward0", lambda: values().relu(), ()),
    ("HardtanhBackward0", lambda: F.relu6(values()), ("_saved_min_val",)),
    ("ClampBackward1", lambda: values().clamp(0, 6), ("_saved_min", "_saved_max")),
    ("ClampMinBackward0", lambda: values().clamp_min(0), ("_saved_min",)),
    ("ClampMaxBackward0", lambda: values().clamp_max(0), ("_saved_max",)),
    ("ThresholdBackward0", lambda: F.threshold(values(), 0, 0), ("_saved_threshold",)),
    ("LeakyReluBackward0", lambda: F.leaky_relu(values(), 0.0), ("_saved_negative_slope",)),
    ("EluBackward0", lambda: F.elu(values(), 0.0), ("_saved_alpha",)),
    ("PreluKernelBackward0", lambda: F.prelu(values(), torch.zeros(1)), ("_saved_weight",)),
    ("GeluBackward0", lambda: F.gelu(values()), ()),
    ("SiluBackward0", lambda: F.silu(values()), ()),
    ("HardswishBackward0", lambda: F.hardswish(values()), ()),
    ("HardsigmoidBackward0", lambda: F.hardsigmoid(values()), ()),
    ("MishBackward0", lambda: F.mish(values()), ()),
    ("SoftplusBackward0", lambda: F.softplus(values()), ()),
    ("SigmoidBackward0", lambda: values().sigmoid(), ()),
    ("TanhBackward0", lambda: values().tanh(), ()),
    ("CeluBackward0", lambda: F.celu(values()), ()),
    ("RreluWithNoiseBackward0", lambda: F.rrelu(values(), training=True), ()),
    ("MaximumBackward0", lambda: torch.maximum(values(), torch.zeros(1)), ()),
    ("MinimumBackward0", lambda: torch.minimum(values(), torch.zeros(1)), ()),
    ("FmaxBackward0", lambda: torch.fmax(values(), torch.zeros(1)), ()),
    ("WhereBackward0", lambda: torch.where(values() > 0, values(), 0), ()),
    ("MaskedFillBackward0", lambda: values().masked_fill(values() < 0, 0), ()),
    ("IndexPutBackward0", lambda: values().index_put((torch.tensor([0]),), torch.zeros(1)), ()),
    ("AbsBackward0", lambda: values().abs(), ()),
    ("ClampBackward0", lambda: values().clamp(torch.zeros(1), torch.ones(1)), ()),
    ("ClampMinBackward1", lambda: values().clamp_min(torch.zeros(1)), ()),
    ("MulBackward0", lambda: values() * torch.ones(4), ("_saved_other", "_input_metadata")),
    ("MulBackward0", lambda: torch.ones(4) * values(), ("_saved_self",)),
    ("CopySlices", copied_into, ()),
]
TOLD = {name for name, *_ in RULED}


@pytest.mark.parametrize(("name", "make", "saved"), RULED, ids=[name for name, *_ in RULED])
def test_a_node_that_the_rules_read(name: str, make: Callable[[], Tensor], saved: tuple[str, ...]):
    node: Any = make().grad_fn
    assert node.name() == name or (name == "CopySlices" and node.name().endswith(name)), f"on its name leans {GUIDE}"
    for attribute in saved:
        assert hasattr(node, attribute), f"{name} has no {attribute}, on which leans {GUIDE}"


def test_every_node_that_the_rules_name_is_made_here():
    older = {"ThresholdBackward1", "LeakyReluBackward1"}  # of other overloads, or other versions of torch
    named = {*rules._OTHER_NODES, *rules._SUSPECTS, *rules._BOUNDS, *rules._SLOPES, *rules._CEILINGS}
    assert named - older <= TOLD


def test_a_function_of_somebodys_own_tells_its_class():
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

    node = Own.apply(values()).grad_fn
    assert getattr(node, "_forward_cls", None) is Own, "on _forward_cls leans rules/nodes.py: functions not known"
    again = checkpoint(torch.relu, values(), use_reentrant=True).grad_fn
    assert again._forward_cls.__name__ == "CheckpointFunction", "on its name leans probe.py: re-entrant checkpointing"


def test_a_batch_norms_node_keeps_its_input():
    x = values()
    node: Any = F.batch_norm(x, torch.zeros(3), torch.ones(3)).grad_fn
    assert node.name() == "NativeBatchNormBackward0" and node._saved_input is not None, "on it leans norms.py"


ATTENDING = "products.py: the attentions of a pass"


def heads_of(count: int = 5) -> Tensor:
    return torch.rand(2, 2, count, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.parametrize("mask", [None, torch.zeros(5, 5), torch.ones(5, 5, dtype=torch.bool)])
def test_a_fused_attentions_node_keeps_what_its_weights_are_made_of(mask: Tensor | None):
    query, key, value = heads_of(), heads_of(), heads_of()
    output = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    (product,) = products.in_graph(output)
    wanted = (0.3 * query @ key.transpose(-1, -2)).softmax(-1).flatten(0, 1)
    assert output.grad_fn.name().startswith(products._FUSED_NODES), f"on its name leans {ATTENDING}"
    for name in ("query", "key", "value", "attn_mask", "scale", "is_causal"):
        assert hasattr(output.grad_fn, f"_saved_{name}"), f"on _saved_{name} leans {ATTENDING}"
    torch.testing.assert_close(product.weights(), wanted)


FUSED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "efficient": lambda q, bias: torch.ops.aten._scaled_dot_product_efficient_attention(q, q, q, bias, True),
    "flash": lambda q, bias: torch.ops.aten._scaled_dot_product_flash_attention(q, q, q, scale=0.3),
    "cudnn": lambda q, bias: torch.ops.aten._scaled_dot_product_cudnn_attention(q, q, q, bias, True),
}


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_attention_of_an_accelerator_is_known_as_one(name: str):
    """By its node and as an operation; without values, for which there is no need of an accelerator."""
    query = torch.rand(2, 3, 8, 16, device="meta", dtype=torch.float16).requires_grad_()
    bias = torch.rand(2, 3, 8, 8, device="meta", dtype=torch.float16)
    product = products._product_at(FUSED[name](query, bias)[0].grad_fn)
    assert product is not None and product.shape == tuple(product.weights().shape) == (6, 8, 8), ATTENDING
    assert product.gradient(query).shape == (6, 8, 8)
    if name != "flash":
        assert hasattr(FUSED[name](query, bias)[0].grad_fn, "_saved_attn_bias"), f"on it leans {ATTENDING}"
    seen: list[products.Product] = []
    with torch.no_grad(), products.Stream(seen.append, []):
        FUSED[name](query, bias)
    assert [product.shape for product in seen] == [(6, 8, 8)]


def test_a_fused_attention_is_an_operation_with_named_arguments():
    seen: list[products.Product] = []
    with torch.no_grad(), products.Stream(seen.append, []):
        F.scaled_dot_product_attention(heads_of(), heads_of(), heads_of())
    wanted = (heads_of() @ heads_of().transpose(-1, -2) / 2).softmax(-1).flatten(0, 1)
    torch.testing.assert_close(seen[0].weights(), wanted, msg=f"on ops.aten's names leans {ATTENDING}")


def test_a_written_attentions_nodes_keep_weights_and_values():
    weights = (heads_of() @ heads_of().transpose(-1, -2)).softmax(-1)
    assert weights.grad_fn.name() in products._SOFTMAX_NODES, f"on its name leans {ATTENDING}"
    node: Any = torch.bmm(weights.flatten(0, 1), heads_of().flatten(0, 1)).grad_fn
    assert node.name() == "BmmBackward0" and node._sequence_nr() > weights.grad_fn._sequence_nr()
    assert torch.equal(node._saved_self, weights.flatten(0, 1)) and node._saved_mat2 is not None
    parameter: Any = torch.bmm(weights.flatten(0, 1), torch.ones(4, 5, 3)).grad_fn
    assert parameter._saved_self is None, f"a product with a constant keeps that alone, on which leans {ATTENDING}"


ENDINGS: list[tuple[str, Callable[[], Tensor]]] = [
    ("_SOFTMAX", lambda: values(2, 3).softmax(1)),
    ("_SIGMOID", lambda: values(2, 3).sigmoid()),
    ("_SIGMOID", lambda: F.hardsigmoid(values(2, 3))),
    ("_SQUASHING", lambda: values(2, 3).log_softmax(1)),
    ("_LINEAR", lambda: F.linear(values(2, 3), torch.ones(4, 3), torch.ones(4))),
    ("_LINEAR", lambda: values(2, 3) @ torch.ones(3, 4)),
    ("_LINEAR", lambda: torch.bmm(values(2, 3, 4), torch.ones(2, 4, 5))),
    ("_LINEAR", lambda: torch.baddbmm(torch.ones(1), values(2, 3, 4), torch.ones(2, 4, 5))),
    ("_LINEAR", lambda: torch.mv(values(2, 3), torch.ones(3))),
    ("_LINEAR", lambda: torch.addmv(torch.ones(2), values(2, 3), torch.ones(3))),
    ("_CONVOLUTIONS", lambda: F.conv2d(values(), torch.ones(2, 3, 3, 3))),
    ("_NORMS", lambda: F.batch_norm(values(), torch.zeros(3), torch.ones(3))),
    ("_NORMS", lambda: F.layer_norm(values(), (4,))),
    ("_NORMS", lambda: F.group_norm(values(), 3)),
    ("_NORMS", lambda: torch.linalg.vector_norm(values(2, 3), dim=1)),
    ("_MAX_POOLING", lambda: F.max_pool2d(values(), 2)),
    ("_REDUCING", lambda: F.avg_pool2d(values(), 2)),
    ("_REDUCING", lambda: F.adaptive_avg_pool2d(values(), 2)),
    ("_REDUCING", lambda: F.adaptive_max_pool2d(values(), 2)),
    ("_REDUCING", lambda: values().mean((2, 3))),
    ("_REDUCING", lambda: values().sum(1)),
    ("_REDUCING", lambda: values().amax(1)),
    ("_REDUCING", lambda: values().max(1)[0]),
    ("_REDUCING", lambda: values().logsumexp(1)),
    ("_ADDING", lambda: values() + 1),
    ("_ADDING", lambda: values() - 1),
    ("_ADDING", lambda: 1 - values()),
    ("_SCALING", lambda: values() * 2),
    ("_SCALING", lambda: values() / 2),
    ("_SCALING", lambda: values() ** 2),
    ("_SCALING", lambda: values().exp()),
    ("_JOINING", lambda: torch.cat([values(), values()])),
    ("_JOINING", lambda: torch.stack([values(), values()])),
    ("_VIEWS", lambda: values().view(2, -1)),
    ("_VIEWS", lambda: values().flatten(1)),
    ("_VIEWS", lambda: values().permute(0, 2, 3, 1)),
    ("_VIEWS", lambda: values().transpose(1, 2)),
    ("_VIEWS", lambda: values()[:, 0]),
    ("_VIEWS", lambda: values()[:, 1:]),
    ("_VIEWS", lambda: values().squeeze(1)),
    ("_VIEWS", lambda: values().unsqueeze(1)),
    ("_VIEWS", lambda: values().clone()),
    ("_VIEWS", lambda: values().double()),
    ("_STEPS", lambda: values().relu()),
    ("_STEPS", lambda: F.leaky_relu(values())),
    ("_STEPS", lambda: F.relu6(values())),
    ("_STEPS", lambda: F.threshold(values(), 0, 0)),
    ("_STEPS", lambda: values().tanh()),
    ("_STEPS", lambda: F.elu(values())),
    ("_STEPS", lambda: F.celu(values())),
    ("_STEPS", lambda: F.softplus(values())),
    ("_STEPS", lambda: F.prelu(values(), torch.zeros(1))),
    ("_STEPS", lambda: values().clamp_min(0)),
    ("_STEPS", lambda: values().clamp(0, 1)),
    ("_SMOOTH", lambda: F.gelu(values())),
    ("_SMOOTH", lambda: F.silu(values())),
    ("_SMOOTH", lambda: F.hardswish(values())),
    ("_SMOOTH", lambda: F.mish(values())),
    ("_SCALING", lambda: -values()),
    ("_SCALING", lambda: values().log()),
    ("_SCALING", lambda: values().sqrt()),
    ("_SCALING", lambda: values().rsqrt()),
    ("_SCALING", lambda: values().abs()),
    ("_ADDING", lambda: torch.maximum(values(), torch.zeros(1))),
    ("_ADDING", lambda: torch.minimum(values(), torch.zeros(1))),
    ("_REDUCING", lambda: values().prod(1)),
    ("_VIEWS", lambda: values().permute(0, 2, 3, 1).reshape(2, -1)),
    ("_VIEWS", lambda: torch.ops.aten._reshape_alias(values(), [2, 48], [48, 1])),
    ("_VIEWS", lambda: torch.ops.aten.alias(values())),
    ("_VIEWS", lambda: values(2, 3).t()),
    ("_VIEWS", lambda: values(2, 1).expand(2, 3)),
    ("_VIEWS", lambda: values()[torch.tensor([0])]),
    ("_VIEWS", lambda: values().index_select(0, torch.tensor([0]))),
    ("_VIEWS", lambda: values(2, 3).gather(1, torch.tensor([[0], [1]]))),
    ("_VIEWS", lambda: values().unbind(0)[0]),
    ("_VIEWS", lambda: values().split(1)[0]),
    ("_VIEWS", lambda: values().split([1, 2], 1)[0]),
    ("_VIEWS", lambda: values().as_strided((2, 3), (3, 1))),
    ("_VIEWS", lambda: values().clamp_max(1)),
    ("_VIEWS", lambda: values(2, 3, 4) @ torch.ones(4, 5)),
]


@pytest.mark.parametrize(("known", "make"), ENDINGS)
def test_a_node_that_tells_how_a_network_ends(known: str, make: Callable[[], Tensor]):
    node: Any = make().grad_fn
    assert node.name() in getattr(heads, known), f"{node.name()} is not in heads.{known}, on which leans {MEANT}"


def test_nodes_tell_the_shape_of_what_they_made():
    node: Any = F.conv2d(values(), torch.ones(2, 3, 3, 3)).grad_fn
    assert tuple(node._input_metadata[0].shape) == (2, 2, 2, 2), f"on _input_metadata leans {MEANT}"
    assert node._saved_weight.shape == (2, 3, 3, 3), f"on _saved_weight leans {MEANT}"


def test_every_node_that_tells_how_a_network_ends_is_made_here():
    made = {name_of(make().grad_fn) for _, make in ENDINGS}
    named = {name_of(name) for known in vars(heads).values() if isinstance(known, frozenset) for name in known}
    elsewhere = {"CudnnBatchNorm", "MiopenBatchNorm", "CudnnConvolution", "MkldnnConvolution", "ThnnConv2D", "Linear"}
    other_versions = {"MmT", "FusedRmsNorm", "Unflatten"}
    assert named - elsewhere - other_versions <= made


def name_of(node: Any) -> str:
    return (node if isinstance(node, str) else node.name()).rpartition("Backward")[0]


RELEVANCE = "rules/ (local, gamma, chefer, values, operations): the relevance rules"
# What a rule reads of an operation's node
RELEVANT: list[tuple[str, Callable[[], Tensor], tuple[str, ...]]] = [
    ("Gelu", lambda: F.gelu(values()), ("_saved_self", "_saved_approximate")),
    ("Addmm", lambda: torch.addmm(values(4), values(2, 3), values(3, 4)), ("_saved_mat1", "_saved_mat2")),
    ("Mm", lambda: values(2, 3) @ values(3, 4), ("_saved_self", "_saved_mat2")),
    ("Bmm", lambda: torch.bmm(values(2, 3, 3), values(2, 3, 3)), ("_saved_self", "_saved_mat2")),
    ("Baddbmm", lambda: torch.baddbmm(values(1), values(2, 3, 3), values(2, 3, 3)), ("_saved_batch1", "_saved_batch2")),
    ("Mul", lambda: values() * values(), ("_saved_self", "_saved_other", "_input_metadata")),
    ("Add", lambda: values() + values(), ("_saved_alpha",)),
    ("Mean", lambda: values().mean(1), ("_saved_dim", "_saved_keepdim")),
    ("Slice", lambda: values()[:, 1:], ("_saved_dim", "_saved_start", "_saved_end", "_saved_step")),
    ("Select", lambda: values()[:, 1], ("_saved_dim", "_saved_index")),
    ("Convolution", lambda: F.conv2d(values(), values(2, 3, 1, 1)), ("_saved_input", "_saved_weight", "_saved_stride",
     "_saved_padding", "_saved_dilation", "_saved_transposed", "_saved_output_padding", "_saved_groups")),
    ("Silu", lambda: F.silu(values()), ("_saved_self",)),
    ("Hardswish", lambda: F.hardswish(values()), ("_saved_self",)),
    ("Mish", lambda: F.mish(values()), ("_saved_self",)),
    ("Celu", lambda: F.celu(values()), ("_saved_self", "_saved_alpha")),
    ("Tanh", lambda: values().tanh(), ("_saved_result",)),
    ("Elu", lambda: F.elu(values()), ("_saved_self", "_saved_alpha", "_saved_scale", "_saved_input_scale")),
    ("Elu", lambda: F.elu(values() * 1, inplace=True), ("_saved_result", "_saved_alpha", "_saved_scale")),
    ("Pow", lambda: values() ** 2, ("_saved_exponent",)),
    ("Root", lambda: values() ** -0.5, ("_saved_exponent",)),
    ("power of a tensor", lambda: values() ** torch.ones(4), ()),
    ("Reciprocal", lambda: values().reciprocal(), ()),
    ("Reciprocal", lambda: torch.ones(4) / values(), ()),
    ("NativeLayerNorm", lambda: F.layer_norm(values(), (4,)), ("_saved_input", "_saved_result1", "_saved_result2", "_saved_weight", "_saved_normalized_shape")),
    ("NativeGroupNorm", lambda: F.group_norm(values(), 3), ("_saved_result2", "_saved_weight", "_saved_group")),
    ("NativeBatchNorm", lambda: F.instance_norm(values()), ("_saved_result2", "_saved_weight", "_saved_training")),
    ("Softmax", lambda: values().softmax(1), ()),
    ("SafeSoftmax", lambda: torch.ops.aten._safe_softmax(values(), -1), ()),
    ("LinalgVectorNorm", lambda: values().norm(dim=1), ()),
    ("Erf", lambda: values().erf(), ()),
    ("Addcmul", lambda: torch.addcmul(values(), values(), values()), ()),
    ("ScaledDotProductFlashAttentionForCpu", lambda: F.scaled_dot_product_attention(*[values()] * 3), ("_saved_query", "_saved_key", "_saved_value", "_saved_scale")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "saved"), RELEVANT)
def test_a_node_that_relevance_rules_read(name: str, make: Callable[[], Tensor], saved: tuple[str, ...]):
    node: Any = make().grad_fn
    node = node if node.name() != "ViewBackward0" or name != "NativeBatchNorm" else node.next_functions[0][0]
    assert operation(node) == name, f"on its name leans {RELEVANCE}"
    for attribute in saved:
        assert hasattr(node, attribute), f"{name} has no {attribute}, on which leans {RELEVANCE}"
    kept = {
        "Addmm": "_saved_mat1",
        "Mm": "_saved_self",
        "Convolution": "_saved_input",
    }  # where the weight wants a gradient
    assert name not in kept or getattr(node, kept[name]) is not None, f"on it leans {RELEVANCE}"


def test_a_leaf_of_the_graph_tells_its_tensor():
    x = values()
    ((node, _),) = (x * 1).grad_fn.next_functions[:1]  # type: ignore[union-attr]
    assert operation(node) == "AccumulateGrad" and node.variable is x, f"on it leans {RELEVANCE}"  # type: ignore[union-attr]


def test_inputs_of_products_have_these_places():
    """And of a fused attention: query, key, value."""
    a, b = values(2, 3, 3), values(2, 3, 3)
    for make in (
        a * b,
        torch.bmm(a, b),
        torch.baddbmm(torch.ones(1), a, b),
        torch.addmm(torch.ones(1), a[0], b[0]),
        a[0] @ b[0],
    ):
        node: Any = make.grad_fn
        first, second = PRODUCTS[operation(node)]
        assert node.next_functions[first][0] and node.next_functions[second][0], f"on it leans {RELEVANCE}"
    q, k, v = (values(1, 2, 3, 4) * factor for factor in (1, 2, 3))
    attended: Any = F.scaled_dot_product_attention(q, k, v).grad_fn
    assert [edge for edge, _ in attended.next_functions] == [q.grad_fn, k.grad_fn, v.grad_fn]
