"""Re-estimating BatchNorm statistics after weights or decisions have changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from hybridprune.data import Batch


@torch.no_grad()
def recalibrate(net: nn.Module, batches: Iterable[Batch], images: int) -> None:
    """Replace the running statistics by plain means over about ``images`` images, routed by the gates."""

    def inputs() -> Iterable[Tensor]:
        seen = 0
        for batch in itertools.takewhile(lambda _: seen < images, batches):
            seen += len(batch.labels)
            yield batch.images

    update_bn(inputs(), net)
