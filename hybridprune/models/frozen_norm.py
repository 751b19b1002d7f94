"""BatchNorms of which all is constant: torchvision's ``FrozenBatchNorm2d``, as in detectors with trained backbones."""

from __future__ import annotations

import sys

from torch import nn


def is_frozen_norm(module: nn.Module) -> bool:
    """Whether it is a ``FrozenBatchNorm2d``: ``a x + b`` for each channel of ``[B, C, H, W]``, in buffers."""
    torchvision = sys.modules.get("torchvision.ops.misc")  # not imported, no module is one
    return torchvision is not None and isinstance(module, torchvision.FrozenBatchNorm2d)


def is_norm(module: nn.Module) -> bool:
    """Whether it is a BatchNorm of feature maps, frozen or not."""
    return isinstance(module, nn.BatchNorm2d) or is_frozen_norm(module)
