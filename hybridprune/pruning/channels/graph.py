"""Which channels of a network belong together, by torch-pruning's dependency graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch_pruning as tp
from torch import nn
from torch_pruning.ops import OPTYPE

from hybridprune.pruning.channels.group import ChannelGroup, Member, Places, inputs_of, outputs_of, role_of
from hybridprune.pruning.channels.surgery import cut, intact
from hybridprune.pruning.channels.wiring import OUTPUT, mapped, opaque_layers, tensors_of, trace_wiring
from hybridprune.pruning.subject import Run


def channel_groups(
    model: nn.Module, run: Run, example: Any, *, exclude: Sequence[str], coupled: bool
) -> list[ChannelGroup]:
    """All groups of channels that can be removed, in the order of the network's layers (Fang et al. 2023, DepGraph).

    The network's own outputs are never removed. What is tied to a layer without a rule (grouped convolutions that
    are not depthwise, recurrent cells, other norms, free parameters) is left alone, and so is every group that the
    graph describes wrongly, as running the network shows (see `trace_wiring`). ``model`` is not changed.

    Args:
        run: passes images through the network, all of its blocks executed.
        example: one image ``[1, ...]``, or what else ``run`` takes.
        exclude: patterns of names of layers whose outputs are not removed.
        coupled: whether channels that several layers produce, joined by residual sums, are removed jointly. Else
            they are left alone, and only channels inside of blocks go.
    """
    described = _described(model, run, example)
    places = Places(model, described)
    at_output = trace_wiring(model, run, example, places.outputs)[OUTPUT]
    groups = [
        group
        for group, first in places
        if (coupled or not group.coupled)
        and not any(fnmatchcase(m.layer, pattern) for m in group.of("producer", "depthwise") for pattern in exclude)
        and not bool(((first <= at_output) & (at_output < first + group.channels)).any())
    ]
    return _sound(model, groups, run, example)


def _sound(model: nn.Module, groups: Sequence[ChannelGroup], run: Run, example: Any) -> list[ChannelGroup]:
    """Those groups whose channels can be removed; all of them are tried together first, then halves."""
    if not groups or _removable(model, groups, run, example):
        return list(groups)
    if len(groups) == 1:
        return []
    middle = len(groups) // 2
    return _sound(model, groups[:middle], run, example) + _sound(model, groups[middle:], run, example)


def _removable(model: nn.Module, groups: Sequence[ChannelGroup], run: Run, example: Any) -> bool:
    """Whether the channels are where the groups say, also once the first or the last of each is gone."""
    places = Places(model, groups)
    for trial in ([], [0], [-1]):
        removed = [torch.arange(g.channels)[trial if g.channels > 1 else []] for g in groups]
        trimmed = copy.deepcopy(model)
        cut(trimmed, groups, removed)
        if not intact(trimmed, places, removed, run, example):
            return False
    return True


def _described(model: nn.Module, run: Run, example: Any) -> list[ChannelGroup]:
    """The groups of the dependency graph."""
    # A copy: tracing needs gradients of all parameters and eval mode.
    model = copy.deepcopy(model).eval().requires_grad_(True)

    outputs: list[object] = []
    for module in opaque_layers(model):
        # The graph ends here: it is not always able to walk through.
        module.register_forward_pre_hook(lambda _, args: outputs.append(args))
        module.register_forward_hook(lambda _, args, output: mapped(output, torch.Tensor.detach))

    def traced(net: nn.Module, images: Any) -> Any:
        outputs.append(run(net, images))
        return [tensor for tensor in tensors_of(outputs) if tensor.grad_fn is not None]

    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(model, example, forward_fn=traced, verbose=False)
    names = {module: name for name, module in model.named_modules()}
    groups: list[ChannelGroup] = []
    seen: set[str] = set()
    for module, name in names.items():
        if module not in graph.module2node or role_of(module, output=True) != "producer" or name in seen:
            continue
        pruner = graph.get_pruner_of_module(module)
        assert pruner is not None
        try:
            items = graph.get_pruning_group(module, pruner.prune_out_channels, range(outputs_of(module))).items
        except Exception:  # of any kind: the graph cannot follow every operation
            continue
        seen |= {
            names[i.dep.layer] for i in items if i.dep.layer in names and graph.is_out_channel_pruning_fn(i.dep.handler)
        }
        group = _group(graph, name, outputs_of(module), items, names)
        if group is not None:
            groups.append(group)
    return groups


def _group(
    graph: tp.DependencyGraph, name: str, channels: int, items: Sequence[Any], names: dict[nn.Module, str]
) -> ChannelGroup | None:
    """The group of these items; None if a layer has no rule, or the channels do not all have as many places in it."""
    members: list[Member] = []
    joined = False
    for item in items:
        node = item.dep.target
        if node.type == OPTYPE.ELEMENTWISE:
            joined |= len(node.inputs) > 1
        if node.type in (OPTYPE.OUTPUT, OPTYPE.PARAMETER):
            return None
        if node.module not in names:
            continue
        role = role_of(node.module, graph.is_out_channel_pruning_fn(item.dep.handler))
        if role is None or None in item.root_idxs:
            return None
        places: list[list[int]] = [[] for _ in range(channels)]
        for index, channel in zip(item.idxs, item.root_idxs, strict=True):
            places[channel].append(index)
        size = outputs_of(node.module) if role == "producer" else inputs_of(node.module)
        if len({len(p) for p in places}) != 1 or not all(0 <= index < size for index in item.idxs):
            return None
        members.append(Member(names[node.module], role, torch.tensor(places)))
    return ChannelGroup(name, channels, joined, tuple(members))
