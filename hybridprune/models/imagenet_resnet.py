"""ResNets for ImageNet-sized images (He et al. 2016, table 1), layer by layer as torchvision has them.

A bottleneck's stride is in its 3x3 convolution, not in the first 1x1 as in the paper: "ResNet v1.5", which SkipNet's
ImageNet networks have as well.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.models.backbone import Backbone, ResidualBlock
from hybridprune.models.factored import subsample
from hybridprune.models.preresnet import EXPANSION
from hybridprune.models.resnet import BasicBlock, initialise_convolutions, projection

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks of each stage, by depth."""
WIDTH = 64
"""Channels of the stem; inside the blocks of stage s = 0, 1, 2, 3 there are 2^s times as many."""


class Bottleneck(ResidualBlock):
    """Convolutions 1x1, 3x3, 1x1 beside a shortcut: ``relu(residual(x) + skip(x))``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        inner = out_channels // EXPANSION
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.out_channels = out_channels
        self.projection = projection(in_channels, out_channels, stride)

    def skip(self, x: Tensor) -> Tensor:
        """The remainder of the block when it is skipped: the identity, or projection and BN without ReLU."""
        return x if self.projection is None else self.projection(subsample(x, self.stride, self.stride))

    def execute(self, x: Tensor, skipped: Tensor) -> Tensor:
        """The block's output, given ``skipped = skip(x)``."""
        # In place, and without names, for the reasons given in `BasicBlock`.
        residual = self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))
        residual = self.conv3(F.relu(self.bn2(residual), inplace=True))
        return F.relu(self.bn3(residual).add_(skipped), inplace=True)


class ImageNetResNet(Backbone):
    """Stem of a 7x7 convolution and max pooling, four stages of blocks, global average pool and classifier.

    Depths 18 and 34 have basic blocks with 64, 128, 256, 512 channels, the others bottlenecks with four times as many
    behind them. ``[B, 3, H, W]`` images give ``[B, classes]`` logits.
    """

    stem_parts = ("conv", "bn")

    def __init__(self, depth: int, classes: int) -> None:
        """``depth`` is one of `BLOCKS`."""
        super().__init__()
        block, expansion = (BasicBlock, 1) if depth < 50 else (Bottleneck, EXPANSION)
        self.conv = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
        self.bn = nn.BatchNorm2d(WIDTH)
        self.blocks = nn.ModuleList()
        channels = WIDTH
        for stage, count in enumerate(BLOCKS[depth]):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(block(channels, (WIDTH << stage) * expansion, stride))
                channels = (WIDTH << stage) * expansion
        self.classifier = nn.Linear(channels, classes)
        initialise_convolutions(self)

    def stem(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the first block's input ``[B, 64, ceil(H / 4), ceil(W / 4)]``."""
        return F.max_pool2d(F.relu(self.bn(self.conv(images)), inplace=True), 3, 2, 1)

    def head(self, x: Tensor) -> Tensor:
        """The last block's output ``[B, C, H', W']`` to logits ``[B, classes]``."""
        return self.classifier(x.mean(dim=(2, 3)))


resnet18, resnet34, resnet50, resnet101, resnet152 = (partial(ImageNetResNet, depth) for depth in BLOCKS)
