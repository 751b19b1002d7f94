"""VGG (Simonyan & Zisserman 2015) with BN for CIFAR-sized images: no residual blocks, hence no gates."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from hybridprune.errors import UserError
from hybridprune.models.resnet import initialise_convolutions

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Depth -> convolutions in each of the five stages (configurations A, D and E)."""


class VGG(nn.Module):
    """Five stages of conv-BN-ReLU with w, 2w, 4w, 8w, 8w channels and max pools between, global average, classifier.

    Width 64 is the standard net. ``[B, 3, H, W]`` images give ``[B, classes]`` logits.
    """

    def __init__(self, depth: int, width: int, classes: int) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise UserError(f"--depth {depth}: vgg has {', '.join(map(str, CONVOLUTIONS))} layers; choose one of these")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        channels = 3
        for stage, (convolutions, factor) in enumerate(zip(CONVOLUTIONS[depth], (1, 2, 4, 8, 8), strict=True), start=1):
            if stage > 1:
                # The border of an odd image counts too, so that even a single pixel passes.
                layers[f"pool{stage}"] = nn.MaxPool2d(2, ceil_mode=True)
            for index in range(1, convolutions + 1):
                layers[f"conv{stage}_{index}"] = nn.Conv2d(channels, factor * width, 3, 1, 1, bias=False)
                channels = factor * width
                layers[f"bn{stage}_{index}"] = nn.BatchNorm2d(channels)
                layers[f"relu{stage}_{index}"] = nn.ReLU()
        self.features = nn.Sequential(layers)
        self.classifier = nn.Linear(channels, classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean(dim=(2, 3)))
