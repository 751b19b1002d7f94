"""The convolutions that become branches, and what goes with their outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.engine.modes import kept_modes
from hybridprune.hooks import attached
from hybridprune.models.branched import BranchedConv2d
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.directions.layers import PrunableLayer
from hybridprune.pruning.left_alone import AT_OUTPUT, PROJECTION, STEM
from hybridprune.pruning.prunable import PrunableNetwork


@dataclass(frozen=True)
class Reader:
    """A layer that reads the outputs of another one."""

    layer: str
    inputs: Tensor
    """``[C_out, m]``: the reader's inputs that go with each output"""


@dataclass(frozen=True)
class BranchLayer:
    """A convolution whose filters read inputs of their own, or one whose outputs such layers alone read."""

    name: str
    conv: nn.Conv2d
    out_positions: int
    in_elements: int
    """Of the input that one image is for it."""
    grouped: bool
    """Whether its filters are grouped and lose inputs; else all of them read all that there is."""
    loses_filters: bool
    """Whether filters go by their own energy: a sum has their outputs, so no reader can say that they are unread."""
    channels: ChannelGroup | None
    """The group of its outputs, if a channel is to go once nothing reads it."""
    readers: tuple[Reader, ...] = ()
    """Of that group."""
    per_output: int = 0
    """Parameters of an output in BatchNorms that are narrowed with it."""


def branch_layers(
    network: PrunableNetwork,
    layers: Sequence[PrunableLayer],
    groups: Sequence[ChannelGroup],
    left_alone: Mapping[str, str],
) -> tuple[list[BranchLayer], dict[str, str]]:
    """The convolutions among ``layers`` that become branches, those that feed them alone, and the others with a reason.

    The first convolution stays, and so do projections: 1x1 convolutions that read what another one reads, of whose
    outputs ``groups`` say nothing. A channel of a group that nothing but grouped layers read goes with its last reader.

    Args:
        groups: the channels that can go by themselves.
        left_alone: why those of the other layers cannot.
    """
    modules = dict(network.model.named_modules())
    plain = {x.name: x for x in layers if isinstance(x.leaf, nn.Conv2d) and modules[x.name] is x.leaf}
    stem = next((name for name, module in modules.items() if isinstance(module, nn.Conv2d)), None)
    makers = {group.of("producer")[0].layer: group for group in groups if len(group.of("producer")) == 1}
    shared = _sharing(network, [name for name, each in modules.items() if isinstance(each, nn.Conv2d | BranchedConv2d)])
    reasons: dict[str, str] = {}
    for name, layer in plain.items():
        if name == stem:
            reasons[name] = STEM
        elif layer.shape.kernel_area == 1 and name not in makers and name in shared:
            reasons[name] = PROJECTION
    grouped = [name for name in plain if name not in reasons]
    found = []
    for name, layer in plain.items():
        assert isinstance(layer.leaf, nn.Conv2d)
        group = makers.get(name)
        narrowed = group is not None and _narrowed(group, grouped)
        if name not in grouped and not narrowed:
            continue
        found.append(
            BranchLayer(
                name,
                layer.leaf,
                layer.shape.out_positions,
                layer.shape.in_positions * layer.shape.in_channels,
                grouped=name in grouped,
                loses_filters=name in grouped and group is None and left_alone.get(name, AT_OUTPUT) != AT_OUTPUT,
                channels=group if narrowed else None,
                readers=_readers(group) if narrowed and group is not None else (),
                per_output=_norms(network.model, group) if narrowed and group is not None else 0,
            )
        )
    return found, reasons


def _narrowed(group: ChannelGroup, grouped: Sequence[str]) -> bool:
    """Whether channels of a group go once no grouped layer reads them: nothing else reads or filters them."""
    readers = group.of("consumer")
    (producer,) = group.of("producer")
    alone = producer.index.shape[1] == 1 and torch.equal(producer.index[:, 0], torch.arange(group.channels))
    return alone and bool(readers) and not group.of("depthwise") and all(member.layer in grouped for member in readers)


def _readers(group: ChannelGroup) -> tuple[Reader, ...]:
    return tuple(Reader(member.layer, member.index) for member in group.of("consumer"))


def _norms(model: nn.Module, group: ChannelGroup) -> int:
    norms = [(model.get_submodule(member.layer), member.index.shape[1]) for member in group.of("norm")]
    return sum(len(list(norm.parameters(recurse=False))) * places for norm, places in norms)


@torch.no_grad()
def _sharing(network: PrunableNetwork, names: Sequence[str]) -> set[str]:
    """The layers that read memory which another of them reads as well, when an image passes."""
    read: dict[str, Tensor] = {}  # alive, so that no two have the same memory by chance

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: read.update({name: args[0]} if args else {})  # none where it is called by keyword

    hooks = [network.model.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    with attached(hooks), kept_modes(network.model):
        network.model.eval()
        network.run(network.model, network.example)
    memory = {name: x.untyped_storage().data_ptr() for name, x in read.items()}
    users = Counter(memory.values())
    return {name for name, place in memory.items() if users[place] > 1}
