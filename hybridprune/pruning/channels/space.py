"""The channels of all groups as a space to be cut (pure)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridprune.models.frozen_norm import is_norm
from hybridprune.pruning.budget.space import Cost, Space, UnitSet, least_kept
from hybridprune.pruning.channels.group import ChannelGroup, inputs_of, outputs_of
from hybridprune.pruning.clock import ChannelTimes, NetworkTimes


@dataclass(frozen=True)
class ChannelCell:
    """One layer: ``macs`` and ``area`` are per pair of an input and an output channel."""

    name: str
    sets: tuple[int, ...]
    full: tuple[int, ...]
    """Channels of each set."""
    inputs: int
    outputs: int
    per_input: tuple[int, ...]
    """How many inputs go with a channel of each set."""
    per_output: tuple[int, ...]
    macs: int
    area: int
    extra: int
    """Parameters of an output beside the weights: a bias, a BatchNorm's scale and shift."""
    times: ChannelTimes | None = None
    """Of the layer with fewer channels; without them it takes no time."""

    def cost(self, kept: tuple[int, ...]) -> Cost:
        """The cost of the layer with so many channels of each set kept.

        It is ``macs C_in C_out`` MACs, ``(area C_in + extra) C_out`` parameters and the time of such a layer, of the
        C_in inputs and C_out outputs that are left.
        """
        gone = [n - k for n, k in zip(self.full, kept, strict=True)]
        inputs = self.inputs - sum(n * m for n, m in zip(gone, self.per_input, strict=True))
        outputs = self.outputs - sum(n * m for n, m in zip(gone, self.per_output, strict=True))
        ns = 0 if self.times is None else self.times.of(inputs, outputs)
        return Cost(self.macs * inputs * outputs, (self.area * inputs + self.extra) * outputs, ns)

    def relaxed_macs(self, kept: tuple[int, ...]) -> float:
        """The layer's MACs: every removal counts."""
        return self.cost(kept).macs


@dataclass(frozen=True)
class ChannelSpace:
    """A space of which each set is a group."""

    space: Space
    order: tuple[Tensor, ...]
    """``[channels]`` by group: its channels, best first"""
    choose: Sequence[Callable[[int], Tensor]] | None = None
    """By group: the channels that stay when so many do, where these are not the first in their order."""

    def removed(self, kept: Sequence[int]) -> list[Tensor]:
        """The channels of each group that go when so many are kept, ascending."""
        if self.choose is None:
            return [best[number:].sort().values for best, number in zip(self.order, kept, strict=True)]
        found = []
        for best, choose, number in zip(self.order, self.choose, kept, strict=True):
            stay = torch.zeros(len(best), dtype=torch.bool)
            stay[choose(number)] = True
            assert int(stay.sum()) == number, "as many channels stay as the plan says"
            found.append((~stay).nonzero().flatten())
        return found


def channel_space(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    scores: Sequence[Tensor],
    macs: Mapping[str, int],
    whole: Cost,
    *,
    limit: float,
    dense: Mapping[str, int] | None = None,
    least: int = 1,
    times: NetworkTimes[ChannelTimes] | None = None,
) -> ChannelSpace:
    """The space of all groups.

    Args:
        scores: of each group's channels, ``[channels]``.
        macs: of each convolution and linear layer as it is now, by name; a layer without does not count at all.
        whole: cost of all that counts.
        limit: the largest share of a group's channels that may ever go.
        dense: channels that each group had before anything was cut, by name; by default as many as now.
        least: how many channels of a group must stay, if it has so many.
        times: of the whole network and of its layers, if a clock counts as well.
    """
    if times is not None:
        whole = whole._replace(ns=times.whole_ns)
    dense = dense or {group.name: group.channels for group in groups}
    sorts = [values.double().cpu().sort(descending=True, stable=True) for values in scores]
    sets = [
        UnitSet(
            group.name,
            ranked.values,
            max(least_kept(dense[group.name], group.channels, limit), min(least, group.channels)),
        )
        for group, ranked in zip(groups, sorts, strict=True)
    ]
    cells: list[ChannelCell] = []
    other = whole
    for name in dict.fromkeys(member.layer for group in groups for member in group.members):
        module = model.get_submodule(name)
        if name in macs or is_norm(module):
            cells.append(_cell(name, module, groups, macs.get(name, 0), times and times.layers.get(name)))
            other = other.minus(cells[-1].cost(cells[-1].full))
    return ChannelSpace(Space(sets, cells, other), tuple(ranked.indices for ranked in sorts))


def _cell(
    name: str, module: nn.Module, groups: Sequence[ChannelGroup], macs: int, times: ChannelTimes | None
) -> ChannelCell:
    per_input: dict[int, int] = {}
    per_output: dict[int, int] = {}
    for number, group in enumerate(groups):
        for member in group.members:
            if member.layer == name:
                # What is one channel in and out counts as an output: there are no pairs.
                side = per_input if member.role == "consumer" else per_output
                side[number] = member.index.shape[1]
    sets = tuple(sorted(per_input.keys() | per_output.keys()))
    bias = int(getattr(module, "bias", None) is not None)
    paired = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
    inputs, outputs = (inputs_of(module) if paired else 1), outputs_of(module)
    assert macs % (inputs * outputs) == 0, f"{name}: {macs} MACs of {inputs} x {outputs} channels"
    if is_norm(module):
        area, extra = 0, len(list(module.parameters(recurse=False)))
    else:
        area, extra = module.get_parameter("weight")[0, 0].numel(), bias
    return ChannelCell(
        name=name,
        sets=sets,
        full=tuple(groups[s].channels for s in sets),
        inputs=inputs,
        outputs=outputs,
        per_input=tuple(per_input.get(s, 0) for s in sets),
        per_output=tuple(per_output.get(s, 0) for s in sets),
        macs=macs // (inputs * outputs),
        area=area,
        extra=extra,
        times=times,
    )
