"""Plans of branches: inputs of groups of filters go, and filters that read alike become a branch of their layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridprune.config import CutOptions
from hybridprune.errors import UserError
from hybridprune.models.branched import branched
from hybridprune.models.copies import copied
from hybridprune.models.factored import blank
from hybridprune.models.replace import inherit, replace_module
from hybridprune.pruning.allocate import allocate
from hybridprune.pruning.branches.assignment import detach_logits, group_of
from hybridprune.pruning.branches.layers import BranchLayer, branch_layers
from hybridprune.pruning.branches.space import BranchSpace, branch_space
from hybridprune.pruning.budget.space import Budget, InfeasibleBudget, Space
from hybridprune.pruning.channels import ChannelGroup, cut, remove_channels
from hybridprune.pruning.directions.layers import survey
from hybridprune.pruning.left_alone import LINEAR, listed
from hybridprune.pruning.plan import Plan
from hybridprune.pruning.plan_channels import followed
from hybridprune.pruning.prunable import PrunableNetwork
from hybridprune.pruning.sparse_training.protocol import GroupTarget, Target
from hybridprune.pruning.trial import replaceable

Removal = Callable[[nn.Module, Sequence[ChannelGroup], Sequence[Tensor]], None]


@dataclass(frozen=True)
class BranchPlan(Plan):
    """Inputs of groups of filters; filters that read the same ones become a dense convolution of these."""

    branches: BranchSpace
    """Of each group a set of inputs, of some layers one of filters."""
    layers: Sequence[BranchLayer]

    @property
    def space(self) -> Space:
        """The inputs of all groups, and filters."""
        return self.branches.space

    def allocate(self, ratio: float, budget: Budget | None) -> list[int]:
        """Kept inputs of each group, and filters; raises InfeasibleBudget."""
        return allocate(self.space, self.allocation, ratio=ratio, budget=budget)

    def _cut(self, kept: Sequence[int]) -> None:
        network = self.network

        def remove(model: nn.Module, groups: Sequence[ChannelGroup], removed: Sequence[Tensor]) -> None:
            remove_channels(model, groups, removed, network.run, network.example)

        self._change(network.model, kept, remove)

    def sketch(self, kept: Sequence[int]) -> nn.Module:
        """A copy that is cut, whose wiring is not looked at."""
        model = copied(self.network.model)
        self._change(model, kept, cut)
        return model

    @torch.no_grad()
    def _change(self, model: nn.Module, kept: Sequence[int], remove: Removal) -> None:
        detach_logits(model)
        alive = {x.name: self.branches.alive(x.name, kept) for x in self.layers if x.channels is not None}
        gone = {x.name: (x.channels, (~alive[x.name]).nonzero().flatten()) for x in self.layers if x.name in alive}
        groups = [(group, index) for group, index in gone.values() if group is not None and len(index)]
        stays = {x.name: torch.ones(x.conv.weight.shape[1], dtype=torch.bool) for x in self.layers}
        for layer in self.layers:
            for reader in layer.readers:
                stays[reader.layer][reader.inputs[~alive[layer.name]].flatten()] = False
        remove(model, [group for group, _ in groups], [index for _, index in groups])
        for layer in self.layers:
            reads = self.branches.reads(layer.name, kept)[:, stays[layer.name]]
            if layer.name in alive:
                reads = reads[alive[layer.name]]
            old = model.get_submodule(layer.name)
            assert isinstance(old, nn.Conv2d)
            if not bool(reads.all()):
                replace_module(model, layer.name, inherit(branched(old, reads), old, blank(old)))

    def describe(self, kept: Sequence[int]) -> list[str]:
        """The branches of each layer, filters x inputs."""
        lines = []
        for layer in self.layers:
            reads = self.branches.reads(layer.name, kept)
            rows, filters = reads.unique(dim=0, return_counts=True)
            sizes = [f"{int(n)} x {int(row.sum())}" for row, n in zip(rows, filters, strict=True) if bool(row.any())]
            outputs, inputs = reads.shape
            lines.append(f"{layer.name}: {' + '.join(sizes)} of {outputs} x {inputs} filters x inputs")
        return lines

    def _losses(self, kept: Sequence[int]) -> Mapping[str, float]:
        raise AssertionError("shares of energy are no losses")


@dataclass(frozen=True)
class _Found:
    layers: list[BranchLayer]
    left_alone: dict[str, str]


def plan_branches(network: PrunableNetwork, allocation: str, options: CutOptions) -> BranchPlan:
    """Rank the inputs of all groups of filters; UserError if no layer is left to prune."""
    found = _found(network, options)
    groups = {x.name: group_of(x.conv, len(x.conv.weight)) for x in found.layers if x.grouped}
    return BranchPlan(
        network=network,
        allocation=allocation,
        left_alone=found.left_alone,
        in_nats=False,
        branches=_space(network, options, found.layers, groups),
        layers=found.layers,
    )


def branch_target(network: PrunableNetwork, options: CutOptions, budget: Budget | None) -> Target:
    """The network as what groups its filters sees it; UserError if no layer is left to prune.

    Raises InfeasibleBudget for a budget that no groups can meet: where all filters of a layer are one group, most of
    the filters that it reads can go.
    """
    found = _found(network, options)
    one = {x.name: torch.zeros(len(x.conv.weight), dtype=torch.int64) for x in found.layers if x.grouped}
    space = _space(network, options, found.layers, one).space
    if budget is not None and not budget.allows(space.floor()):
        raise InfeasibleBudget(space.floor(), found.left_alone)
    grouped = [GroupTarget(x.name, x.in_elements) for x in found.layers if x.grouped]
    return Target(network.model, [], space, budget, {}, network.seed, grouped=grouped)


def _found(network: PrunableNetwork, options: CutOptions) -> _Found:
    surveyed = survey(network.model, lambda: network.run(network.model, network.example), network.exclude)
    convolutions = [layer for layer in surveyed.layers if isinstance(layer.leaf, nn.Conv2d)]
    linear = {layer.name: LINEAR for layer in surveyed.layers if not isinstance(layer.leaf, nn.Conv2d)}
    layers, failed = replaceable(network, convolutions)
    channels = followed(network, options, coupled=False)
    found, reasons = branch_layers(network, layers, channels.groups, channels.left_alone)
    left_alone = {**surveyed.left_alone, **linear, **failed, **reasons}
    if not any(layer.grouped for layer in found):
        raise UserError(
            f"--method {options.method}: no convolution is left whose filters could be grouped ({listed(left_alone)}); "
            "use a method that cuts directions (fisher-tucker, eigendamage)"
        )
    return _Found(found, left_alone)


def _space(
    network: PrunableNetwork, options: CutOptions, layers: Sequence[BranchLayer], groups: Mapping[str, Tensor]
) -> BranchSpace:
    return branch_space(
        layers,
        groups,
        network.cost,
        limit=options.prune_ratio_limit,
        filters={x.name: network.channels.get(x.name, len(x.conv.weight)) for x in layers},
        counts={x.name: network.counts(x.name) for x in layers},
    )
