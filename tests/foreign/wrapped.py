"""Networks as they come out of wrappers, in other precisions and memory formats."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from tests.foreign.network import CLASSES, Net, pairs
from tests.foreign.training import plain


class Own(nn.Conv2d):
    """A convolution of somebody's own, by which another kind of layer may be recognised."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 0.5


class Mixed(nn.Module):
    """Subclasses of plain layers, ``ParameterList`` and ``ParameterDict``, a module in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.plain = Own(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.scales = nn.ParameterList([torch.ones(1), torch.full((1,), 0.5)])
        self.shifts = nn.ParameterDict({"a": torch.zeros(1)})
        self.kept = [nn.Conv2d(32, 16, 1)]
        self.kept[0].requires_grad_(False)
        nn.init.constant_(self.kept[0].weight, 0.1)
        nn.init.zeros_(cast(Tensor, self.kept[0].bias))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.own(x) * self.scales[1]).relu() + self.shifts["a"]
        return self.head(self.kept[0](self.plain(x).relu()).mean((2, 3)))


def in_type(dtype: torch.dtype) -> Any:
    """Batches of images of this type."""
    return [(images.to(dtype), labels) for images, labels in pairs()]


def compiled() -> nn.Module:
    """As ``torch.compile`` gives it, with a backend that takes no time."""
    return cast(nn.Module, torch.compile(plain(), backend="eager"))


NETS = {
    "data parallel": Net(lambda: nn.DataParallel(plain())),
    "compiled": Net(compiled),
    "bfloat16": Net(lambda: plain().bfloat16(), lambda: in_type(torch.bfloat16)),
    "half": Net(lambda: plain().half(), lambda: in_type(torch.float16)),
    "double": Net(lambda: plain().double(), lambda: in_type(torch.float64)),
    "channels last": Net(lambda: plain().to(memory_format=torch.channels_last)),  # type: ignore[call-overload]
    "kinds of its own": Net(Mixed),
}
