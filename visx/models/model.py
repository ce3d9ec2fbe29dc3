"""A `Model`: a network, how pictures become its input, the names of its outputs, and the origin of its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from visx.errors import VisxError, unsupported, usage
from visx.images.geometry import Preprocess
from visx.models import fingerprint
from visx.models.checkpoint import digest_state
from visx.models.fingerprint import Fingerprint
from visx.network.anatomy import ONLY_SCORES, Anatomy, examine
from visx.network.behaviour import PLAIN, Behaviour, known, observe
from visx.network.blackbox import BlackBox
from visx.network.forms import copied, half, unwrapped, whereabouts
from visx.network.grid import Layer
from visx.network.isolation import unclaimed
from visx.network.network import Network
from visx.network.outputs import Outputs
from visx.network.probe import failure, try_out
from visx.network.restoring import SavedState
from visx.network.snapshot import Snapshot
from visx.targets.classes import label_of, parse_targets
from visx.targets.contract import Target

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Weights:
    """The origin of weights: a name, and the sha256 of their file (of their values, where there is no file)."""

    name: str
    sha256: str


@dataclass
class Model:
    """A network and all that belongs to it; what `load_model` and `wrap` return.

    `source` is a torch module, or a black box that only scores and has no `module`. Explaining never changes a module: its
    modes and flags are set for each use and restored afterwards.
    Models loaded by visx (`owned`) are frozen and mostly `channels_last`; a module handed in keeps its memory layout.
    `accelerate`: whether faster ways to the same results are used. `rounding_safe`: whether single gradients change little
    with the rounding of those (visx/network/fast/accelerated.py). `means` and `head` overrule what running the module shows
    of its outputs.

    `code` returns a digest of the sources of a user's own model, empty where they are unknown; None means a library's model.
    `as_default` is the preprocessing of the built-in model with its own weights, None for all others. `remarks` are about
    loading, one line each, such as tensors of a checkpoint that are not the network's. `about`: how a converted module was had.
    """

    name: str
    source: nn.Module | BlackBox
    preprocess: Preprocess
    weights: Weights
    labels: tuple[str, ...] | None = None
    channels_last: bool = False
    owned: bool = False
    accelerate: bool = True
    rounding_safe: bool = False
    means: str | None = None
    head: str | int | None = None
    code: Callable[[], str] | None = None
    as_default: Preprocess | None = None
    remarks: tuple[str, ...] = ()
    about: str = ""
    _networks: dict[tuple[str, str], Network] = field(default_factory=dict, repr=False)
    _anatomy: Anatomy | None = field(default=None, repr=False)
    _fingerprint: Fingerprint | None = field(default=None, init=False, repr=False, compare=False)
    _behaviour: Behaviour = field(default=PLAIN, repr=False)
    _snapshot: Snapshot | None = field(default=None, init=False, repr=False, compare=False)
    _rest: Any = field(default=None, init=False, repr=False, compare=False)
    closed: str | None = field(default=None, init=False, repr=False, compare=False)  # why a black box is no module
    _recorded: dict[torch.Size, dict[str, Layer]] = field(default_factory=dict, repr=False)

    @property
    def module(self) -> nn.Module:
        """The torch module. Raises `VisxError` (exit 4) where the model is a black box without one."""
        why = self.open()
        if isinstance(self.source, BlackBox):
            reason = f"{ONLY_SCORES}{f' ({why})' if why else ''}"
            raise unsupported(f"{self.name} is no torch module: {reason}", "use a method that needs nothing else")
        return self.source

    @module.setter
    def module(self, module: nn.Module) -> None:
        self.source = module

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the input."""
        return self.preprocess.crop

    @property
    def input_shape(self) -> torch.Size:
        """(channels, height, width) of the input."""
        return torch.Size((len(self.preprocess.mean), *self.input_size))

    @property
    def anatomy(self) -> Anatomy:
        """Layers, default layer, classification head and activations, found by running the module once.

        Raises `VisxError` where the output cannot be explained (exit 4) or the number of labels is not that of the classes
        (exit 2).
        """
        if self._anatomy is None and isinstance(self.source, BlackBox):
            outputs = self.source.examine(self.input_shape, self.means, self.head)
            self._anatomy = self._checked(Anatomy.of_scores(outputs))
        if self._anatomy is None:
            with self.network().session() as network:  # one thread examines it, the others wait
                if self._anatomy is None:
                    behaviour = known(network.module, self.input_shape)
                    kept = SavedState(network.module) if behaviour is None or behaviour.changing else None
                    try:
                        self._anatomy = self._examine()
                    finally:
                        if kept is not None:
                            kept.restore()
                    self._behaviour = behaviour or observe(network, self.input_shape)
        return self._anatomy

    def _examine(self) -> Anatomy:
        """The anatomy by one pass of the module; every error of the user's forward becomes a `VisxError`."""
        try:
            anatomy = examine(self.network(), self.input_shape, self.means, self.head, len(self.labels or ()))
        except VisxError:
            raise
        except Exception as error:  # whatever a user's own forward raises
            raise failure(self.name, self.module, self.input_shape, error) from error
        return self._checked(anatomy)

    def _checked(self, anatomy: Anatomy) -> Anatomy:
        """The anatomy. Raises `VisxError` (usage, exit 2) where the number of labels is not that of the classes."""
        fitting = (anatomy.classes, 1) if anatomy.outputs.single else (anatomy.classes,)
        if self.labels and len(self.labels) not in fitting and anatomy.outputs.kind != "features":
            raise usage(
                f"{len(self.labels)} labels for a model of {anatomy.classes} classes",
                "one name a class: --labels FILE, visx.wrap(module, labels=...), or model.labels = (...) of one that is wrapped",
            )
        return anatomy

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The fingerprint of a user's own model; None for a library's model, which its name and weights identify."""
        if self.code is not None and self._fingerprint is None:
            _ = self.anatomy  # a black box must have been looked at
            self._fingerprint = fingerprint.take(self.black_box(), self.input_shape, self.code)
        return self._fingerprint

    @property
    def is_default(self) -> bool:
        """Whether this is the built-in model with its own weights and preprocessing, whose results need no RECIPE."""
        return self.as_default is not None and self.as_default == self.preprocess

    @property
    def outputs(self) -> Outputs:
        """What the module's output means."""
        return self.anatomy.outputs

    @property
    def classes(self) -> int:
        """The number of classes (or of a regression's values). Raises `VisxError` (exit 4) where there are none."""
        if self.outputs.kind == "features":
            raise unsupported(
                f"{self.name} has no classifier: its output is {self.anatomy.classes} features ({self.outputs.seen}), "
                "of which none is a class",
                "take a model with a head, or say --means logits (means='logits') if each of them is a class",
            )
        return self.anatomy.classes

    def targets(self, texts: Sequence[str], of_classes: bool = True) -> Target:
        """The texts of `--target` -> the target that they name among the model's classes (or values). Raises `VisxError`:
        exit 2 for a wrong text, exit 4 where maps are `of_classes` and the model has none."""
        classes = self.classes if of_classes else self.anatomy.classes
        return parse_targets(texts, self.names, classes, values=self.outputs.kind == "regression")

    @property
    def names(self) -> tuple[str, ...] | None:
        """The labels, one a class: of a single logit's one label its opposite too."""
        if self.labels and len(self.labels) == 1 and self.outputs.single:
            return f"not {self.labels[0]}", self.labels[0]
        return self.labels

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self.source.device if isinstance(self.source, BlackBox) else whereabouts(self.source)

    def label(self, index: int) -> str:
        """The name of a class; its number where names are not known (of a regression's value: `out:N`)."""
        return label_of(index, self.outputs, self.names)

    @torch.no_grad()
    def refresh(self, precision: str = "fp32") -> None:
        """Forget what was learnt of the module (anatomy, copies in other precisions, faster ways) if its owner has
        changed it since the last call, or the labels or preprocessing.

        `visx.explain` begins with it. Call it yourself before you read `anatomy` or `classes` of a model you have edited.
        `precision`: what the model is going to run in; of a module that is copied for it, all values are compared.
        """
        labels = tuple(self.labels or ())
        ways = (self.channels_last, self.owned, self.accelerate, self.rounding_safe)
        rest = (self.source, labels, self.preprocess, ways, self.means, self.head)
        if isinstance(self.source, BlackBox):
            if rest != self._rest:
                self._rest, self._anatomy, self._fingerprint = rest, None, None
            return
        copies = precision != "fp32" or any(
            network.module is not unwrapped(self.module) for network in self._networks.values()
        )

        def unchanged() -> bool:
            return rest == self._rest and self._snapshot is not None and self._snapshot.holds(matrices=copies)

        with unclaimed(self._snapshot.parts if self._snapshot else frozenset()):  # by threads that place hooks
            if unchanged():
                return
        with self._around(self.module).session():
            if unchanged():  # another thread was here
                return
            if self._snapshot is not None and not self._snapshot.values_hold():
                self.weights = Weights("in-memory", digest_state(self.module))
            self._snapshot, self._rest = Snapshot(unwrapped(self.module)), rest
            self._snapshot.values_hold(matrices=copies)
            self._networks.clear()
            self._recorded = {}
            self._anatomy = self._fingerprint = None

    def open(self) -> str:
        """Put the torch module that computes the same in the place of a black box, if it has one: from then on everything runs
        through it, gradients and layers included. Returns why there is none (empty: there is, or never was any)."""
        if not isinstance(self.source, BlackBox):
            return ""
        if self.closed is None:
            _ = self.anatomy  # whose outputs a module has to agree with
            module, self.closed = self.source.as_module(self.input_shape)
            if module is None:
                return self.closed
            self.head = self.outputs.member  # the name that it has in the module's output
            self.source, self.about, self.owned, self.accelerate = module, self.closed, True, True
            self._anatomy = self._rest = None
            return ""
        return self.closed

    def black_box(self, precision: str = "fp32", device: torch.device | None = None) -> BlackBox:
        """What scores: the network at a precision and on a device, or the black box itself, which has its own.

        Raises `VisxError`: exit 2 for another precision of a black box, else as `network`.
        """
        if not isinstance(self.source, BlackBox):
            return self.network(precision, device)
        if precision != "fp32":
            raise usage(f"precision {precision}: {self.name} has its own", "leave out the precision")
        return self.source

    def network(self, precision: str = "fp32", device: torch.device | None = None) -> Network:
        """The network at a precision and on a device: the module itself where it already is so, else a copy of it. fp32
        is full precision, also for a module whose weights are half; a float64 module stays as it is there.

        Raises `VisxError` where the module cannot be copied or does not run at that precision, or where there is none.
        """
        if precision not in DTYPES:
            raise usage(f"unknown precision {precision!r}", "fp32, bf16 or fp16")
        device = device or self.device
        key = (precision, str(device))
        as_it_is = precision == "fp32" and device == self.device and not half(self.module)
        if key not in self._networks and as_it_is:
            self._networks.setdefault(key, self._around(self.module))
        elif key not in self._networks:
            with self._around(self.module).session():  # no thread's hooks are on the module while it is copied
                if key not in self._networks:
                    network = self._around(copied(self.name, self.module, device, DTYPES[precision]))
                    if precision != "fp32":  # at full precision the first look does the same
                        zeros = network.prepare(torch.zeros(1, *self.input_shape))
                        try_out(f"{self.name} at {precision}", network.module, zeros)
                    self._networks[key] = network
        return self._networks[key]

    def _around(self, module: nn.Module) -> Network:
        network = Network(
            module,
            channels_last=self.channels_last,
            owned=self.owned,
            accelerate=self.accelerate,
            rounding_safe=self.rounding_safe,
            outputs=lambda: self.outputs,
            behaviour=lambda: self._behaviour,
        )
        network.recorded = self._recorded  # layers are read the same in every copy
        return network
