"""Ways to run a network other than the one that it is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybridprune.ambient import kept_generators
from hybridprune.models.skipnet import GatedNetwork


def always_on(net: nn.Module) -> nn.Module:
    """The module that gives the logits of ``net`` with every block executed: a gated network's backbone, or itself."""
    return net.backbone if isinstance(net, GatedNetwork) else net


@contextmanager
def kept_modes(net: nn.Module) -> Iterator[None]:
    """Inside, the training mode of ``net`` may change; afterwards each of its modules is in its own again."""
    before = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def training_mode(net: nn.Module) -> Iterator[None]:
    """Inside, ``net`` trains; afterwards each of its modules is in its own mode again.

    A network in training mode stays as it is: what its owner has put into eval mode, such as BatchNorms whose
    statistics are to stay, is so on purpose. One in eval mode is in use, and all of it trains.
    """
    with kept_modes(net):
        if not net.training:
            net.train()
        yield


@contextmanager
def norms_at_rest(net: nn.Module) -> Iterator[None]:
    """Inside, BatchNorms normalise by their running statistics, and keep them: a single image has none of its own."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    with kept_modes(net):
        for norm in norms:
            norm.training = False
        yield


@contextmanager
def without_trace(net: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, ``net`` may be run: afterwards its buffers, and torch's generators, are as they were."""
    before = [(buffer, buffer.clone()) for buffer in net.buffers()]
    with kept_generators(device):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, kept in before:
                    buffer.copy_(kept)


def take_modes(net: nn.Module, original: nn.Module) -> nn.Module:
    """Put each module of ``net`` into the training mode of that of its name in ``original``; return ``net``.

    A part of a layer that was replaced takes the mode of the layer.
    """
    modes = {name: module.training for name, module in original.named_modules(remove_duplicate=False)}
    for name, module in net.named_modules():
        while name not in modes:
            name = name.rpartition(".")[0]
        module.training = modes[name]
    return net
