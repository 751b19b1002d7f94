"""Groups of channels as torch-pruning's dependency graph describes them, with a bound on its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hybridprune.models.copies import copied
from hybridprune.models.frozen_norm import is_frozen_norm
from hybridprune.models.replace import replace_module
from hybridprune.pruning.channels.group import ChannelGroup, Member, inputs_of, outputs_of, role_of
from hybridprune.pruning.channels.nan_tracing import mapped, opaque_layers, put_into, tensors_of
from hybridprune.pruning.left_alone import UNBOUNDED, UNRULED, needed_by
from hybridprune.pruning.prunable import Run

if TYPE_CHECKING:  # half a second that many uses of this package do without
    import torch_pruning as tp

WIDER = 4
"""How many times longer than the widest layer a list of channels may become: wrong maps make it grow without end."""
WORK = 20_000_000
"""Channels that are mapped for one group at most, some seconds of work; DenseNet and VGG need 1 in 50 of it."""


def described(model: nn.Module, run: Run, example: Any, training: bool) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups of the dependency graph of a pass in one mode, and the reasons for producers that are in none."""
    # A copy: tracing needs gradients of all parameters.
    model = copied(model).requires_grad_(True)

    outputs: list[object] = []
    for module in opaque_layers(model):
        # The graph ends here: it is not always able to walk through.
        module.register_forward_pre_hook(lambda _, args: outputs.append(args))
        module.register_forward_hook(lambda _, args, output: mapped(output, torch.Tensor.detach))

    def traced(net: nn.Module, images: Any) -> Any:
        outputs.append(run(put_into(net, training), images))  # torch-pruning has put it into eval mode
        return [tensor for tensor in tensors_of(outputs) if tensor.grad_fn is not None]

    import torch_pruning as tp

    for name, module in [(name, module) for name, module in model.named_modules() if is_frozen_norm(module)]:
        replace_module(model, name, nn.BatchNorm2d(inputs_of(module)).to(module.get_buffer("weight").device))
    with torch.enable_grad():
        graph = tp.DependencyGraph().build_dependency(model, example, forward_fn=traced, verbose=False)
    names = {module: name for name, module in model.named_modules()}
    widths = [max(inputs_of(m), outputs_of(m)) for m in names if role_of(m, output=True) is not None]
    bound = _Bound(WIDER * max(widths, default=0))
    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.index_mapping = _Watched(dependency.index_mapping, bound, dependency)
    groups: list[ChannelGroup] = []
    left: dict[str, str] = {}
    seen: set[str] = set()
    for module, name in names.items():
        if module not in graph.module2node or role_of(module, output=True) != "producer" or name in seen:
            continue
        pruner = graph.get_pruner_of_module(module)
        assert pruner is not None
        bound.restart()
        try:
            items = graph.get_pruning_group(module, pruner.prune_out_channels, range(outputs_of(module))).items
        except Exception as error:  # of any kind: the graph cannot follow every operation
            # What it had reached is in the same group, and would not end either.
            reached = {name, *_producers(graph, bound.reached, names)} if isinstance(error, _Endless) else {name}
            seen |= reached
            left |= dict.fromkeys(reached, UNBOUNDED if isinstance(error, _Endless) else UNRULED)
            continue
        producers = _producers(graph, [item.dep for item in items], names)
        seen |= producers
        group = _group(graph, name, outputs_of(module), items, names)
        if isinstance(group, ChannelGroup):
            groups.append(group)
        else:
            left |= dict.fromkeys(producers, group)
    return groups, left


class _Endless(Exception):
    """The search for what depends on a layer has gone beyond its bound."""


@dataclass
class _Bound:
    """How far the search for one group has come; raises `_Endless` where it is too far."""

    longest: int
    work: int = 0
    reached: list[Any] = field(default_factory=list)
    """The dependencies that were followed."""

    def restart(self) -> None:
        """For the next group."""
        self.work, self.reached = 0, []

    def follow(self, dependency: Any, channels: Sequence[Any]) -> Sequence[Any]:
        """Count the channels that a dependency leads to; returns them."""
        self.reached.append(dependency)
        # Each is compared with what was followed before.
        self.work += len(channels) + len(self.reached)
        if len(channels) > self.longest or self.work > WORK:
            raise _Endless
        return channels


class _Watched(list[Any]):
    """The index maps of a dependency, and behind them one that maps channels to themselves and counts them."""

    def __init__(self, maps: Sequence[Any], bound: _Bound, dependency: Any) -> None:
        super().__init__(maps)
        self._count: Callable[[Any], Any] = lambda channels: bound.follow(dependency, channels)

    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()
        yield self._count


def _producers(graph: tp.DependencyGraph, dependencies: Sequence[Any], names: dict[nn.Module, str]) -> set[str]:
    """Names of the layers whose outputs the dependencies lead to."""
    return {names[d.layer] for d in dependencies if d.layer in names and graph.is_out_channel_pruning_fn(d.handler)}


def _group(
    graph: tp.DependencyGraph, name: str, channels: int, items: Sequence[Any], names: dict[nn.Module, str]
) -> ChannelGroup | str:
    """The group of these items; why not, if a layer has no rule, or not all channels have as many places in it."""
    from torch_pruning.ops import OPTYPE

    members: list[Member] = []
    joined = False
    for item in items:
        node = item.dep.target
        if node.type == OPTYPE.ELEMENTWISE:
            joined |= len(node.inputs) > 1
        if node.type in (OPTYPE.OUTPUT, OPTYPE.PARAMETER):
            return UNRULED
        if node.module not in names:
            continue
        role = role_of(node.module, graph.is_out_channel_pruning_fn(item.dep.handler))
        if role is None:
            return needed_by(names[node.module], node.module)
        if None in item.root_idxs:
            return UNRULED
        places: list[list[int]] = [[] for _ in range(channels)]
        for index, channel in zip(item.idxs, item.root_idxs, strict=True):
            places[channel].append(index)
        size = outputs_of(node.module) if role == "producer" else inputs_of(node.module)
        if len({len(p) for p in places}) != 1 or not all(0 <= index < size for index in item.idxs):
            return UNRULED
        sources = [role_of(source.module, output=True) for source in node.inputs]
        behind_depthwise = role == "norm" and "depthwise" in sources
        members.append(Member(names[node.module], role, torch.tensor(places), behind_depthwise))
    return ChannelGroup(name, channels, joined, tuple(members))
