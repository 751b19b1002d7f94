"""Measurements of the layers of channel groups, by what a score needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hybridprune.config import CurvatureOptions
from hybridprune.engine.modes import kept_modes
from hybridprune.pruning.channels import ChannelGroup, Member
from hybridprune.pruning.channels.scores import Need
from hybridprune.pruning.channels.scores.saliency import collect_saliency
from hybridprune.pruning.channels.scores.taylor import collect_taylor, taylor_members
from hybridprune.pruning.channels.scores.trace_ratio import collect_scatter
from hybridprune.pruning.channels.scores.variance import collect_variance, readers
from hybridprune.pruning.left_alone import NO_ROWS
from hybridprune.pruning.measure import differentiable, measure_factors, rows_in
from hybridprune.pruning.prunable import PrunableNetwork


def measured_members(group: ChannelGroup, need: Need) -> tuple[Member, ...]:
    """The members of which a statistic is measured."""
    if need == "factors":
        return group.of("producer")
    return readers(group) if need in ("variance", "scatter") else taylor_members(group)


def measure_channels(
    network: PrunableNetwork, layers: Mapping[str, nn.Module], need: Need, options: CurvatureOptions
) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The statistic of the layers by name, as the field of `Statistics` has it, and why others of them have none."""
    if need == "factors":
        factors, missing = measure_factors(network, layers, options)
        return {name: each.centred() if options.use_bias else each for name, each in factors.items()}, missing
    with kept_modes(network.model):
        network.model.eval()
        images = network.sample(options.curvature_images, need)
        if need == "variance":
            return collect_variance(network.logits, layers, images), {}
        if need == "taylor":
            with differentiable():
                return collect_taylor(network.logits, layers, images, network.likelihood), {}
        rows = rows_in(network, layers)
        seen = {name: layer for name, layer in layers.items() if name in rows}
        if need == "scatter":
            found = collect_scatter(lambda x: network.run(network.model, x), seen, images, rows)
        else:
            with differentiable():
                found = collect_saliency(network.logits, seen, images, network.likelihood, rows)
    return found, {name: NO_ROWS for name in layers if name not in rows}
