"""Plans of channels: the dependency groups of a network, found and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from hybridprune.config import CurvatureOptions, CutOptions, SparsityOptions
from hybridprune.errors import UserError
from hybridprune.models.copies import copied
from hybridprune.models.frozen_norm import is_frozen_norm
from hybridprune.pruning.budget.space import Budget, InfeasibleBudget
from hybridprune.pruning.budget.width_growth import Growth
from hybridprune.pruning.channels import (
    ChannelGroup,
    Channels,
    ChannelSpace,
    channel_space,
    cut,
    survey_channels,
)
from hybridprune.pruning.channels.scores import Statistics
from hybridprune.pruning.clock import ChannelTimes, NetworkClock, NetworkTimes
from hybridprune.pruning.directions.layers import layer_macs
from hybridprune.pruning.left_alone import COSTS, JOINED, listed
from hybridprune.pruning.measure import once
from hybridprune.pruning.measure_channels import measure_channels, measured_members
from hybridprune.pruning.measured import refuse_nothing_left, unmeasured_groups
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.method_results import checked_scores
from hybridprune.pruning.partition import partition
from hybridprune.pruning.plan import ChannelPlan
from hybridprune.pruning.prunable import PrunableNetwork
from hybridprune.pruning.sparse_training.protocol import Removal, Target


@dataclass(frozen=True)
class Wish:
    """The options and the goal of a cut, for a method that selects by itself."""

    options: SparsityOptions
    budget: Budget | None
    removed: Removal | None
    """What was selected already."""
    clock: NetworkClock | None = None


def plan_channels(
    network: PrunableNetwork,
    method: ChannelMethod,
    allocation: str,
    options: CutOptions,
    curvature: CurvatureOptions,
    wish: Wish,
) -> ChannelPlan:
    """Score all channels of the network; UserError if no group is left to prune."""
    groups, left_alone = found = _groups(network, method, options)
    removal = wish.removed
    if method.sparsity is not None:
        select = method.sparsity.select if removal is None else method.sparsity.select_again
        if select is not None:
            removal = select(_target(network, method, options, found, wish.budget, removal or {}), wish.options)
    statistics = _statistics(network, groups, method, curvature) if removal is None else None
    unmeasured = {} if statistics is None else unmeasured_groups(groups, statistics, method.needs)
    groups = [group for group in groups if group.name not in unmeasured]
    if not groups:
        refuse_nothing_left(options.method, unmeasured)
    if statistics is None:
        scores = [_marked(group, removal or {}) for group in groups]
    else:
        scores = [
            checked_scores(method.score(group, statistics), options.method, group.name, group.channels)
            for group in groups
        ]
    if options.normalize:
        scores = [score / total if (total := float(score.sum())) > 0 else score for score in scores]
    names = list(dict.fromkeys(member.layer for group in groups for member in group.members))
    times = None if wish.clock is None else wish.clock.channels(network, names)
    channels = space_of(network, options, groups, scores, method.least, times)
    if method.choose is not None and statistics is not None:
        channels = replace(channels, choose=[partial(method.choose, group, statistics) for group in groups])

    return ChannelPlan(
        network=network,
        allocation=allocation,
        left_alone={**left_alone, **unmeasured},
        in_nats=method.needs == "factors" and removal is None and not options.normalize,
        channels=channels,
        groups=groups,
        update=None if method.update is None or statistics is None else method.update(statistics),
        fixed=None if removal is None else [group.channels - len(removal.get(group.name, ())) for group in groups],
        growth=Growth(options.round_to, options.peel_backbone, options.peel_pool),
    )


def target(
    network: PrunableNetwork, method: ChannelMethod, options: CutOptions, budget: Budget | None, removed: Removal
) -> Target:
    """The network as what trains it towards sparsity sees it; UserError if no group is left to prune."""
    return _target(network, method, options, _groups(network, method, options), budget, removed)


def _target(
    network: PrunableNetwork,
    method: ChannelMethod,
    options: CutOptions,
    found: Channels,
    budget: Budget | None,
    removed: Removal,
) -> Target:
    groups = found.groups
    norms = [member.layer for group in groups for member in group.of("norm")]
    frozen = next((name for name in norms if is_frozen_norm(network.model.get_submodule(name))), None)
    if frozen is not None:
        raise UserError(
            f"--method {options.method}: trains before it cuts, also BatchNorms, and {frozen} is a FrozenBatchNorm2d; "
            "use a method that does not, e.g. bn-scale, or add its layer to --exclude"
        )
    scores = [torch.zeros(group.channels) for group in groups]
    space = space_of(network, options, groups, scores, method.least).space
    if budget is not None and not budget.allows(space.floor()):
        raise InfeasibleBudget(space.floor(), found.left_alone)
    residual = JOINED in found.left_alone.values() or any(group.coupled for group in groups)
    known = (network.model, groups, space, budget, removed, network.seed, residual)
    return Target(*known, judge=lambda model: network.judge(model))


def followed(network: PrunableNetwork, options: CutOptions, coupled: bool) -> Channels:
    """The groups of channels of the network; UserError if the user's code cannot be followed on marked images."""
    try:
        return survey_channels(network.model, network.run, network.example, exclude=network.exclude, coupled=coupled)
    except Exception as error:  # of any kind: the user's code has to run on marked images, whatever it gives back
        said = (str(error).strip().splitlines() or [""])[0][:200]
        raise UserError(
            f"--method {options.method}: the channels' ways through the network cannot be followed "
            f"({type(error).__name__}: {said}); use a method that cuts directions (fisher-tucker, eigendamage)"
        ) from error


def working(network: PrunableNetwork, options: CutOptions, found: Channels) -> Channels:
    """The groups whose removal changes no more than the layers' own cost, and the others with the reason."""

    def check(groups: Sequence[ChannelGroup]) -> str | None:
        space = space_of(network, options, groups, [torch.zeros(group.channels) for group in groups]).space
        kept = [max(1, group.channels - 1) for group in groups]
        trial = copied(network.model)
        cut(trial, groups, [torch.arange(n, group.channels) for group, n in zip(groups, kept, strict=True)])
        return None if network.measure(trial) == space.cost(kept) else COSTS

    groups, failed = partition(found.groups, check)
    return Channels(groups, {**found.left_alone, **{group.name: reason for group, reason in failed}})


def _groups(network: PrunableNetwork, method: ChannelMethod, options: CutOptions) -> Channels:
    """Groups whose removal changes no more than the layers' own cost; UserError if there are none."""
    coupled = options.use_out_dependencies or method.coupled
    groups, left_alone = working(network, options, followed(network, options, coupled))
    if not groups:
        joined = "" if coupled else "--use_out_dependencies for those that residual sums join, or "
        alone = f" ({listed(left_alone)})" if left_alone else ""
        raise UserError(
            f"--method {options.method}: the network has no channels that can go by themselves{alone}; use {joined}a "
            "method that cuts directions (fisher-tucker, eigendamage)"
        )
    return Channels(groups, left_alone)


def space_of(
    network: PrunableNetwork,
    options: CutOptions,
    groups: Sequence[ChannelGroup],
    scores: Sequence[Tensor],
    least: int = 1,
    times: NetworkTimes[ChannelTimes] | None = None,
) -> ChannelSpace:
    """The space of some groups with these scores, of which ``least`` channels must stay each."""
    macs = layer_macs(network.model, lambda: network.run(network.model, network.example))
    return channel_space(
        network.model,
        groups,
        scores,
        {name: value for name, value in macs.items() if network.counts(name)},
        network.cost,
        limit=options.prune_ratio_limit,
        dense={group.name: network.channels.get(group.name, group.channels) for group in groups},
        least=least,
        times=times,
    )


def _marked(group: ChannelGroup, removal: Removal) -> Tensor:
    """Scores ``[channels]`` of 1, and 0 for the channels that go."""
    scores = torch.ones(group.channels, dtype=torch.float64)
    scores[list(removal.get(group.name, ()))] = 0.0
    return scores


def _statistics(
    network: PrunableNetwork,
    groups: Sequence[ChannelGroup],
    method: ChannelMethod,
    curvature: CurvatureOptions,
) -> Statistics:
    modules = dict(network.model.named_modules())
    known = Statistics(modules, groups=groups, regularization=curvature.regularization, seed=network.seed)
    if method.needs is None:
        return known
    names = dict.fromkeys(member.layer for group in groups for member in measured_members(group, method.needs))
    layers, needs = {name: modules[name] for name in names}, method.needs
    found, missing = once(network, "channels", lambda: measure_channels(network, layers, needs, curvature))
    return replace(known, **{needs: found, "missing": missing})
