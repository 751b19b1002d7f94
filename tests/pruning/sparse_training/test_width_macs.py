"""MACs of widths: integers that the count of the cut network confirms, and a gradient that leaves inputs alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybridprune.measure.cost import module_macs
from hybridprune.pruning.budget.space import Cost, Space
from hybridprune.pruning.channels import channel_space, remove_channels
from hybridprune.pruning.sparse_training.width_macs import WidthMacs
from tests.networks_and_images import random_images
from tests.pruning.channels.networks import NETS, groups_of, run

SIZE = 8
CPU = torch.device("cpu")


def space_of(net: nn.Module) -> Space:
    groups = groups_of(net)
    macs = module_macs(net, SIZE)
    whole = Cost(sum(macs.values()), sum(p.numel() for p in net.parameters()))
    return channel_space(net, groups, [torch.zeros(g.channels) for g in groups], macs, whole, limit=0.9).space


def random_widths(space: Space, seed: int) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return [int(torch.randint(1, n + 1, (), generator=draw)) for n in space.everything()]


@pytest.mark.parametrize("name", NETS)
def test_they_are_those_of_the_cut_network(name: str) -> None:
    net = NETS[name]()
    groups, space = groups_of(net), space_of(net)
    macs = WidthMacs.of(space, CPU)
    several = [random_widths(space, seed) for seed in range(3)]
    for widths in several:
        assert float(macs(torch.tensor(widths))) == space.cost(widths).macs
    widths = several[-1]
    removed = [torch.arange(width, g.channels) for g, width in zip(groups, widths, strict=True)]
    remove_channels(net, groups, removed, run, random_images(1, SIZE))
    assert sum(module_macs(net, SIZE).values()) == int(macs(torch.tensor(widths)))


@pytest.mark.parametrize("name", NETS)
def test_the_gradient_is_that_of_wider_outputs_beside_the_inputs_as_they_are(name: str) -> None:
    space = space_of(NETS[name]())
    widths = random_widths(space, 5)
    point = torch.tensor(widths, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(WidthMacs.of(space, CPU)(point), point)

    def outputs_wider_by_one(number: int) -> int:
        """MACs that one more channel of a group adds in the layers that produce it."""
        added = 0
        for cell in space.cells:
            kept = [widths[s] for s in cell.sets]
            gone = [n - k for n, k in zip(cell.full, kept, strict=True)]  # type: ignore[attr-defined]
            inputs = cell.inputs - sum(a * b for a, b in zip(gone, cell.per_input, strict=True))  # type: ignore[attr-defined]
            if number in cell.sets:
                added += cell.macs * inputs * cell.per_output[cell.sets.index(number)]  # type: ignore[attr-defined]
        return added

    expected = [outputs_wider_by_one(number) for number in range(len(widths))]
    assert gradient.tolist() == expected and any(expected)


def test_the_shape_of_the_widths_is_checked() -> None:
    macs = WidthMacs.of(space_of(NETS["vgg"]()), CPU)
    wrong: Tensor = torch.ones(1, dtype=torch.float64)
    with pytest.raises(AssertionError):
        macs(wrong)
