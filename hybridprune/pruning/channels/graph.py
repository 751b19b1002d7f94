"""Channel groups of a network, found in its dependency graph: channels that can only go together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hybridprune.models.copies import copied
from hybridprune.pruning.channels.dependency import described
from hybridprune.pruning.channels.group import ChannelGroup, Places, outputs_of, role_of
from hybridprune.pruning.channels.nan_tracing import OUTPUT, opaque_layers, running_modes, trace_wiring
from hybridprune.pruning.channels.surgery import cut, intact
from hybridprune.pruning.left_alone import AT_OUTPUT, JOINED, NEVER, SHARED, UNRULED, WIRED, needed_by
from hybridprune.pruning.partition import partition
from hybridprune.pruning.prunable import Run


class Channels(NamedTuple):
    """The groups of channels that can be removed, and for each other layer that makes channels the reason why not."""

    groups: list[ChannelGroup]
    left_alone: dict[str, str]


def channel_groups(
    model: nn.Module, run: Run, example: Any, *, exclude: Sequence[str], coupled: bool
) -> list[ChannelGroup]:
    """The groups of `survey_channels`."""
    return survey_channels(model, run, example, exclude=exclude, coupled=coupled).groups


def survey_channels(model: nn.Module, run: Run, example: Any, *, exclude: Sequence[str], coupled: bool) -> Channels:
    """All groups of channels that can be removed, in the order of the network's layers (Fang et al. 2023, DepGraph).

    The network's own outputs are never removed. What is tied to a layer without a rule (grouped convolutions that
    are not depthwise, recurrent cells, other norms, free parameters) is left alone, and so are layers whose weights are
    shared or computed, and every group that the graph describes wrongly, as running the network in eval and in
    training mode shows (see `trace_wiring`). ``model`` is not changed.

    Args:
        run: passes images through the network, all of its blocks executed.
        example: one image ``[1, ...]``, or what else ``run`` takes.
        exclude: patterns of names of layers whose outputs are not removed.
        coupled: whether channels that several layers produce, joined by residual sums, are removed jointly. Else
            they are left alone, and only channels inside of blocks go.
    """
    modes = running_modes(model, run, example)
    # Training may add branches that read the same channels, such as auxiliary heads.
    more = len(modes) > 1 and not modes[True] <= modes[False]
    described_groups, left = described(model, run, example, training=more)
    places = Places(model, described_groups)
    traces = [trace_wiring(model, run, example, places.outputs, training) for training in modes]
    opaque = [name for name, module in model.named_modules() if module in opaque_layers(model)]
    tied = tied_layers(model)
    left |= _named_readers(model, run, example, [name for name, reason in left.items() if reason == UNRULED], opaque)
    groups: list[ChannelGroup] = []
    for group, first in places:
        makers = [member.layer for member in group.of("producer", "depthwise")]
        if any(fnmatchcase(layer, pattern) for layer in makers for pattern in exclude):
            continue
        if not tied.isdisjoint(member.layer for member in group.members):
            reason = SHARED
        elif not modes[False].issuperset(makers):
            reason = NEVER
        elif (place := _exit(traces, opaque, first, group.channels)) is not None:
            reason = AT_OUTPUT if place == OUTPUT else needed_by(place, model.get_submodule(place))
        elif group.coupled and not coupled:
            reason = JOINED
        else:
            groups.append(group)
            continue
        left |= dict.fromkeys(makers, reason)

    def check(tried: Sequence[ChannelGroup]) -> str | None:
        return None if _removable(model, tried, run, example, tuple(modes)) else WIRED

    sound, failed = partition(groups, check)
    left |= {member.layer: reason for group, reason in failed for member in group.of("producer", "depthwise")}
    return Channels(
        sound,
        {name: reason for name, reason in left.items() if not any(fnmatchcase(name, each) for each in exclude)},
    )


def _exit(traces: Sequence[Mapping[str, Tensor]], opaque: Sequence[str], first: int, channels: int) -> str | None:
    """Where some of so many channels leave the layers that can be narrowed: an opaque layer or `OUTPUT`, if they do."""
    for place in (*opaque, OUTPUT):
        for trace in traces:
            found = trace.get(place)
            if found is not None and bool(((first <= found) & (found < first + channels)).any()):
                return place
    return None


def _named_readers(
    model: nn.Module, run: Run, example: Any, layers: Sequence[str], opaque: Sequence[str]
) -> dict[str, str]:
    """The reasons of those layers whose outputs an opaque layer reads: it is named."""
    numbers = {name: number for number, name in enumerate(layers, start=1)}
    if not numbers:
        return {}
    marked = {name: torch.full((outputs_of(model.get_submodule(name)),), number) for name, number in numbers.items()}
    trace = trace_wiring(model, run, example, marked)
    places = {name: _exit([trace], opaque, number, 1) for name, number in numbers.items()}
    named = {name: place for name, place in places.items() if place is not None and place != OUTPUT}
    return {name: needed_by(place, model.get_submodule(place)) for name, place in named.items()}


def tied_layers(model: nn.Module) -> set[str]:
    """Names of the layers with a role whose parameters another module has as well, or whose weight is computed."""
    users = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    found: set[str] = set()
    for name, module in model.named_modules():
        if role_of(module, output=True) is None:
            continue
        shared = any(p is not None and users[id(p)] > 1 for p in module._parameters.values())
        computed = isinstance(module, nn.Conv2d | nn.Linear) and module._parameters.get("weight") is None
        if shared or computed or parametrize.is_parametrized(module):
            found.add(name)
    return found


def _removable(model: nn.Module, groups: Sequence[ChannelGroup], run: Run, example: Any, modes: Sequence[bool]) -> bool:
    """Whether the channels are where the groups say, also once the first or the last of each is gone."""
    places = Places(model, groups)
    for trial in ([], [0], [-1]):
        removed = [torch.arange(g.channels)[trial if g.channels > 1 else []] for g in groups]
        trimmed = copied(model)
        cut(trimmed, groups, removed)
        if not intact(trimmed, places, removed, run, example, modes):
            return False
    return True
