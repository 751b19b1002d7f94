"""PyramidNets for CIFAR-sized images (Han et al. 2017): every block is a little wider than the one before."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.models.backbone import Backbone, ResidualBlock
from hybridprune.models.preresnet import EXPANSION
from hybridprune.models.resnet import blocks_per_stage, initialise_convolutions
from hybridprune.models.shakedrop import ShakeDrop


class PyramidBlock(ResidualBlock):
    """``residual(x) + skip(x)``: BN first and last, one ReLU less than convolutions (figure 6d of the paper).

    The shortcut has no parameters: average pool at stride 2, zeros for the channels that are new.
    """

    def __init__(self, in_channels: int, inner: int, stride: int, bottleneck: bool, drop: float) -> None:
        """``inner`` channels inside the block, and behind it too or, with ``bottleneck``, four times as many."""
        super().__init__()
        self.out_channels = inner * (EXPANSION if bottleneck else 1)
        self.stride = stride
        convolutions = (
            [
                nn.Conv2d(in_channels, inner, 1, bias=False),
                nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
                nn.Conv2d(inner, self.out_channels, 1, bias=False),
            ]
            if bottleneck
            else [
                nn.Conv2d(in_channels, inner, 3, stride, 1, bias=False),
                nn.Conv2d(inner, inner, 3, 1, 1, bias=False),
            ]
        )
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, conv in enumerate(convolutions, start=1):
            layers[f"bn{i}"] = nn.BatchNorm2d(conv.in_channels)
            if i > 1:
                layers[f"relu{i}"] = nn.ReLU()
            layers[f"conv{i}"] = conv
        layers[f"bn{len(convolutions) + 1}"] = nn.BatchNorm2d(self.out_channels)
        if drop:
            layers["shakedrop"] = ShakeDrop(drop)
        self.residual = nn.Sequential(layers)

    def skip(self, x: Tensor) -> Tensor:
        """The remainder of the block when it is skipped: the image, pooled and padded with zero channels."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride, ceil_mode=True)
        return F.pad(x, (0, 0, 0, 0, 0, self.out_channels - x.shape[1]))

    def execute(self, x: Tensor, skipped: Tensor) -> Tensor:
        """The block's output, given ``skipped = skip(x)``."""
        return self.residual(x) + skipped


class PyramidNet(Backbone):
    """Additive PyramidNet: block k of N has ``width + pyramid_alpha k / N`` channels (times 4 behind a bottleneck).

    Depth is 6n + 2, with bottlenecks 9n + 2. With ``shakedrop``, block k's residual branch is dropped with
    probability ``shakedrop k / N``. ``[B, 3, H, W]`` images give ``[B, classes]`` logits.
    """

    stem_parts = ("conv", "bn1")

    def __init__(
        self, depth: int, width: int, classes: int, pyramid_alpha: int, bottleneck: bool = False, shakedrop: float = 0.0
    ) -> None:
        super().__init__()
        per_stage = blocks_per_stage(depth, "pyramidnet", bottleneck)
        count = 3 * per_stage
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList()
        channels = width
        for k in range(1, count + 1):
            stride = 2 if k in (per_stage + 1, 2 * per_stage + 1) else 1
            inner = round(width + pyramid_alpha * k / count)
            block = PyramidBlock(channels, inner, stride, bottleneck, shakedrop * k / count)
            self.blocks.append(block)
            channels = block.out_channels
        self.bn2 = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)
        initialise_convolutions(self)

    def stem(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` to the first block's input ``[B, w, H, W]``, without activation."""
        return self.bn1(self.conv(images))

    def head(self, x: Tensor) -> Tensor:
        """The last block's output to logits ``[B, classes]``: the activation it lacks, global average, classifier."""
        return self.classifier(F.relu(self.bn2(x)).mean(dim=(2, 3)))
