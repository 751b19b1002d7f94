"""Re-estimating BatchNorm statistics after weights or decisions have changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybridprune.data import Batch
from hybridprune.engine.modes import always_on as without_gates
from hybridprune.engine.modes import kept_modes


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
