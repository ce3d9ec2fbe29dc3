"""Whether tokens can be left out of a network, found by running it on noise, not by names.

Behind the place where tokens are taken out (visx/network/stream.py finds it)

- the network must run on some of them,
- the scores must not depend on their order: no relative position, rotation, window or convolution is left,
- the scores must follow from the tokens alone, and
- no slice may count on their full number.

Then a token that is left out is one that has no weight in any attention, but for rounding. Before that place a token must
see its own patch alone, else those that stay would tell of hidden pixels (as in a hybrid whose tokens come from convolutions).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from visx.errors import said_by
from visx.network.fast import agree
from visx.network.forms import closed
from visx.network.memory import out_of_memory
from visx.network.probe import noise
from visx.network.stream import entrances
from visx.network.tokens import Followed, Tokens

_MOVED = "its scores depend on the order or the number of its tokens"
_ELSEWHERE = "its scores depend on more than its tokens"
_COUNTED = "it counts on the full number of its tokens"
_SEEN = "its tokens see more of the picture than their own patch"


def learn(network: Followed, shape: torch.Size) -> Tokens | str:
    """The tokens of a network for pictures of this shape (C, H, W), or why none of them can be left out, in words.

    Costs a few passes over noise. Call inside a session.
    """
    if reason := closed(network.module):
        return reason
    if not network.steady:
        return "its output depends on more than its picture (random draws, other pictures, earlier passes)"
    half = network.dtype in (torch.float16, torch.bfloat16)  # whose rounding would hide what is looked for
    tried = network.converted(torch.float32) if half else network
    with tried.session(), torch.no_grad():
        taps = entrances(tried.record(shape))
        if isinstance(taps, str):
            return taps
        reasons = []
        for tokens in (Tokens(tried, tap, many) for tap in taps for many in (False, True)):
            try:
                reason = _unfit(tokens, shape)
                if not reason:
                    return replace(tokens, network=network, bare=_bare(tokens, shape))
            except Exception as error:  # whatever a user's own forward raises
                if out_of_memory(error):
                    raise
                reason = f"it does not run on a part of its tokens ({said_by(error)})"
            reasons.append(reason)
    return next((reason for reason in reasons if reason in (_MOVED, _COUNTED, _SEEN, _ELSEWHERE)), reasons[-1])


def _unfit(tokens: Tokens, shape: torch.Size) -> str:
    """Why tokens may not be taken out at this tap, found by passes over two noise pictures; empty where they may."""
    draw = torch.Generator().manual_seed(1)
    one, other = noise(shape)[0], torch.randn(shape, generator=draw)
    cells = tokens.grid[0] * tokens.grid[1]
    visible = torch.zeros(2, cells, dtype=torch.bool)
    visible[0] = True
    visible[1, torch.randperm(cells, generator=draw)[: _prime(cells // 2)]] = True
    every, some = (tokens.positions(row[None]) for row in visible)
    with _Overreaching() as part:  # first: most networks that do not fit fail here
        pair = tokens.run_on(one, torch.cat([some, _shuffled(tokens, some, draw)]))
    sequence, wanted = tokens.sequence(other)
    with _Overreaching() as whole:
        replaced = tokens.run_on(one, every, sequence)
    if not agree(wanted, replaced, torch.float32):
        return _ELSEWHERE
    if whole.times != part.times:
        return _COUNTED
    around, own = (tokens.sequence(x)[0][some[0]] for x in (_inside(one, other, ~visible[1], tokens.grid), one))
    if not agree(own, around, torch.float32):
        return _SEEN
    moved = tokens.run_on(one, _shuffled(tokens, every, draw), sequence)
    return "" if agree(wanted, moved, torch.float32) and agree(pair[:1], pair[1:], torch.float32) else _MOVED


def _bare(tokens: Tokens, shape: torch.Size) -> bool:
    """Whether a copy without any patch can be scored."""
    nothing = tokens.positions(torch.zeros(1, tokens.grid[0] * tokens.grid[1], dtype=torch.bool))
    try:
        return bool(tokens.run_on(noise(shape)[0], nothing).isfinite().all())
    except Exception as error:  # whatever a user's own forward raises
        if out_of_memory(error):
            raise
        return False


def _inside(image: Tensor, other: Tensor, cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """An image (C, H, W) with pixels of another one within some cells of a grid; their borders stay, for a grid need not fill
    the image to the last pixel."""
    image = image.clone()
    sides = [size / count for size, count in zip(image.shape[-2:], grid, strict=True)]
    for cell in cells.nonzero().flatten().tolist():
        rows, columns = (
            slice(round((place + 0.25) * side), max(round((place + 0.75) * side), round((place + 0.25) * side) + 1))
            for place, side in zip(divmod(cell, grid[1]), sides, strict=True)
        )
        image[:, rows, columns] = other[:, rows, columns]
    return image


class _Overreaching(TorchFunctionMode):
    """Counts the slices that reach beyond their tensor: a forward that remembers how many tokens there were makes them,
    and Python cuts them off in silence."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "__getitem__":
            self.times += _overreaches(args[0].shape, args[1] if isinstance(args[1], tuple) else (args[1],))
        elif name == "split" and len(args) > 1 and isinstance(args[1], int):
            self.times += args[1] > args[0].shape[args[2] if len(args) > 2 else (kwargs or {}).get("dim", 0)]
        return func(*args, **(kwargs or {}))


def _overreaches(shape: torch.Size, index: tuple[Any, ...]) -> int:
    """How many slices of an index reach beyond a tensor of this shape."""
    parts = [part for part in index if part is not None]
    dots = next((i for i, part in enumerate(parts) if part is Ellipsis), len(parts))
    sizes = [*shape[:dots], 0, *shape[len(shape) - (len(parts) - dots - 1) :]] if dots < len(parts) else list(shape)
    return sum(
        any(isinstance(end, int) and abs(end) > size for end in (part.start, part.stop))
        for part, size in zip(parts, sizes, strict=False)
        if isinstance(part, slice)
    )


def _shuffled(tokens: Tokens, positions: Tensor, draw: torch.Generator) -> Tensor:
    """Positions (1, n) with those of patches in another order; those of other tokens stay where they are."""
    grid = tokens.tap.grid
    patch = torch.zeros(grid.places[0], dtype=torch.bool)
    patch[slice(None) if grid.cells is None else grid.cells.cpu()] = True
    result = positions[0].cpu()
    where = patch[result].nonzero().flatten()
    result = result.index_copy(0, where, result[where[torch.randperm(len(where), generator=draw)]])
    return result[None].to(positions.device)


def _prime(most: int) -> int:
    """The largest prime number up to `most`, at least 1: so many tokens are no grid."""
    return next((n for n in range(most, 1, -1) if all(n % d for d in range(2, int(n**0.5) + 1))), 1)
