"""Small random networks, images, decisions and batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybridprune.data import Batch, ImageSet
from hybridprune.models.edits import Edit
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec


def random_net(
    depth: int = 14, width: int = 4, classes: int = 5, edits: tuple[Edit, ...] = (), seed: int = 0
) -> GatedNetwork:
    """A gated network in eval mode, with random BatchNorm statistics and gates that decide differently per image."""
    torch.manual_seed(seed)
    return randomised(NetworkSpec("resnet", depth, width, classes, edits).build())


def randomised(net: GatedNetwork) -> GatedNetwork:
    """``net`` in eval mode, with random BatchNorm statistics and gates that decide differently per image."""
    randomise(net)
    for parameter in net.gate.parameters():
        nn.init.normal_(parameter, 0, 1)
    for layer in net.gate.scores():
        nn.init.normal_(layer.weight, 0, 3)
    return net


def randomise(net: nn.Module) -> None:
    """Put ``net`` into eval mode and give its BatchNorms random statistics and parameters."""
    for module in net.eval().modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)


def random_images(count: int, size: int = 8, seed: int = 0) -> Tensor:
    """Normal noise, ``[count, 3, size, size]``."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_decisions(count: int, gates: int, seed: int = 0) -> Tensor:
    """Fair coins, ``[count, gates]`` in {0, 1}."""
    return torch.randint(2, (count, gates), generator=torch.Generator().manual_seed(seed)).float()


def batches_of(images: Tensor, labels: Tensor, batch_size: int) -> list[Batch]:
    """The images in order, the last batch perhaps smaller."""
    return [Batch(images[ids], labels[ids], ids) for ids in torch.arange(len(images)).split(batch_size)]


def all_pixels(data: ImageSet) -> Tensor:
    """The images of a set, uint8 ``[N, 3, H, W]``."""
    return data.pixels(torch.arange(len(data)))
