"""Inputs of groups of filters as a space to be cut: what a network of branches costs (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridprune.pruning.branches.energy import cumulative_shares, filter_energies, input_energies
from hybridprune.pruning.branches.layers import BranchLayer
from hybridprune.pruning.budget.space import Cost, Space, UnitSet, least_kept, pick


@dataclass(frozen=True)
class BranchCell:
    """One layer: the filters of a group are computed on as many inputs as it keeps, as far as they are alive."""

    name: str
    sets: tuple[int, ...]
    """Those of its groups' inputs, then those that say which filters live."""
    group: NDArray[np.int64]
    """``[C_out]``: the group of each filter"""
    groups: int
    """How many of its sets are inputs of its groups; 0 of a layer whose filters, one group, read all there is."""
    inputs: int
    ranks: NDArray[np.int64]
    """``[sets, C_out]``, of the sets that say which filters live: a filter lives if one keeps more units than this."""
    narrows: bool
    """Whether a filter that does not live goes with its bias and what normalises its output."""
    macs: int
    """Of a pair of an input and a filter."""
    area: int
    extra: int
    """Parameters of an output beside the weights."""

    def alive(self, kept: Sequence[int]) -> NDArray[np.bool_]:
        """``[C_out]``: the filters that are computed, when so many units of its sets are kept."""
        if not len(self.ranks):
            return np.ones(len(self.group), dtype=bool)
        said = np.asarray(kept[self.groups :])
        return np.any(self.ranks < said[:, None], axis=0)

    def cost(self, kept: tuple[int, ...]) -> Cost:
        """The cost of its branches: ``macs`` and ``area`` times the sum over groups of live filters x kept inputs."""
        alive = self.alive(kept)
        reads = kept[: self.groups] if self.groups else (self.inputs,)
        filters = np.bincount(self.group[alive], minlength=len(reads))
        pairs = sum(int(n) * k for n, k in zip(filters, reads, strict=True))
        outputs = int(alive.sum()) if self.narrows else len(alive)
        return Cost(self.macs * pairs, self.area * pairs + self.extra * outputs)

    def relaxed_macs(self, kept: tuple[int, ...]) -> float:
        """The layer's MACs: every removal counts."""
        return self.cost(kept).macs


@dataclass(frozen=True)
class BranchSpace:
    """A space of which each set is the inputs of a group of filters, or the filters of a layer."""

    space: Space
    cells: Mapping[str, BranchCell]
    """By name of the layer."""
    orders: Sequence[Tensor]
    """By set: its units, best first."""

    def reads(self, layer: str, kept: Sequence[int]) -> Tensor:
        """``[C_out, C_in]``, bool: which inputs each filter of a layer reads; of one that does not live, none."""
        cell = self.cells[layer]
        found = torch.ones(len(cell.group), cell.inputs, dtype=torch.bool)
        group = torch.from_numpy(cell.group)
        for number, index in enumerate(cell.sets[: cell.groups]):
            row = torch.zeros(cell.inputs, dtype=torch.bool)
            row[self.orders[index][: kept[index]]] = True
            found[group == number] = row
        found[~self.alive(layer, kept)] = False
        return found

    def alive(self, layer: str, kept: Sequence[int]) -> Tensor:
        """``[C_out]``, bool: the filters of a layer that are computed."""
        cell = self.cells[layer]
        return torch.from_numpy(cell.alive(pick(cell, kept)))


def branch_space(
    layers: Sequence[BranchLayer],
    groups: Mapping[str, Tensor],
    whole: Cost,
    *,
    limit: float,
    filters: Mapping[str, int],
    counts: Mapping[str, bool],
) -> BranchSpace:
    """The space of all layers; units are scored by `cumulative_shares`.

    Args:
        groups: the group of each filter ``[C_out]``, by layer.
        whole: cost of all that counts.
        limit: the largest share of a group's inputs, or of a layer's filters, that may ever go.
        filters: filters that each layer had before anything was cut.
        counts: whether a layer counts at all, by name.
    """
    sets: list[UnitSet] = []
    orders: list[Tensor] = []

    def add(name: str, energies: Tensor, dense: int) -> int:
        shares, order = cumulative_shares(energies)
        sets.append(UnitSet(name, shares, least_kept(dense, len(shares), limit)))
        orders.append(order)
        return len(sets) - 1

    numbered = {name: group.unique(return_inverse=True)[1] for name, group in groups.items()}
    own: dict[str, list[int]] = {}
    for layer in layers:
        if layer.grouped:
            weight, group = layer.conv.weight, numbered[layer.name]
            own[layer.name] = [
                add(f"{layer.name} group {g}", input_energies(weight, group == g), weight.shape[1])
                for g in range(int(group.max()) + 1)
            ]
    cells: list[BranchCell] = []
    other = whole
    for layer in layers:
        weight = layer.conv.weight
        living: list[tuple[int, Tensor]] = []
        if layer.loses_filters:
            index = add(f"{layer.name} filters", filter_energies(weight), filters[layer.name])
            living = [(index, _ranks(orders[index]))]
        for reader in layer.readers:
            living += [(i, _ranks(orders[i])[reader.inputs].amin(1)) for i in own[reader.layer]]
        mine = own.get(layer.name, [])
        count = int(counts[layer.name])
        cells.append(
            BranchCell(
                name=layer.name,
                sets=(*mine, *(index for index, _ in living)),
                group=numbered[layer.name].numpy() if layer.grouped else np.zeros(len(weight), dtype=np.int64),
                groups=len(mine),
                inputs=weight.shape[1],
                ranks=np.stack([ranks.numpy() for _, ranks in living])
                if living
                else np.zeros((0, len(weight)), dtype=np.int64),
                narrows=layer.channels is not None,
                macs=count * layer.out_positions * weight[0, 0].numel(),
                area=count * weight[0, 0].numel(),
                extra=count * (int(layer.conv.bias is not None) + layer.per_output),
            )
        )
        other = other.minus(cells[-1].cost(tuple(len(sets[i].scores) for i in cells[-1].sets)))
    return BranchSpace(Space(sets, cells, other), {cell.name: cell for cell in cells}, orders)


def _ranks(order: Tensor) -> Tensor:
    """The place of each unit in an order."""
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks
