"""A plan of directions that may take the channels between two layers instead, where a clock compares both."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from hybridprune.config import CutOptions
from hybridprune.errors import UserError
from hybridprune.models.factored import DENSE
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.channels.space import ChannelCell
from hybridprune.pruning.clock import NetworkClock, NetworkTimes
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.directions.inner_channels import InnerCell, Removal, ends, removal
from hybridprune.pruning.directions.space import DirectionCell
from hybridprune.pruning.plan import DirectionPlan
from hybridprune.pruning.plan_channels import followed, space_of, working

UNDERSTATED = 1.4
"""What channels truly lose in networks that were trained to the end, over what directions of the same expected loss do.

The reading layer makes up for them by correlations that are approximate (`benchmarks.true_losses`).
"""


def with_inner_channels(plan: DirectionPlan, options: CutOptions, clock: NetworkClock) -> DirectionPlan:
    """The plan with a further cell for each pair of layers whose inner channels may go, of which no layer is in two.

    A pair is a dense layer whose outputs another dense layer reads, and nothing else does but for norms and depthwise
    convolutions on the way. A network whose channels cannot be followed has none.
    """
    network, cells = plan.network, plan.space.cells
    places = {c.name: i for i, c in enumerate(cells) if isinstance(c, DirectionCell) and _is_timed(c)}
    try:
        found = followed(network, options, coupled=False)
    except UserError:
        return plan
    groups = _disjoint(working(network, options, found._replace(groups=_pairs(found.groups, places))).groups)
    if not groups:
        return plan
    removals = [_removal(plan.decompositions[ends(group)[1]]) for group in groups]
    made = [m.layer for group in groups for m in group.of("producer", "depthwise")]
    layers = clock.inner_channels(network, made, [ends(group)[1] for group in groups])
    times = NetworkTimes(plan.space.cost(plan.space.everything()).ns, layers)
    space = space_of(network, options, groups, [_scores(found) for found in removals], times=times).space
    multiple = math.lcm(clock.block, options.rank_multiple)
    inner: list[InnerCell] = []
    for number, (group, lost) in enumerate(zip(groups, removals, strict=True)):
        cells_of = [cell for cell in space.cells if isinstance(cell, ChannelCell) and number in cell.sets]
        first, second = (places[name] for name in ends(group))
        place = len(plan.space.sets) + number
        inner.append(InnerCell(group, (place,), (first, second), cells_of, space.sets[number], lost, multiple))
    sets = [*plan.space.sets, *(dataclasses.replace(s, name=f"{s.name}:channels") for s in space.sets)]
    between = {member.layer for group in groups for member in group.of("depthwise")}
    return dataclasses.replace(
        plan,
        directions=dataclasses.replace(plan.space, sets=sets, cells=[*cells, *inner]),
        left_alone={name: reason for name, reason in plan.left_alone.items() if name not in between},
    )


def _removal(decomposition: Decomposition) -> Removal:
    found = removal(decomposition)
    return Removal(found.order, UNDERSTATED * found.losses)


def _is_timed(cell: DirectionCell) -> bool:
    return cell.form == DENSE and cell.times is not None


def _pairs(groups: Iterable[ChannelGroup], places: Mapping[str, int]) -> list[ChannelGroup]:
    """The groups of one producer and one consumer, both of these layers, of which a channel is one input."""
    found = []
    for group in groups:
        ends = group.of("producer", "consumer")
        single = all(member.index.shape[1] == 1 for member in group.members)
        if single and sorted(m.role for m in ends) == ["consumer", "producer"] and all(m.layer in places for m in ends):
            found.append(group)
    return found


def _disjoint(groups: Iterable[ChannelGroup]) -> list[ChannelGroup]:
    taken: set[str] = set()
    found = []
    for group in groups:
        if taken.isdisjoint(ends(group)):
            taken |= {*ends(group)}
            found.append(group)
    return found


def _scores(found: Removal) -> Tensor:
    """Scores ``[C_in]`` that descend in the order in which channels stay: what each costs, or one that went before."""
    whole = torch.cat([found.losses, found.losses[-1:]])
    scores = torch.empty_like(found.losses)
    scores[found.order] = whole.diff().cummax(0).values
    return scores
