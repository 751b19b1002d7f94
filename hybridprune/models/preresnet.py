"""Pre-activation ResNets for CIFAR-sized images (He et al. 2016, "Identity mappings in deep residual networks")."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.models.backbone import Backbone, ResidualBlock
from hybridprune.models.factored import subsample
from hybridprune.models.resnet import blocks_per_stage, initialise_convolutions

EXPANSION = 4
"""Output channels of a bottleneck over those inside it."""


class PreActivationBlock(ResidualBlock):
    """``residual(x) + skip(x)``, each convolution behind its own BN and ReLU and nothing behind the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.out_channels = out_channels
        convolutions = (
            [
                nn.Conv2d(in_channels, out_channels // EXPANSION, 1, bias=False),
                nn.Conv2d(out_channels // EXPANSION, out_channels // EXPANSION, 3, stride, 1, bias=False),
                nn.Conv2d(out_channels // EXPANSION, out_channels, 1, bias=False),
            ]
            if bottleneck
            else [
                nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
                nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False),
            ]
        )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, conv in enumerate(convolutions, start=1):
            layers |= {f"bn{i}": nn.BatchNorm2d(conv.in_channels), f"relu{i}": nn.ReLU(), f"conv{i}": conv}
        self.residual = nn.Sequential(layers)
        self.stride = stride
        projects = stride != 1 or in_channels != out_channels
        self.projection = nn.Conv2d(in_channels, out_channels, 1, bias=False) if projects else None

    def skip(self, x: Tensor) -> Tensor:
        """The remainder of the block when it is skipped: the identity or a linear projection."""
        return x if self.projection is None else self.projection(subsample(x, self.stride, self.stride))

    def execute(self, x: Tensor, skipped: Tensor) -> Tensor:
        """The block's output, given ``skipped = skip(x)``."""
        return self.residual(x) + skipped


class PreResNet(Backbone):
    """Stem, three stages of blocks with w, 2w, 4w channels (times 4 between bottlenecks), BN-ReLU, classifier.

    Depth is 6n + 2, with bottlenecks 9n + 2. ``[B, 3, H, W]`` images give ``[B, classes]`` logits.
    """

    stem_parts = ("conv",)

    def __init__(self, depth: int, width: int, classes: int, bottleneck: bool = False) -> None:
        super().__init__()
        per_stage = blocks_per_stage(depth, "preresnet", bottleneck)
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.blocks = nn.ModuleList()
        channels = width
        for stage in range(3):
            out = (width << stage) * (EXPANSION if bottleneck else 1)
            for index in range(per_stage):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(PreActivationBlock(channels, out, stride, bottleneck))
                channels = out
        self.bn = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)
        initialise_convolutions(self)

    def stem(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the first block's input ``[B, w, H, W]``, without activation."""
        return self.conv(images)

    def head(self, x: Tensor) -> Tensor:
        """The last block's output to logits ``[B, classes]``: the activation it lacks, global average, classifier."""
        return self.classifier(F.relu(self.bn(x)).mean(dim=(2, 3)))
