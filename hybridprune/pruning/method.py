"""The parts of a pruning method: a unit, a score and the allocation it was published with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hybridprune.config.registry import Extension
from hybridprune.curvature import LayerFactors, SecondMoments
from hybridprune.pruning.channels.group import ChannelGroup
from hybridprune.pruning.channels.scores import ChannelScorer, Need, Statistics
from hybridprune.pruning.channels.surgery import Update
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.sparse_training.protocol import Sparsity

Decompose = Callable[[Tensor, LayerFactors, SecondMoments | None, float], Decomposition]
"""From a weight ``[C_out, C_in, kh, kw]``, its curvature and the regularization to its directions, best first."""


@dataclass(frozen=True)
class DirectionMethod(Extension):
    """Cuts directions of each layer, which is local to the layer: it works in any network."""

    decompose: Decompose
    allocation: str
    """What ``allocation: auto`` means."""
    moments: Callable[[bool], Literal["trace", "entries"] | None]
    """The exact second moments it needs, given ``correct_eigenvalues``."""
    in_nats: bool = True
    """Whether importances are expected rises of the loss, as a summary shows them."""
    separates: bool = False
    """Whether importances are squared entries of the core, all in one unit, so that its components have them, too."""

    def __str__(self) -> str:
        return f"DirectionMethod({_called(self.decompose)})"


@dataclass(frozen=True)
class ChannelMethod(Extension):
    """Cuts channels, which go together with those that sums and BatchNorms tie to them."""

    score: ChannelScorer
    allocation: str = "importance"
    relative: bool = False
    """Whether scores are relative to those of their layer, so that means of layers say nothing."""
    needs: Need | None = None
    """The statistic that the score is computed from, beside the weights."""
    choose: Callable[[ChannelGroup, Statistics, int], Tensor] | None = None
    """The channels that stay in a group when so many do; by default those with the best scores."""
    update: Callable[[Statistics], Update] | None = None
    """Changes the remaining filters to make up for the removed ones, before these go."""
    sparsity: Sparsity | None = None
    """What comes before the cut, if it is not enough to cut the network as it is."""
    least: int = 1
    """Channels of a group that stay in any case, if it has so many."""
    coupled: bool = False
    """Whether channels that residual sums join are among the units, without ``use_out_dependencies``."""

    def __str__(self) -> str:
        return f"ChannelMethod({_called(self.score)})"


@dataclass(frozen=True)
class BranchMethod(Extension):
    """Cuts inputs of groups of filters, which become branches of their layer; its training says which are a group."""

    sparsity: Sparsity
    """The training that groups the filters."""
    allocation: str = "importance"

    def __str__(self) -> str:
        return f"BranchMethod({self.allocation})"


def _called(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)


Method = DirectionMethod | ChannelMethod | BranchMethod
