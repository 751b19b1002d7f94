"""Random small networks, and inputs that they take or choke on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SIZE, CHANNELS = 8, 3


class Residual(nn.Module):
    """Adds what its layers say, which must have the shape of what they are told, or stacks both."""

    def __init__(self, layers: nn.Module, stacked: bool) -> None:
        super().__init__()
        self.layers, self.stacked = layers, stacked

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return torch.cat([x, y], 1) if self.stacked else x + y


@dataclass(frozen=True)
class Plan:
    """A network in words, so that it can be built again: operations and their numbers."""

    operations: tuple[tuple[str, int], ...]
    hidden: int
    outputs: int
    dtype: torch.dtype = torch.float32

    def build(self, seed: int) -> nn.Module:
        """Random weights."""
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        width = CHANNELS
        for name, number in self.operations:
            added, width = _operation(name, number, width)
            layers.append(added)
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        if self.hidden:
            layers += [nn.Linear(width, self.hidden), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(self.hidden or width, self.outputs)).to(self.dtype)


def _operation(name: str, number: int, width: int) -> tuple[nn.Module, int]:
    """The operation's module, and how many channels it gives."""
    if name == "conv":
        conv = nn.Conv2d(width, 4 * number, 3, padding=1, bias=number % 2 == 0)
        return (nn.Sequential(conv, nn.ReLU(inplace=True)) if number > 2 else conv), 4 * number
    if name == "down":
        return nn.Sequential(nn.Conv2d(width, 4 * number, 3, 2, 1), nn.BatchNorm2d(4 * number), nn.ReLU()), 4 * number
    if name == "point":
        return nn.Sequential(nn.Conv2d(width, 8 * number, 1), nn.GELU()), 8 * number
    if name == "depthwise":
        return nn.Conv2d(width, width, 3, padding=1, groups=width), width
    if name == "norm":
        return (nn.BatchNorm2d(width) if number % 2 else nn.GroupNorm(1, width)), width
    if name == "relu":
        return nn.LeakyReLU(number / 10), width
    inner = nn.Sequential(
        nn.Conv2d(width, 4 * number, 1), nn.BatchNorm2d(4 * number), nn.ReLU(), nn.Conv2d(4 * number, width, 3, 1, 1)
    )
    return Residual(inner, stacked=name == "dense"), width * (2 if name == "dense" else 1)


NAMES = ("conv", "down", "point", "depthwise", "norm", "relu", "residual", "dense")
PLANS = st.builds(
    Plan,
    st.builds(
        lambda first, rest: (first, *rest),
        st.tuples(st.sampled_from(NAMES[:3]), st.integers(2, 5)),
        st.lists(st.tuples(st.sampled_from(NAMES), st.integers(1, 4)), max_size=3),
    ),
    st.sampled_from([16, 0]),
    st.sampled_from([3, 4, 2, 5, 1]),
    st.sampled_from([torch.float32] * 6 + [torch.float64, torch.bfloat16, torch.float16]),
)
"""Most are as users have them; all of them can be built and run."""


@dataclass(frozen=True)
class Food:
    """A loader in words."""

    counts: tuple[int, ...]
    kind: str
    """list, loader, once (a generator, empty the second time)."""
    spoilt: str
    """What is wrong with the batches; nothing, if it is empty."""

    def serve(self, plan: Plan, loss: object) -> Any:
        """The batches for a network of this plan, with the targets that the loss takes."""
        source = torch.Generator().manual_seed(0)
        batches = [self._batch(count, plan, loss, source) for count in self.counts]
        if self.kind == "loader" and batches and not self.spoilt:
            images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
            return DataLoader(TensorDataset(images, labels), batch_size=max(self.counts))
        return (each for each in batches) if self.kind == "once" else batches

    def _batch(self, count: int, plan: Plan, loss: object, source: torch.Generator) -> Any:
        images = torch.randn(count, CHANNELS, SIZE, SIZE, generator=source).to(plan.dtype)
        labels: Any = torch.randint(plan.outputs, (count,), generator=source)
        if loss in ("bce", "mse"):
            labels = torch.randint(2, (count, plan.outputs), generator=source).to(plan.dtype)
        if self.spoilt == "nan":
            images[:1, 0, 0, 0] = torch.nan
        elif self.spoilt == "infinite":
            images[-1:] = torch.inf
        elif self.spoilt == "labels":
            labels = labels + 7
        elif self.spoilt == "negative":
            labels = labels - 9
        elif self.spoilt == "int32":
            labels = labels.int()
        elif self.spoilt == "fractions":
            labels = labels.float() + 0.25
        elif self.spoilt == "hot":
            labels = torch.ones(count, plan.outputs + 1)
        elif self.spoilt == "few":
            labels = labels[:-1]
        elif self.spoilt == "none":
            labels = None
        elif self.spoilt == "three":
            return images, labels, labels
        elif self.spoilt == "alone":
            return images
        elif self.spoilt == "numpy":
            return images.double().numpy(), labels.numpy()
        elif self.spoilt == "flat":
            images = images[:, 0, 0]
        elif self.spoilt == "bytes":
            images = images.to(torch.uint8)
        return images, labels


SPOILT: Sequence[str] = (
    *("nan", "infinite", "labels", "negative", "int32", "fractions", "hot", "few", "none", "three", "alone", "numpy"),
    *("flat", "bytes"),
)
FOOD = st.builds(
    Food,
    st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["list", "loader"]),
    st.just(""),
)
BAD_FOOD = st.builds(
    Food, st.lists(st.integers(0, 4), max_size=2).map(tuple), st.sampled_from(["list", "once"]), st.sampled_from(SPOILT)
)
