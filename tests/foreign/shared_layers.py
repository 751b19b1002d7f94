"""One layer under several names, one tensor with several readers, layers whose weights are read by code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.foreign.network import CLASSES, UNSEEN, Net, pairs


class Listed(nn.Module):
    """Its layers have names of their own and are in a list as well, by which they are run."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.conv2, self.norm2 = nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.layers = nn.ModuleList([self.conv1, self.norm1, nn.ReLU(), self.conv2, self.norm2, nn.ReLU()])
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3)))


class Backbone(nn.Module):
    """A network whose parts somebody else takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(12, 16, 3, padding=1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.relu(self.norm(self.conv1(x)))).mean((2, 3)))


class Children(nn.Module):
    """``nn.Sequential(*backbone.children())`` beside the backbone that is kept: the usual feature extractor."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone()
        self.features = nn.Sequential(*list(self.backbone.children())[:-1])
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class TiedConvolutions(nn.Module):
    """Two convolutions have one ``Parameter``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first, self.second = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.second.weight = self.first.weight
        self.last = nn.Conv2d(12, 24, 3, padding=1)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.first(F.relu(self.stem(x)))))
        return self.head(F.relu(self.last(F.relu(x))).mean((2, 3)))


class TiedEmbedding(nn.Module):
    """A classifier that is the embedding, as language models have it; inputs are ``[B, T]`` tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.inner, self.outer = nn.Linear(16, 48), nn.Linear(48, 16)
        self.decoder = nn.Linear(16, 20, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        return self.decoder((x + self.outer(F.gelu(self.inner(x)))).mean(1))


def sentences() -> list[tuple[Tensor, Tensor]]:
    """Batches of 7 tokens each and the class of each."""
    return [((x.abs() * 9).long() % 20, labels) for x, labels in pairs(7, classes=20)]


class Siamese(nn.Module):
    """One tower sees both halves of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU())
        self.joint = nn.Sequential(nn.Linear(32, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU())
        self.head = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        left, right = (self.tower(half).mean((2, 3)) for half in x.chunk(2, dim=3))
        return self.head(self.joint(torch.cat([left, right], 1)))


class Functional(nn.Module):
    """Computes with the weights of a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.called = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        self.fc, self.head = nn.Linear(24, 24), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.used.weight, self.used.bias, padding=1))
        x = F.relu(self.called(x)).mean((2, 3))
        return self.head(F.linear(x, self.fc.weight.t(), self.fc.bias))


class Curious(nn.Module):
    """Asks its layers about themselves while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.hidden, self.head = nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x.to(self.first.weight.dtype)))
        x = F.relu(self.second(x))
        assert x.shape[1] == self.second.out_channels and self.second.stride == (2, 2)
        x = self.hidden(x.mean((2, 3)).view(-1, self.hidden.in_features))
        return self.head(F.relu(x.to(self.head.weight.device)))


class Forwarding(nn.Module):
    """Hands on what it does not have to what it wraps."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv1(x)))  # type: ignore[operator]
        return self.fc(self.conv2(x).mean((2, 3)))  # type: ignore[operator]


NETS = {
    "layers in a list as well": Net(Listed),
    "children of a backbone": Net(Children),
    "tied convolutions": Net(TiedConvolutions, fixed=("first", "second")),
    "tied embedding": Net(TiedEmbedding, sentences, refused=UNSEEN, fixed=("embedding", "decoder")),
    "siamese": Net(Siamese),
    "functional use of weights": Net(Functional, refused=UNSEEN, fixed=("used", "fc")),
    "asks its layers": Net(Curious),
    "forwards attributes": Net(lambda: Forwarding(Backbone()), lambda: pairs(classes=10)),
}
