"""Channels of dependency groups: score, allocate, remove."""

from __future__ import annotations

from collections.abc import Sequence

from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.engine.modes import kept_modes
from hybridprune.errors import UserError
from hybridprune.pruning.channel_scores import Statistics, collect_taylor, gates
from hybridprune.pruning.channels import ChannelGroup, channel_groups, channel_space, remove_channels
from hybridprune.pruning.layers import layer_macs
from hybridprune.pruning.measure import measure_factors
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.proposal import Proposal
from hybridprune.pruning.subject import Subject


def propose_channels(
    subject: Subject, method: ChannelMethod, allocation: str, options: CutOptions, curvature: CurvatureOptions
) -> Proposal:
    """Score all channels of the network; UserError if no group is left to prune."""
    model = subject.model
    groups = channel_groups(
        model, subject.run, subject.example, exclude=subject.exclude, coupled=options.use_out_dependencies
    )
    if not groups:
        joined = "" if options.use_out_dependencies else "--use_out_dependencies for those that residual sums join, or "
        raise UserError(
            f"--method {options.method}: the network has no channels that can go by themselves; use {joined}a method "
            "that cuts directions (fisher-tucker, eigendamage)"
        )
    statistics = _statistics(subject, groups, method, options, curvature)
    scores = [method.score(group, statistics) for group in groups]
    if options.normalize:
        scores = [score / total if (total := float(score.sum())) > 0 else score for score in scores]
    macs = layer_macs(model, lambda: subject.run(model, subject.example))
    channels = channel_space(
        model,
        groups,
        scores,
        {name: value for name, value in macs.items() if subject.counts(name)},
        subject.cost,
        limit=options.prune_ratio_limit,
        dense={group.name: subject.channels.get(group.name, group.channels) for group in groups},
    )

    def apply(kept: Sequence[int]) -> None:
        update = None if method.update is None else method.update(statistics)
        remove_channels(model, groups, channels.removed(kept), subject.run, subject.example, update)

    def describe(kept: Sequence[int]) -> list[str]:
        return [f"{g.name}: {n} of {g.channels} channels" for g, n in zip(groups, kept, strict=True)]

    return Proposal(channels.space, allocation, apply, describe)


def _statistics(
    subject: Subject,
    groups: Sequence[ChannelGroup],
    method: ChannelMethod,
    options: CutOptions,
    curvature: CurvatureOptions,
) -> Statistics:
    modules = dict(subject.model.named_modules())
    producers = [member.layer for group in groups for member in group.of("producer")]
    factors, taylor = {}, {}
    if method.needs == "factors":
        factors = measure_factors(subject, {name: modules[name] for name in producers}, curvature)
        if curvature.use_bias:
            factors = {name: layer.centred() for name, layer in factors.items()}
    if method.needs == "taylor":
        names = [member.layer for group in groups for member in gates(group)]
        with kept_modes(subject.model):
            subject.model.eval()
            images = subject.sample(curvature.curvature_images, "taylor")
            taylor = collect_taylor(subject.logits, {name: modules[name] for name in names}, images)
    return Statistics(modules, factors, taylor, curvature.regularization, subject.seed)
