"""Plans of a cut: directions of layers, or channels of groups."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridprune.models.copies import copied
from hybridprune.models.factored import DENSE, Ranks
from hybridprune.pruning.allocate import allocate
from hybridprune.pruning.budget.space import Budget, Space, pick
from hybridprune.pruning.budget.width_growth import Growth
from hybridprune.pruning.channels import ChannelGroup, ChannelSpace, cut, remove_channels
from hybridprune.pruning.channels.surgery import Update
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.directions.inner_channels import InnerCell, ends, without_inputs
from hybridprune.pruning.directions.layers import PrunableLayer
from hybridprune.pruning.directions.refit import refit
from hybridprune.pruning.directions.space import DirectionCell
from hybridprune.pruning.directions.surgery import apply_ranks, sketch_ranks
from hybridprune.pruning.promise import check_promise
from hybridprune.pruning.prunable import PrunableNetwork
from hybridprune.pruning.sparse_training.protocol import Removal

WIDEST_UNCUT = 5_000
"""Inputs of a layer that has lost nothing, up to which a refit of the whole network takes it: it costs their cube."""


@dataclass(frozen=True)
class Plan(ABC):
    """The scored units of a network, and how it is cut down to some of them. Nothing has changed yet.

    ``kept``, throughout, is how many units of each set of the space stay, in their order.
    """

    network: PrunableNetwork
    allocation: str
    """The name of the allocation that decides how many units go from which set."""
    left_alone: Mapping[str, str]
    """Layers with weights from which nothing can be cut, by name, each with the reason; excluded ones are not named."""
    in_nats: bool
    """Whether scores are expected rises of the loss."""

    @property
    @abstractmethod
    def space(self) -> Space:
        """The units with their scores, and what the network costs without some of them."""

    @abstractmethod
    def allocate(self, ratio: float, budget: Budget | None) -> list[int]:
        """Kept units of each set under the budget or, without one, when ``ratio`` of them go.

        Raises InfeasibleBudget.
        """

    def apply(self, kept: Sequence[int]) -> None:
        """Cut the network in place; raises BrokenPromise if it then costs anything else than its space says."""
        self._cut(kept)
        check_promise(self.space.cost(kept), self.network.cost)

    @abstractmethod
    def _cut(self, kept: Sequence[int]) -> None:
        """Cut the network in place."""

    @abstractmethod
    def sketch(self, kept: Sequence[int]) -> nn.Module:
        """A copy of the network that is cut in its shapes alone: what is new in it has random weights."""

    @abstractmethod
    def describe(self, kept: Sequence[int]) -> list[str]:
        """One line for each layer or group."""

    def expected_losses(self, kept: Sequence[int]) -> Mapping[str, float] | None:
        """The rise of the loss (nats) that the cut of each layer or group is expected to cost, before any training.

        None where the scores of the method are in other units.
        """
        return self._losses(kept) if self.in_nats else None

    @abstractmethod
    def _losses(self, kept: Sequence[int]) -> Mapping[str, float]:
        """What is lost of each layer's or group's scores."""


@dataclass(frozen=True)
class DirectionPlan(Plan):
    """Directions of each layer, which becomes a chain of smaller ones where that is cheaper.

    Or the channels between two layers, where the space has these as well.
    """

    directions: Space
    """Of each layer one cell, with a set for its inputs and one for its outputs; then those of inner channels."""
    layers: Sequence[PrunableLayer]
    decompositions: Mapping[str, Decomposition]
    hooi_sweeps: int
    """Of higher-order orthogonal iteration, once the ranks are known."""
    refit_images: int
    """On which the cores of the cut layers are refitted; 0: not at all."""
    refit_network: bool
    """Whether the refit takes the whole network behind the first cut layer, see `refit`."""
    metrics: Mapping[str, Tensor]
    """Gradient factors ``[C_out, C_out]`` of the layers by whose outputs a refit measures errors with them."""

    @property
    def space(self) -> Space:
        """The directions of all layers."""
        return self.directions

    def allocate(self, ratio: float, budget: Budget | None) -> list[int]:
        """Kept directions of each side of each layer; raises InfeasibleBudget."""
        return allocate(self.space, self.allocation, ratio=ratio, budget=budget)

    def ranks(self, kept: Sequence[int]) -> dict[str, Ranks]:
        """The form of each layer that keeps at least so many directions and is the cheapest."""
        return {cell.name: cell.ranks(pick(cell, kept)) for cell in self._cells()}

    def _cut(self, kept: Sequence[int]) -> None:
        model, planned, inner = self.network.model, self.ranks(kept), self._inner(kept)
        reference = copied(model) if self.refit_images else model
        if inner:
            groups, gone = [cell.group for cell in inner], list(inner.values())
            remove_channels(model, groups, gone, self.network.run, self.network.example, self._make_up)
        apply_ranks(model, self.layers, self.decompositions, planned, self.hooi_sweeps)
        if self.refit_images:
            readers = {cell.consumer for cell in inner}
            names = [x.name for x in self.layers if planned[x.name] not in (x.form, DENSE) or x.name in readers]
            if self.refit_network and names:
                names = [x.name for x in self.layers if x.name in names or x.leaf.weight[0].numel() <= WIDEST_UNCUT]
            metrics = {name: self.metrics[name] for name in names if name in self.metrics}
            outputs = {cell.producer: cell.stay(len(index)) for cell, index in inner.items()}
            batches = self.network.sample(self.refit_images, "refit")
            refit(model, reference, names, batches, self.network.run, metrics, self.refit_network, outputs)

    @torch.no_grad()
    def _make_up(self, group: ChannelGroup, gone: Tensor) -> None:
        """Let the layer that reads the channels of a group make up for those that are about to go."""
        _, reader = ends(group)
        weight = self.network.model.get_submodule(reader).get_parameter("weight")
        weight.copy_(without_inputs(self.decompositions[reader], gone).view_as(weight))

    def sketch(self, kept: Sequence[int]) -> nn.Module:
        """A copy whose cut layers have random weights, as large as the network's own."""
        model, inner = copied(self.network.model), self._inner(kept)
        cut(model, [cell.group for cell in inner], list(inner.values()))
        sketch_ranks(model, self.layers, self.ranks(kept))
        return model

    def describe(self, kept: Sequence[int]) -> list[str]:
        """The ranks of each layer, and the channels between two where some go."""
        ranks = [
            f"{name}: {r.rank_in} components"
            if r.separable
            else f"{name}: input rank {r.rank_in or 'full'}, output rank {r.rank_out or 'full'}"
            for name, r in self.ranks(kept).items()
        ]
        return ranks + [
            f"{cell.producer}: {cell.group.channels - len(gone)} of {cell.group.channels} channels"
            for cell, gone in self._inner(kept).items()
        ]

    def _losses(self, kept: Sequence[int]) -> Mapping[str, float]:
        """Exact in the quadratic model, where both sides' scores would count twice what both remove."""
        losses = {cell.name: cell.loss(pick(cell, kept)) for cell in self._cells()}
        return {**losses, **{cell.consumer: cell.loss(len(gone)) for cell, gone in self._inner(kept).items()}}

    def _inner(self, kept: Sequence[int]) -> dict[InnerCell, Tensor]:
        """The cells whose inner channels go in part, and which of them do."""
        inner = [cell for cell in self.space.cells if isinstance(cell, InnerCell)]
        gone = {cell: cell.gone(*pick(cell, kept)) for cell in inner}
        return {cell: index for cell, index in gone.items() if len(index)}

    def _cells(self) -> list[DirectionCell]:
        return [cell for cell in self.space.cells if isinstance(cell, DirectionCell)]


@dataclass(frozen=True)
class ChannelPlan(Plan):
    """Channels of dependency groups, which go out of all layers that produce and read them."""

    channels: ChannelSpace
    """Of each group one set."""
    groups: Sequence[ChannelGroup]
    update: Update | None
    """Changes the remaining filters to make up for the removed ones, before these go."""
    fixed: Sequence[int] | None
    """How many channels each group keeps where the method has selected them itself."""
    growth: Growth
    """Of the widths, for the allocations that give to whole layers."""

    @property
    def space(self) -> Space:
        """The channels of all groups."""
        return self.channels.space

    def allocate(self, ratio: float, budget: Budget | None) -> list[int]:
        """Kept channels of each group; raises InfeasibleBudget."""
        if self.fixed is not None:
            return list(self.fixed)
        return allocate(self.space, self.allocation, ratio=ratio, budget=budget, growth=self.growth)

    def removed(self, kept: Sequence[int]) -> Removal:
        """The channels that would go."""
        gone = zip(self.groups, self.channels.removed(kept), strict=True)
        return {group.name: ids.tolist() for group, ids in gone if len(ids)}

    def _cut(self, kept: Sequence[int]) -> None:
        network, gone = self.network, self.channels.removed(kept)
        remove_channels(network.model, self.groups, gone, network.run, network.example, self.update)

    def sketch(self, kept: Sequence[int]) -> nn.Module:
        """A copy without these channels, whose wiring is not looked at."""
        model = copied(self.network.model)
        cut(model, self.groups, self.channels.removed(kept))
        return model

    def describe(self, kept: Sequence[int]) -> list[str]:
        """The channels of each group."""
        return [f"{g.name}: {n} of {g.channels} channels" for g, n in zip(self.groups, kept, strict=True)]

    def _losses(self, kept: Sequence[int]) -> Mapping[str, float]:
        """The sum over the channels that go, as if each went alone."""
        sets = zip(self.space.sets, kept, strict=True)
        return {units.name: float(units.scores[number:].sum()) for units, number in sets}
