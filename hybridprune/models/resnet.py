"""CIFAR ResNets of depth 6n + 2 (He et al. 2016, section 4.2) with projection shortcuts (option B)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.errors import UserError
from hybridprune.models.backbone import Backbone, ResidualBlock
from hybridprune.models.factored import subsample


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions beside a shortcut: ``relu(residual(x) + skip(x))``."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.out_channels = out_channels
        self.projection = projection(in_channels, out_channels, stride)

    def skip(self, x: Tensor) -> Tensor:
        """The remainder of the block when it is skipped: the identity, or projection and BN without ReLU."""
        return x if self.projection is None else self.projection(subsample(x, self.stride, self.stride))

    def execute(self, x: Tensor, skipped: Tensor) -> Tensor:
        """The block's output, given ``skipped = skip(x)``."""
        # In place: nobody else reads what a BatchNorm gives, and allocating large tensors costs more than adding them.
        # Nor has the input of conv2 a name, which would keep it alive.
        residual = self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True))
        return F.relu(self.bn2(residual).add_(skipped), inplace=True)


class ResNet(Backbone):
    """Stem, ``3n`` basic blocks of widths (w, 2w, 4w), global average pool and classifier.

    ``[B, 3, H, W]`` images give ``[B, classes]`` logits.
    """

    stem_parts = ("conv", "bn")

    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        per_stage = blocks_per_stage(depth, "CIFAR ResNet")
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList()
        channels = width
        for stage in range(3):
            for index in range(per_stage):
                stride = 2 if stage > 0 and index == 0 else 1
                self.blocks.append(BasicBlock(channels, width << stage, stride))
                channels = width << stage
        self.classifier = nn.Linear(channels, classes)
        initialise_convolutions(self)

    @property
    def block_channels(self) -> list[int]:
        """Output channels of each block."""
        return [block.bn2.num_features for block in self.blocks if isinstance(block, BasicBlock)]

    def linear_readers(self, block: int) -> list[str] | None:
        """The classifier, or the first convolution and the projection of the next block, if it has one."""
        if block + 1 == len(self.blocks):
            return ["classifier"]
        reader = self.blocks[block + 1]
        assert isinstance(reader, BasicBlock)
        following = f"blocks.{block + 1}"
        return None if reader.projection is None else [f"{following}.conv1", f"{following}.projection.0"]

    def stem(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the first block's input ``[B, w, H, W]``."""
        return F.relu(self.bn(self.conv(images)), inplace=True)

    def head(self, x: Tensor) -> Tensor:
        """The last block's output ``[B, 4w, H/4, W/4]`` to logits ``[B, classes]``."""
        return self.classifier(x.mean(dim=(2, 3)))


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The 1x1 convolution and BN of a shortcut, behind its stride; None where a block leaves the shape as it is."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))


def blocks_per_stage(depth: int, network: str, bottleneck: bool = False) -> int:
    """``n`` of a network with 3 stages of n blocks: depth 6n + 2, with bottlenecks 9n + 2; UserError otherwise."""
    layers = 9 if bottleneck else 6
    if depth < layers + 2 or (depth - 2) % layers:
        examples = "29, 47, 110, 164 or 272" if bottleneck else "20, 32, 44, 56 or 110"
        kind = " with --bottleneck" if bottleneck else ""
        raise UserError(f"--depth {depth}: a {network}{kind} has {layers}n + 2 layers, e.g. {examples}")
    return (depth - 2) // layers


def initialise_convolutions(net: nn.Module) -> None:
    """Draw the convolutions' weights as He et al. 2015, fan out."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
