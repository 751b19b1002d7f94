"""Wiring as a run on marked channels tells it: which channel each input comes from, and what mixes them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from hybridprune.pruning.channels import survey_channels
from hybridprune.pruning.channels.nan_tracing import OUTPUT, SEVERAL, trace_wiring
from hybridprune.pruning.left_alone import AT_OUTPUT, UNRULED
from tests.pruning.channels.networks import (
    run,
)


def test_wiring_tells_channels_apart() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
            self.c = nn.Conv2d(5, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            a, b = self.a(x), self.b(x)
            a, b = a + torch.stack([b[:, 0], a[:, 0] * 0 + 1, b[:, 2]], 1), b
            return {"out": self.c(torch.cat([a, b[:, 1:]], 1)), "direct": b.relu()}

    found = trace_wiring(
        Net(), run, torch.randn(1, 3, 4, 4), {"a": torch.tensor([0, 9, 7]), "b": torch.tensor([3, 4, 7])}
    )
    assert found["c"].tolist() == [3, 9, 7, 4, 7]
    assert found["a"].tolist() == found["b"].tolist() == [0, 0, 0]
    assert found[OUTPUT].tolist() == [3, 4, 7]
    mixed = trace_wiring(
        Net(), run, torch.randn(1, 3, 4, 4), {"a": torch.tensor([1, 2, 3]), "b": torch.tensor([4, 5, 6])}
    )
    assert mixed["c"].tolist() == [SEVERAL, SEVERAL, SEVERAL, 5, 6]


@pytest.mark.parametrize("named", [False, True])
def test_wiring_of_outputs_that_are_numbers(named: bool) -> None:
    """A number for each image carries its marks; one of the whole batch mixes those of all channels that it reads."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            a = self.a(x)
            return {"each": a[:, 0].mean((1, 2))} if named else {"each": a[:, 0].mean((1, 2)), "all": a[:, 1].mean()}

    found = trace_wiring(Net(), run, torch.randn(1, 3, 4, 4), {"a": torch.tensor([5, 6])})
    assert found[OUTPUT].tolist() == ([5] if named else sorted([SEVERAL, 5]))


class Regions(nn.Module):
    """A backbone, of which torchvision's RoIAlign cuts regions for a head of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.maps = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        self.hidden, self.scores = nn.Linear(20, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        boxes = [torch.tensor([[0.0, 0.0, 3.0, 3.0], [1.0, 1.0, 4.0, 4.0]])] * len(x)
        regions = roi_align(self.maps(self.first(x)), boxes, 2)
        return self.scores(self.hidden(regions.flatten(1)).relu())


def test_what_another_operation_reads_leaves_and_channels_on_both_sides_are_followed() -> None:
    net, example = Regions().eval(), torch.randn(1, 3, 6, 6)
    found = survey_channels(net, lambda model, images: model(images), example, exclude=(), coupled=False)
    assert [group.name for group in found.groups] == ["first", "hidden"]
    assert found.left_alone["maps"] in (AT_OUTPUT, UNRULED)
