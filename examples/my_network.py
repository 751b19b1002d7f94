"""A gated network of one's own: depthwise separable residual blocks.

    python main_sp.py --network my_network:separable --width 16 --dataset digits

from the folder of this file, and likewise ``--network my_network:separable`` in the other stages and commands.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.networks import Backbone, ResidualBlock


class SeparableBlock(ResidualBlock):
    """``skip(x) + BN(pointwise(ReLU(BN(depthwise(x)))))``; skipped, it is the identity or a pooled projection."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stride = stride
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.projection = nn.Conv2d(in_channels, out_channels, 1, bias=False) if in_channels != out_channels else None

    def skip(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, self.stride, ceil_mode=True) if self.stride > 1 else x
        return x if self.projection is None else self.projection(x)

    def execute(self, x: Tensor, skipped: Tensor) -> Tensor:
        return skipped + self.bn2(self.pointwise(F.relu(self.bn1(self.depthwise(x)))))


class SeparableNet(Backbone):
    """A convolution, two blocks each of w, 2w and 4w channels, global average pool and classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        widths = [width, width, width, 2 * width, 2 * width, 4 * width, 4 * width]
        self.blocks = nn.ModuleList(SeparableBlock(a, b, 1 if a == b else 2) for a, b in pairwise(widths))
        self.classifier = nn.Linear(widths[-1], classes)

    def stem(self, images: Tensor) -> Tensor:
        return self.first(images)

    def head(self, x: Tensor) -> Tensor:
        return self.classifier(F.relu(x).mean(dim=(2, 3)))


def separable(classes: int, width: int = 16) -> SeparableNet:
    """Build the network that ``--network my_network:separable`` names; ``width`` is ``--width``."""
    return SeparableNet(width, classes)
