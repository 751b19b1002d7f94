"""Trainings before a cut: they concentrate what a network computes in the channels that will stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from hybridprune.config import CutOptions, SparsityOptions
from hybridprune.engine.pressure import Drive
from hybridprune.pruning.budget.space import Budget, Space
from hybridprune.pruning.channels import ChannelGroup

Removal = Mapping[str, Sequence[int]]
"""The channels that go, ascending, by name of their group; a group that loses none may be missing."""


@dataclass(frozen=True)
class GroupTarget:
    """A convolution whose filters are to be grouped."""

    layer: str
    in_elements: int
    """Numbers that it reads of one image."""


@dataclass(frozen=True)
class Target:
    """The network that is to become sparse."""

    model: nn.Module
    """Plain layers, on its device."""
    groups: Sequence[ChannelGroup]
    """What may be removed."""
    space: Space
    """A set for each group, in their order, whose scores mean nothing yet: what any widths would cost."""
    budget: Budget | None
    """What the cut has to meet."""
    removed: Removal
    """The channels that were selected to go; empty before the selection."""
    seed: int = 0
    """Of what is drawn at random."""
    residual: bool = False
    """Whether sums join some of its channels, as in a ResNet; also where these may not go."""
    grouped: Sequence[GroupTarget] = ()
    """The convolutions whose filters are to be grouped, in the place of groups of channels."""
    judge: Callable[[nn.Module], float] | None = None
    """How good a copy of the network is, see `PrunableNetwork.judge`."""


@dataclass(frozen=True)
class SparseTraining:
    """One training, on the loss of fine-tuning and with a drive; its last weights are kept."""

    prepare: Callable[[Target, SparsityOptions], Drive]
    """May give ``target.model`` other layers, in place; the same ones if it is called again on an equal network."""
    start: Literal["current", "parent"] = "current"
    """The weights it starts from: as they are, or once more those that the stage started from."""
    fresh: bool = False
    """Whether ``sparse_start: auto`` means newly initialised weights, where it is the first one."""

    def starts_fresh(self, options: SparsityOptions) -> bool:
        """Whether it starts, if it is the first one, from newly initialised weights."""
        return self.fresh if options.sparse_start == "auto" else options.sparse_start == "scratch"


@dataclass(frozen=True)
class Sparsity:
    """The way of a method to a sparse network before it cuts: train, select channels, train on the selection, cut."""

    before: SparseTraining | None = None
    """The training before channels are selected."""
    after: SparseTraining | None = None
    """The training that knows which channels will go."""
    conclude: Callable[[nn.Module], None] | None = None
    """Turns what ``prepare`` made into plain layers again, in place; the function of the network stays the same."""
    select: Callable[[Target, SparsityOptions], Removal | None] | None = None
    """Selects from a concluded network in the place of scores and allocation; None where these decide."""
    select_again: Callable[[Target, SparsityOptions], Removal] | None = None
    """Selects what is cut from the network that ``after`` has left; by default what was selected before it goes."""
    keeps: str | None = None
    """The name of the files of a run (.safetensors and .json, its specification) in which the network stays as it was
    trained, before ``conclude``."""
    anew: bool = False
    """Whether ``cut_weights: auto`` means newly initialised weights."""

    @property
    def trainings(self) -> list[SparseTraining]:
        """The trainings, in their order."""
        return [training for training in (self.before, self.after) if training is not None]

    def cut_weights(self, options: CutOptions) -> str:
        """The start of the cut network under these options: inherit, scratch or imitate."""
        return options.cut_weights if options.cut_weights != "auto" else "scratch" if self.anew else "inherit"
