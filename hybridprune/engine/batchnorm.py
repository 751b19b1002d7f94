"""Re-estimating BatchNorm statistics after weights or decisions have changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybridprune.data import Batch
from hybridprune.engine.modes import always_on as without_gates
from hybridprune.engine.modes import kept_modes
from hybridprune.engine.parallel import average


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[Batch], always_on: bool = False) -> None:
    """Replace the running statistics by plain means over the batches, as seen with all other modules in eval mode.

    A gated network is routed by its gates or, ``always_on``, executes every block. Any module of images will do.
    """
    forward = without_gates(net) if always_on else net
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with kept_modes(net):
        net.eval()
        try:
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative mean
            for batch in batches:
                forward(batch.images)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def average_statistics(net: nn.Module) -> None:
    """Replace the running statistics of the norms in training mode by their means over the processes.

    Each process normalises by its own share of a batch; running averages are linear in what they average, so it does
    not matter when they are joined.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.training]
    average([stat for norm in norms for stat in (norm.running_mean, norm.running_var) if stat is not None])


@contextmanager
def synchronised(net: nn.Module) -> Iterator[None]:
    """Inside, the norms of ``net`` take their statistics from the whole batch of all processes, on GPUs only.

    Parameters and statistics stay the same tensors.
    """
    before = [
        (module, name, child)
        for module in net.modules()
        for name, child in module.named_children()
        if isinstance(child, _BatchNorm)
    ]
    try:
        for module, name, child in before:
            setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        yield
    finally:
        for module, name, child in before:
            child.training = getattr(module, name).training
            setattr(module, name, child)
