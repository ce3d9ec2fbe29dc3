"""Loading a state dict into a module, with errors that name the tensors that do not fit.

The module's own `load_state_dict` does it, with the module's hooks for older files.
"""

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
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")  # names that torchvision itself replaces
_COUNTERS = ("total_ops", "total_params")  # buffers that thop's profile() leaves in a module
_OF_TRAINING = re.compile(r"(\w*(loss|criterion|metric|optimizer|ema|teacher|queue)\w*)\.")
_PREFERRED = ("ema", "ema_model", "model_ema", "teacher")


def fit(module: nn.Module, state: dict[str, Any], path: Path) -> list[str]:
    """Load the state dict of the file `path` into the module; prefixes of wrappers are removed.

    Returns remarks, one line each, such as tensors of the file that are not the network's. Raises `VisxError` where tensors
    are missing, unexpected or of another shape, and names the first of them.
    """
    own = module.state_dict()
    state, extra = arranged(own, state, path)
    other = ""  # an error that is none of missing, unexpected or of another shape
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
        other = "" if shapes else str(error).strip().splitlines()[-1].strip()[:200]
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]  # evaluation mode does not read it
    training = [k for k in unexpected if k.rpartition(".")[2] in _COUNTERS or _OF_TRAINING.match(k)]
    unexpected = [k for k in unexpected if k not in training]
    if missing or unexpected or shapes or other:
        parts = [
            f"{len(keys)} {word} ({short(keys)})"
            for word, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
            if keys
        ]
        part = bool(missing) and not (unexpected or shapes or other) and len(missing) < len(own) / 2
        raise VisxError(
            f"{path} does not fit the model: {'; '.join([*parts, *filter(None, [other])])}",
            hint="the file holds a part of the network alone: save all of it, torch.save(model.state_dict(), FILE)"
            if part
            else "is --model the network that was trained?",
        )
    extra += training
    return [f"{path.name}: {len(extra)} of its tensors are not the network's ({short(extra)})"] if extra else []


def classes_in(module: nn.Module, state: dict[str, Any]) -> int | None:
    """The number of classes of a fine-tuned checkpoint: one that differs from the module in the rows of its head only.

    None where it does not differ, or differs elsewhere.
    """
    own = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor) and _has_shape(v)}
    state, _ = arranged(own, state)
    heads = [k for k in own if isinstance(state.get(k), Tensor) and own[k].shape != state[k].shape]
    weights = [k for k in heads if own[k].dim() > 1]
    if not weights or not all(own[k].shape[1:] == state[k].shape[1:] for k in heads):
        return None
    if any(
        state[k].numel() > state[k].untyped_storage().nbytes() for k in heads
    ):  # an expanded tensor: one stored row that claims to be many
        return None
    rows = {state[k].shape[0] for k in heads}
    return int(state[weights[-1]].shape[0]) if len(rows) == 1 else None


def rows_in(module: nn.Module, state: dict[str, Any], name: str) -> int | None:
    """The rows of the matrix `name` in a state dict, which may have it under a prefix; None where there is none. The module
    need not have such a tensor."""
    matrix = arranged(module.state_dict(), state)[0].get(name)
    return int(matrix.shape[0]) if isinstance(matrix, Tensor) and matrix.dim() == 2 else None


def shapes_that_differ(module: nn.Module, state: dict[str, Any]) -> int:
    """How many of a module's tensors have another shape in a state dict."""
    own = module.state_dict()
    return len(_other_shapes(own, arranged(own, state)[0]))


def arranged(
    own: Mapping[str, Any], state: dict[str, Any], path: Path | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The state dict renamed to the names of a module's own state dict, and the names of tensors that are not the module's.

    The names that compiling and wrapping insert are removed, and so is the prefix under which most of the module's names
    are. Where several prefixes fit equally, averaged weights are taken; without such, and with a `path` for the message,
    `VisxError` is raised.
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
    """The tensors whose shapes differ, one text each: "NAME: SHAPE instead of SHAPE"."""
    both = [(k, own[k], state[k]) for k in own if isinstance(own[k], Tensor) and isinstance(state.get(k), Tensor)]
    return [
        f"{k}: {_shape(new)} instead of {_shape(old)}"
        for k, old, new in both
        if _has_shape(old) and old.shape != new.shape
    ]


def _has_shape(tensor: Tensor) -> bool:
    """Whether a tensor has a shape; one of a lazy layer has none before the first pass."""
    return not isinstance(tensor, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer))


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
