"""State dicts -> modules. The module itself loads, with whatever hooks it has for older files; what it says is told."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from visx.errors import VisxError
from visx.models.checkpoint.read import short

_WRAPPED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OLD_DENSENET = re.compile(
    r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)"
)  # torchvision renames these outside the module
_COUNTERS = ("total_ops", "total_params")  # left behind by thop's profile
_OF_TRAINING = re.compile(r"(\w*(loss|criterion|metric|optimizer|ema|teacher|queue)\w*)\.")
_PREFERRED = ("ema", "ema_model", "model_ema", "teacher")


def fit(module: nn.Module, state: dict[str, Any], path: Path) -> list[str]:
    """Load `state` into `module`; prefixes of wrappers are stripped. Returns remarks, one line each. Raises `VisxError` that
    lists missing and unexpected keys and other shapes, shortened: no part of the module may stay as it was."""
    own = module.state_dict()
    state, beside = arranged(own, state, path)
    odd = ""
    try:
        result = module.load_state_dict(state, strict=False)
        missing, unexpected, shapes = list(result.missing_keys), list(result.unexpected_keys), _other_shapes(own, state)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as error:  # other shapes, or a hook of the module's
        missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
        shapes = _other_shapes(own, state)
        odd = "" if shapes else str(error).strip().splitlines()[-1].strip()[:200]
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]  # nothing in eval mode reads it
    training = [k for k in unexpected if k.rpartition(".")[2] in _COUNTERS or _OF_TRAINING.match(k)]
    unexpected = [k for k in unexpected if k not in training]
    if missing or unexpected or shapes or odd:
        parts = [
            f"{len(keys)} {word} ({short(keys)})"
            for word, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if keys
        ]
        part = bool(missing) and not (unexpected or shapes or odd) and len(missing) < len(own) / 2
        raise VisxError(
            f"{path} does not fit the model: {'; '.join([*parts, *filter(None, [odd])])}",
            hint="the file holds a part of the network alone: save all of it, torch.save(model.state_dict(), FILE)"
            if part
            else "is --model the network that was trained?",
        )
    beside += training
    return [f"{path.name}: {len(beside)} of its tensors are not the network's ({short(beside)})"] if beside else []


def classes_in(module: nn.Module, state: dict[str, Any]) -> int | None:
    """The number of classes of a checkpoint that differs from `module` in its last weight's rows alone (fine-tuning
    replaces the head), else None."""
    own = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor) and _made(v)}
    state, _ = arranged(own, state)
    heads = [k for k in own if isinstance(state.get(k), Tensor) and own[k].shape != state[k].shape]
    weights = [k for k in heads if own[k].dim() > 1]
    if not weights or not all(own[k].shape[1:] == state[k].shape[1:] for k in heads):
        return None
    if any(state[k].numel() > state[k].untyped_storage().nbytes() for k in heads):  # one row that claims to be many
        return None
    rows = {state[k].shape[0] for k in heads}
    return int(state[weights[-1]].shape[0]) if len(rows) == 1 else None


def arranged(
    own: Mapping[str, Any], state: dict[str, Any], path: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """A state dict under the names that a module has, and the names of what lies beside it.

    Compiled and wrapped parts have their names back, and the prefix is taken off under which most of the module's names are.
    Of several that fit alike the averaged weights count; else, where a `path` is given, a `VisxError` names them.
    """
    names = {_WRAPPED.sub("", k): k for k in own}
    bare = {_WRAPPED.sub("", k): k for k in state}
    fitting: dict[str, int] = {}
    for key in bare:
        for start in (0, *(m.end() for m in re.finditer(r"\.", key))):
            if key[start:] in names:
                fitting[key[:start]] = fitting.get(key[:start], 0) + 1
    most = max(fitting.values(), default=0)
    best = [p for p, count in fitting.items() if count == most] or [""]
    preferred = [p for p in best if p.split(".")[0] in _PREFERRED]
    prefix = "" if "" in best else (preferred or best)[0]
    if path is not None and prefix and len(best) > 1 and not preferred and most > 1:
        raise VisxError(
            f"{path} holds several networks that fit alike, under {short(best)}",
            hint="save the one that is meant: torch.save(model.state_dict(), FILE)",
        )
    inside = {k[len(prefix) :]: v for k, v in bare.items() if k.startswith(prefix)}
    renamed = {name: _OLD_DENSENET.sub(r"\1\2", name) for name in inside if name not in names}
    result: dict[str, Any] = OrderedDict()
    for name, key in inside.items():
        new = renamed.get(name, name)
        result[names.get(new, new if new in names else name)] = state[key]
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        cut = prefix.rstrip(".")
        result._metadata = OrderedDict(  # type: ignore[attr-defined]
            (k[len(prefix) :], v) for k, v in metadata.items() if k == cut or k.startswith(prefix)
        )
    return result, [key for name, key in bare.items() if not name.startswith(prefix)]


def _other_shapes(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """The tensors whose shapes differ, in words."""
    both = [(k, own[k], state[k]) for k in own if isinstance(own[k], Tensor) and isinstance(state.get(k), Tensor)]
    return [
        f"{k}: {_shape(new)} instead of {_shape(old)}" for k, old, new in both if _made(old) and old.shape != new.shape
    ]


def _made(tensor: Tensor) -> bool:
    """Whether a tensor has a shape yet: a lazy layer's has none."""
    return not isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
