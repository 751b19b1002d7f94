"""Re-estimating BatchNorm statistics after weights or decisions have changed."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim.swa_utils import update_bn

from hybridprune.data import Batch


def recalibrate(net: nn.Module, batches: Iterable[Batch]) -> None:
    """Replace the running statistics by plain means over the batches' images, routed by the gates."""
    update_bn((batch.images for batch in batches), net)
