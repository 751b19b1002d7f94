"""Networks whose channels are wired in every way, their groups, and how a cut one is held against a silenced one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.channels import (
    ChannelGroup,
    channel_groups,
    remove_channels,
)
from tests.networks_and_images import random_decisions, random_images, random_net, randomise

SIZE = 8


def run(model: nn.Module, images: Tensor) -> object:
    if isinstance(model, GatedNetwork):
        return model(images, images.new_ones(len(images), model.num_gates))
    return model(images)


def groups_of(
    model: nn.Module, size: int = SIZE, exclude: Sequence[str] = (), coupled: bool = True
) -> list[ChannelGroup]:
    return channel_groups(model, run, example_of(model, size), exclude=exclude, coupled=coupled)


def example_of(model: nn.Module, size: int) -> Tensor:
    return random_images(1, size).to(next(model.parameters()))


def remove(
    model: nn.Module, groups: Sequence[ChannelGroup], removed: Sequence[Tensor], size: int = SIZE, **more: Any
) -> None:
    remove_channels(model, groups, removed, run, example_of(model, size), **more)


def some_channels(groups: Sequence[ChannelGroup], seed: int = 0) -> list[Tensor]:
    """From each group up to three channels in four, in no order."""
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randperm(g.channels, generator=draw)[: int(torch.randint(3 * g.channels // 4 + 1, (), generator=draw))]
        for g in groups
    ]


@torch.no_grad()
def silence(model: nn.Module, groups: Sequence[ChannelGroup], removed: Sequence[Tensor]) -> nn.Module:
    """A copy whose BatchNorms give exact zeros in the channels."""
    model = copy.deepcopy(model)
    for group, index in zip(groups, removed, strict=True):
        assert group.of("norm")
        for member in group.of("norm"):
            norm = model.get_submodule(member.layer)
            for parameter in norm.parameters():
                parameter[member.index[index].flatten()] = 0
    return model


@torch.no_grad()
def logits(model: nn.Module, size: int) -> Tensor:
    images = random_images(6, size, seed=1).to(next(model.parameters()))
    if isinstance(model, GatedNetwork):
        routed = model(images, random_decisions(6, model.num_gates).to(images))
        return torch.cat([routed.logits, routed.gate_logits], 1)
    return model(images)


def assert_same_as_silenced(model: nn.Module, groups: Sequence[ChannelGroup], size: int = SIZE) -> None:
    removed = some_channels(groups)
    assert sum(map(len, removed)) > 0
    silenced = silence(model, groups, removed)
    expected, before = logits(silenced, size), logits(model, size)
    remove(model, groups, removed, size)
    found = logits(model, size)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 1e-5 * scale
    assert float((before - expected).abs().max()) > 1e-4 * scale


def randomised(model: nn.Module) -> nn.Module:
    """In eval mode, with random BatchNorms."""
    randomise(model)
    return model


def resnet(depth: int = 14) -> GatedNetwork:
    return random_net(depth)


class Vgg(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            *(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
            *(nn.Flatten(), nn.Linear(8 * 16, 7), nn.ReLU(), nn.Linear(7, 5)),
        )


class Branches(nn.Module):
    """Concatenation, squeeze and excitation, a depthwise convolution and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.bn_left = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.right, self.bn_right = nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5)
        self.depthwise, self.bn = nn.Conv2d(9, 9, 3, padding=1, groups=9), nn.BatchNorm2d(9)
        self.mix, self.bn_mix = nn.Conv2d(9, 6, 1), nn.BatchNorm2d(6)
        self.more, self.bn_more = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.classifier = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.bn_left(self.left(x)).relu(), self.bn_right(self.right(x)).relu()], 1)
        x = self.bn_mix(self.mix(self.bn(self.depthwise(x)).relu()))
        y = self.bn_more(self.more(x)).relu()
        y = y * self.excite(self.squeeze(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.classifier((x + y).mean((2, 3)))


NETS: dict[str, Callable[[], nn.Module]] = {
    "resnet": resnet,
    "vgg": lambda: randomised(Vgg()),
    "branches": lambda: randomised(Branches()),
}


class Odd(nn.Module):
    """A stem, something odd, and a head."""

    def __init__(self, odd: Callable[[Tensor], Tensor], channels: int, head: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.odd = odd
        self.head = nn.Sequential(head or nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.classifier = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.head(self.odd(self.stem(x))).mean((2, 3)))
