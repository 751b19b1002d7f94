"""Removing channels, and the proof that a network without them is still wired as it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.models.copies import copied
from hybridprune.models.frozen_norm import is_frozen_norm
from hybridprune.models.replace import memory_format
from hybridprune.pruning.channels.group import ChannelGroup, Places
from hybridprune.pruning.channels.nan_tracing import running_modes, trace_wiring
from hybridprune.pruning.prunable import Run

Update = Callable[[ChannelGroup, Tensor], None]
"""Called as ``update(group, removed)`` before the channels ``removed [r]`` of a group go."""


def remove_channels(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    removed: Sequence[Tensor],
    run: Run,
    example: Any,
    update: Update | None = None,
) -> None:
    """Remove channels ``removed[i] [r_i]`` of each group from ``model`` in place; what stays is the same to the bit.

    Args:
        run: passes images through the network, all of its blocks executed.
        example: one image ``[1, ...]``, or what else ``run`` takes.
        update: may first change the weights of the layers, to compensate for what they lose.

    Raises:
        ValueError: if the network would not be wired as before; it is then left as it was.
    """
    places, nothing = Places(model, groups), [index[:0] for index in removed]
    modes = tuple(running_modes(model, run, example))
    trial = copied(model)
    cut(trial, groups, removed)
    if not (
        intact(model, places, nothing, run, example, modes) and intact(trial, places, removed, run, example, modes)
    ):
        raise ValueError("without these channels the network would not be wired as before")
    if update is not None:
        for group, index in zip(groups, removed, strict=True):
            if len(index):
                update(group, index)
    cut(model, groups, removed)


@torch.no_grad()
def cut(model: nn.Module, groups: Sequence[ChannelGroup], removed: Sequence[Tensor]) -> None:
    """Remove the channels, unchecked.

    Torch-pruning's functions for single layers do it, all channels of a layer at once: a dependency graph would have
    to keep its index maps up to date from one group to the next.
    """
    gone: dict[tuple[str, bool], list[int]] = {}
    for group, index in zip(groups, removed, strict=True):
        assert len(index.unique()) == len(index) < group.channels, group.name
        for member in group.members:
            of_layer = gone.setdefault((member.layer, member.role != "consumer"), [])
            of_layer += member.index[index].flatten().tolist()
    # Not above: it is slow to import, and many uses of this package do without.
    from torch_pruning.ops import module2type
    from torch_pruning.pruner.function import PrunerBox

    for (name, output), places in gone.items():
        if not places:
            continue
        module = model.get_submodule(name)
        if is_frozen_norm(module):
            keep = sorted(set(range(len(module.get_buffer("weight")))) - set(places))
            for key, buffer in module.named_buffers(recurse=False):
                setattr(module, key, buffer[keep])
            continue
        trained = {key: p.requires_grad for key, p in module.named_parameters(recurse=False)}
        format = memory_format(module.parameters(recurse=False))
        pruner = PrunerBox[module2type(module)]
        (pruner.prune_out_channels if output else pruner.prune_in_channels)(module, sorted(places))
        for key, requires_grad in trained.items():
            module.get_parameter(key).requires_grad_(requires_grad)
        module.to(memory_format=format)  # type: ignore[call-overload]


def intact(
    cut_model: nn.Module, places: Places, removed: Sequence[Tensor], run: Run, example: Any, modes: Sequence[bool]
) -> bool:
    """Whether every channel that is left goes where it went, and nowhere else, in these modes (training or not)."""
    marked, expected = places.without(removed)
    depthwise = {member.layer for group in places.groups for member in group.of("depthwise")}
    seen: set[str] = set()
    for training in modes:
        try:
            found = trace_wiring(cut_model, run, example, marked, training, depthwise)
        except Exception:  # of any kind: sizes that do not fit
            return False
        seen |= found.keys()
        for layer, numbers in found.items():
            if not torch.equal(numbers, expected.get(layer, torch.zeros_like(numbers))):
                return False
    return expected.keys() <= seen
