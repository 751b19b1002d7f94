"""Convolutions and norms of all kinds, and what lies between them."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.foreign.network import CLASSES, UNSEEN, Net, pairs
from tests.foreign.training import plain


class Shuffle(nn.Module):
    """ShuffleNet's unit: half of the channels pass by, grouped and depthwise convolutions, shuffled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.reduce, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.depthwise, self.expand = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1, groups=2)
        self.last, self.head = nn.Conv2d(16, 32, 3, padding=1), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        kept, x = self.stem(x).chunk(2, 1)
        x = self.expand(self.depthwise(F.relu(self.norm(self.reduce(x)))))
        x = torch.cat([kept, F.relu(x)], 1)
        x = x.view(len(x), 2, 8, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Inverted(nn.Module):
    """MobileNet's bottleneck with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(8, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6()
        )
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.project = nn.Sequential(nn.Conv2d(32, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))).sigmoid()
        return self.head((x + self.project(y)).mean((2, 3)))


class Dense(nn.Module):
    """DenseNet's concatenations, and a split behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 8, 3, padding=1)) for n in (8, 16, 24)
        )
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        old, new = torch.cat(features, 1).split((16, 16), 1)
        return self.head((old[:, ::2].repeat(1, 2, 1, 1) + new).mean((2, 3)))


def deep(dimensions: int) -> nn.Module:
    """A network of one- or three-dimensional convolutions with a wide classifier."""
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dimensions == 1 else (nn.Conv3d, nn.BatchNorm3d)
    pool = nn.AdaptiveAvgPool1d(2) if dimensions == 1 else nn.AdaptiveAvgPool3d(2)
    features = [conv(2, 4, 3, padding=1), norm(4), nn.ReLU(), conv(4, 4, 3, padding=1), norm(4), nn.ReLU(), pool]
    wide = [nn.Flatten(), nn.Linear(4 * 2**dimensions, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    return nn.Sequential(*features, *wide, nn.Linear(256, CLASSES))


def normed(make_norm: type[nn.Module], *arguments: int) -> nn.Module:
    """Other norms than BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        make_norm(*arguments),
        nn.SiLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 16, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def parametrised(kind: str) -> nn.Module:
    """A layer whose weight is computed from others: it must stay as it is."""
    model = plain()
    conv = model[3]
    if kind == "spectral":
        parametrizations.spectral_norm(conv)
    elif kind == "weight":
        parametrizations.weight_norm(conv)
    else:
        with warnings.catch_warnings():  # torch recommends the other one
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(conv)
    return model


class Reflecting(nn.Module):
    """Padding modes, dilation, asymmetric kernels, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.mirror = nn.Conv2d(3, 12, 3, padding=1, padding_mode="reflect")
        self.across, self.down = nn.Conv2d(12, 16, (1, 5), padding="same"), nn.Conv2d(16, 16, (5, 1), padding=(2, 0))
        self.wide, self.up = nn.Conv2d(16, 12, 3, padding=2, dilation=2), nn.ConvTranspose2d(12, 8, 2, 2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mirror(x))
        x = F.relu(self.down(F.relu(self.across(x))))
        return self.head(F.relu(self.up(F.relu(self.wide(x)))).mean((2, 3)))


NETS = {
    "channel shuffle": Net(Shuffle),
    "squeeze and excitation": Net(Inverted, coupled=True),
    "dense concatenations": Net(Dense, refused=UNSEEN),
    "one dimension": Net(lambda: deep(1), lambda: pairs(2, 16)),
    "three dimensions": Net(lambda: deep(3), lambda: pairs(2, 4, 4, 4)),
    "group norm": Net(lambda: normed(nn.GroupNorm, 4, 16)),
    "instance norm": Net(lambda: normed(nn.InstanceNorm2d, 16)),
    "spectral norm": Net(lambda: parametrised("spectral"), fixed=("3",)),
    "weight norm": Net(lambda: parametrised("weight"), fixed=("3",)),
    "old weight norm": Net(lambda: parametrised("old"), fixed=("3",)),
    "padding modes": Net(Reflecting),
}
