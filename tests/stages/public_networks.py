"""CIFAR networks as the public collections write them: their layers' names, and their forward pass as an oracle."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks_and_images import randomise


class Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int, shortcut: str | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.name = shortcut if stride > 1 else None
        if self.name is not None:
            projection = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
            self.add_module(self.name, projection)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + (x if self.name is None else getattr(self, self.name)(x)))


class CifarResNet(nn.Module):
    """torchvision's names. ``shortcut``: what projections are called, None for option A; ``head``: the classifier."""

    def __init__(
        self, depth: int, width: int, classes: int, shortcut: str | None = "downsample", head: str = "fc"
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        channels = width
        for stage in (1, 2, 3):
            wide, blocks = width << (stage - 1), []
            for index in range((depth - 2) // 6):
                blocks.append(Block(channels, wide, 2 if stage > 1 and index == 0 else 1, shortcut))
                channels = wide
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.add_module(head, nn.Linear(channels, classes))
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        for stage in (1, 2, 3):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.get_submodule(self.head)(x.mean(dim=(2, 3)))


class NumberedVgg(nn.Module):
    """VGG-11 with biases and BatchNorms, its layers numbered; ``classifier`` comes after a global average."""

    def __init__(self, width: int, classifier: nn.Module, bias: bool = True, norm: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for factor in (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8):
            if not factor:
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, factor * width, 3, 1, 1, bias=bias))
            layers += [nn.BatchNorm2d(factor * width)] * norm + [nn.ReLU()]
            channels = factor * width
        self.features, self.classifier = nn.Sequential(*layers), classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def trained(net: nn.Module) -> nn.Module:
    """``net`` in eval mode with random BatchNorms and biases, as if it had been trained."""
    torch.manual_seed(3)
    randomise(net)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, 0, 0.3)
    return net
