"""Relevance rules: how the gradient passes each operation of a graph that autograd has recorded, so that input times
gradient becomes a share of the score.

A `Composite` is an ordered list of (operations, rule): the first whose operations have a node's name holds. A rule looks at
a node and answers with a hook that changes the gradients which the node sends to its inputs, or with None where they stay
as they are. The forward pass is the network's own, with its fused kernels, and nothing is patched; the hooks end with
the graph. Gradient times value is the relevance of a value, and a rule for relevance, R_i = sum_j rho_ij R_j, is
grad_i = sum_j rho_ij y_j / x_i grad_j here.

Some values count as constants, so that no relevance goes to them: gates and the scale of a normalisation, which only
multiply other values (found by following their uses), and all that is made of constants alone.
An operation that has no rule is named, never passed in silence.

A method writes a `Composite` (visx/network/rules/composites.py has some) and calls `Request.relevance(composite)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from visx.network.rules.operations import (
    FUSED_ATTENTION,
    INPUT,
    LINEAR,
    PIECEWISE,
    PRODUCTS,
    SOFTMAX,
    SQUASHING,
    operation,
)

Grads = tuple[Any, ...]  # tensors, None where there is no gradient; the first that comes in is never None
Hook = Callable[[Grads, Grads], Grads]
Rule = Callable[[Any, "Graph"], Hook | None]


class NoRule(Exception):  # noqa: N818 (a signal, no error)
    """Raised by a rule that does not hold for a node."""


class Gates(NamedTuple):
    """Operations whose values may be gates. `through` says what may lie between them and what they multiply: "shape" (they are
    moved, weighted and shifted by constants), "linear" (matrix products with constants and sums too), or "scale" (what
    makes the scale of a normalisation). `shifted`: only where their input has a constant added to it."""

    operations: frozenset[str]
    through: str
    shifted: bool = False


class Composite(NamedTuple):
    """A list of rules by operation. `gates` are tried in order: of a product of two the first found is the gate. `cut` are
    inputs that get no relevance, by operation. `weighs`: its rules read the inputs of linear layers, which autograd keeps
    only where their weights want a gradient."""

    rules: tuple[tuple[frozenset[str], Rule], ...]
    gates: tuple[Gates, ...] = ()
    cut: Mapping[str, frozenset[int]] = {}
    weighs: bool = False

    def rule(self, name: str) -> Rule | None:
        """The rule of an operation, None where it has none."""
        return next((rule for operations, rule in self.rules if name in operations), None)


class Graph:
    """The graph behind an output as a composite reads it. `leaf` is the input (None: whatever wants a gradient is).

    `names` has every node, inputs first; `uses` the nodes that a node's values go to, each with the number of its input;
    `constant` those that count as constants; `gates` the gates among them.
    """

    def __init__(self, output: Tensor, composite: Composite, leaf: Tensor | None = None) -> None:
        self.composite, self.leaf = composite, leaf
        self.root: Any = output.grad_fn
        self.names: dict[Any, str] = {node: operation(node) for node in _ordered(self.root)}
        self.uses: dict[Any, list[tuple[Any, int]]] = {node: [] for node in self.names}
        for node in self.names:
            for place, (before, _) in enumerate(node.next_functions):
                if before is not None:
                    self.uses[before].append((node, place))
        self.endings = self._endings()
        self.gates: set[Any] = set()
        self._gated: dict[Any, int] = {}  # by product: which of its inputs is a gate
        self.constant: set[Any] = set()
        self._find_constants()
        for gates in composite.gates:
            for node, name in self.names.items():
                if name in gates.operations and node not in self.endings and self._is_gate(node, gates):
                    self.gates.add(node)
        self._find_constants()

    def live(self, node: Any) -> tuple[int, ...]:
        """Which inputs of a node get relevance."""
        if node in self.gates:
            return ()
        cut = self.composite.cut.get(self.names[node], frozenset())
        return tuple(
            place
            for place, (before, _) in enumerate(node.next_functions)
            if before is not None and place not in cut and before not in self.constant
        )

    def plan(self, ends: Collection[Any] = (), *, dry: bool = False) -> Plan:
        """The hooks that make the composite's rules hold, and what has none; of the nodes on the way to `ends` alone, where
        relevance is not wanted further back. `dry`: no hooks, and no value is read."""
        plan = Plan([], Counter(), reaches=bool(ends))
        reached, wanted = {self.root}, self._on_the_way(ends) if ends else self.names.keys()
        for node, name in reversed(self.names.items()):
            if node not in reached or node not in wanted:
                continue
            if name == INPUT:
                plan.reaches = True
                continue
            live = self.live(node)
            reached.update(node.next_functions[place][0] for place in live)
            rule = self.composite.rule(name)
            if not live or (rule is None and node not in self.endings):
                plan.unknown[name] += 1
            elif not dry:
                self._add(plan, node, live, None if node in self.endings else rule)
        return plan

    def _add(self, plan: Plan, node: Any, live: tuple[int, ...], rule: Rule | None) -> None:
        try:
            hook = None if rule is None else rule(node, self)
        except NoRule:
            plan.unknown[self.names[node]] += 1
            return
        dead = {place for place, (before, _) in enumerate(node.next_functions) if before and place not in live}
        if hook or dead:
            plan.hooks.append((node, _without(hook, frozenset(dead))))

    def _on_the_way(self, ends: Collection[Any]) -> set[Any]:
        """The nodes that are made from these, themselves not included unless from another one."""
        result: set[Any] = set()
        for node in self.names:
            if any(before in result or before in ends for before, _ in node.next_functions):
                result.add(node)
        return result

    def _find_constants(self) -> None:
        """Gates, tensors other than the input, and whatever is made of them alone."""
        for node, name in self.names.items():
            if name == INPUT:
                made = self.leaf is not None and node.variable is not self.leaf
            else:
                inputs = [before for before, _ in node.next_functions if before is not None]
                made = node in self.gates or all(before in self.constant for before in inputs)
            if made:
                self.constant.add(node)

    def _endings(self) -> set[Any]:
        """The softmax or sigmoid that the output still holds: a score's own, whose gradient stays as it is."""
        result, seen, waiting = set(), {self.root}, [self.root]
        while waiting:
            node = waiting.pop()
            name = self.names[node]
            if name in SQUASHING:
                result.add(node)
            elif name in LINEAR:
                fresh = [before for before, _ in node.next_functions if before is not None and before not in seen]
                seen.update(fresh)
                waiting += fresh
        return result

    def _is_gate(self, gate: Any, gates: Gates) -> bool:
        """Whether all that becomes of a node's values is that they multiply or divide others."""
        if gates.shifted and not self._shifted(gate):
            return False
        products: dict[Any, int] = {}
        seen, waiting = {gate}, [gate]
        while waiting:
            node = waiting.pop()
            if node is self.root:
                return False
            for use, place in self.uses[node]:
                if self._multiplies(use, place):
                    products[use] = place
                elif not self._carries(use, gates):
                    return False
                elif use not in seen:
                    seen.add(use)
                    waiting.append(use)
        if not products or any(self._gated.get(product, place) != place for product, place in products.items()):
            return False
        self._gated |= products
        return True

    def _shifted(self, node: Any) -> bool:
        before = node.next_functions[0][0]
        return before is not None and self.names[before] in ("Add", "Rsub", "Sub") and len(self.live(before)) == 1

    def _multiplies(self, node: Any, place: int) -> bool:
        """Whether a node multiplies what comes in at `place` with something that depends on the input, or divides by it."""
        name = self.names[node]
        if name == "Div":
            return place == 1
        pair = PRODUCTS.get(name, ())
        return place in pair and set(pair) <= set(self.live(node))

    def _carries(self, node: Any, gates: Gates) -> bool:
        """Whether a node only moves, weighs or shifts the values of a gate."""
        name = self.names[node]
        if name in ("Add", "Sub", "Rsub") and gates.through == "shape" and len(self.live(node)) > 1:
            return False
        if name in LINEAR or name in ("Mul", "Div"):
            return True
        if gates.through == "scale":
            return name in PIECEWISE or name in gates.operations or name == "Pow"
        return gates.through == "linear" and name in PRODUCTS


class Plan:
    """Hooks by node; `unknown` counts operations without a rule, by name; `reaches`: relevance arrives at the input."""

    def __init__(self, hooks: list[tuple[Any, Hook]], unknown: Counter[str], reaches: bool = False) -> None:
        self.hooks, self.unknown, self.reaches = hooks, unknown, reaches

    @property
    def lacking(self) -> str:
        """Why the rules do not hold, in words; empty where they do."""
        if self.unknown:
            return f"it uses operations that have no relevance rule: {', '.join(sorted(map(said, self.unknown)))}"
        return (
            "" if self.reaches else "all ways from its output to the input lead through gates, which get no relevance"
        )

    def hang(self) -> None:
        """Let the hooks act in every backward pass through the graph."""
        for node, hook in self.hooks:
            node.register_hook(hook)


def said(name: str) -> str:
    """An operation as a user is told of it."""
    if name in SOFTMAX or name in FUSED_ATTENTION:
        return "softmax (not of an attention)" if name in SOFTMAX else "attention over constant values"
    return "work in place on a slice" if name == "CopySlices" else name.rpartition(".")[2].lower()


def lacking(output: Any, composite: Composite) -> str:
    """Why a composite's rules do not hold in the graph behind an output, in words; empty where they do, or where there is no
    graph."""
    graph = getattr(output, "grad_fn", None)
    try:
        return "" if graph is None else Graph(output, composite).plan(dry=True).lacking
    except RuntimeError:  # autograd does not hand out what was written to, and would fail in the backward pass
        return "it writes in place to a value that its gradient needs"


def _ordered(root: Any) -> list[Any]:
    """Every node behind `root`, itself included, each after all that it is made from."""
    order: list[Any] = []
    seen: set[Any] = set()
    waiting = [(root, False)]
    while waiting:
        node, ready = waiting.pop()
        if ready:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            waiting.append((node, True))
            waiting += [(before, False) for before, _ in node.next_functions if before is not None]
    return order


def _without(hook: Hook | None, dead: frozenset[int]) -> Hook:
    """A hook that also drops the gradients of these inputs: behind them nothing is computed. No gradient is no gradient."""

    def act(grads: Grads, incoming: Grads) -> Grads:
        result = grads if hook is None or incoming[0] is None else hook(grads, incoming)
        unwanted = [place in dead or grad is None for place, grad in enumerate(grads)]
        return tuple(None if none else grad for none, grad in zip(unwanted, result, strict=True))

    return act
