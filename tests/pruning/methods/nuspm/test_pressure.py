"""What shapes masks: the gradients of the published loss, the budget at the end, and that nothing moves after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from hybridprune.config import SparsityOptions
from hybridprune.measure.cost import module_macs
from hybridprune.pruning.budget.space import Cost, Space
from hybridprune.pruning.channels import ChannelGroup, channel_space
from hybridprune.pruning.directions.layers import layer_macs
from hybridprune.pruning.methods.nuspm.budget import mask_macs
from hybridprune.pruning.methods.nuspm.masks import ChannelMask, attach_masks, mask_parameters
from hybridprune.pruning.methods.nuspm.pressure import GMACS_OF_RESNET50, MaskPressure, masked_filters
from hybridprune.pruning.sparse_training.masked_reading import unmasked_weight
from tests.networks_and_images import random_images
from tests.pruning.channels.networks import NETS, groups_of

SIZE = 8


class Masked:
    """A network with masks, and its space."""

    def __init__(self, name: str = "resnet", seed: int | None = 0) -> None:
        self.net = NETS[name]()
        self.groups: Sequence[ChannelGroup] = groups_of(self.net)
        macs = module_macs(self.net, SIZE)
        whole = Cost(sum(macs.values()), 0)
        scores = [torch.zeros(g.channels) for g in self.groups]
        self.space: Space = channel_space(self.net, self.groups, scores, macs, whole, limit=0.9).space
        self.whole = whole.macs
        by_name = attach_masks(self.net, self.groups)
        self.masks = [by_name[group.name] for group in self.groups]
        self.filters = masked_filters(self.net, self.groups, by_name)
        if seed is not None:
            draw = torch.Generator().manual_seed(seed)
            for mask in self.masks:
                with torch.no_grad():
                    mask.scalars.copy_(torch.rand(mask.scalars.shape, generator=draw))

    def pressure(self, share: float = 0.5, **options: Any) -> MaskPressure:
        given = {"alpha_mac": 0.5, "alpha_nuc": 0.001, "nuclear_interval": 1, "freeze_at": 0.7, **options}
        return MaskPressure(self.masks, self.filters, self.space, share * self.whole, **given)

    def gradients(self) -> list[Tensor]:
        return [mask.scalars.grad.clone() for mask in self.masks if mask.scalars.grad is not None]


def published_loss(masked: Masked, share: float, alpha_mac: float, alpha_nuc: float) -> Tensor:
    """The two terms by autograd, through masks and singular values; the rows that are masked are left out of these."""
    values = {mask: mask() for mask in masked.masks}
    total: Any = float(masked.space.other.macs)
    for cell in masked.space.cells:
        inputs, outputs = float(cell.inputs), torch.tensor(float(cell.outputs))  # type: ignore[attr-defined]
        for number, full, into, out in zip(cell.sets, cell.full, cell.per_input, cell.per_output, strict=True):  # type: ignore[attr-defined]
            width = values[masked.masks[number]].sum()
            inputs = inputs - into * (full - float(width.detach()))
            outputs = outputs - out * (full - width)
        total = total + cell.macs * inputs * outputs  # type: ignore[attr-defined]
    gaps = []
    for group, mask in zip(masked.groups, masked.masks, strict=True):
        for member in group.of("producer", "depthwise"):
            layer = masked.net.get_submodule(member.layer)
            if isinstance(layer, nn.Conv2d):
                rows = unmasked_weight(layer).detach().flatten(1).double()
                assert member.index.flatten().tolist() == list(range(len(rows)))
                whole = torch.linalg.svdvals(rows).sum()
                left = torch.linalg.svdvals((rows * values[mask][:, None])[mask.kept]).sum()
                gaps.append((whole - left).abs() if not mask.kept.all() else 0 * left)
    mac_term = 3.73**2 * alpha_mac * (total / masked.whole - share) ** 2
    return mac_term + alpha_nuc * torch.stack(gaps).mean()


@pytest.mark.parametrize("name", ["resnet", "vgg"])
@pytest.mark.parametrize("weights", [(0.5, 0.0), (0.0, 0.01), (0.5, 0.001)], ids=str)
def test_the_gradients_are_those_of_the_published_loss(name: str, weights: tuple[float, float]) -> None:
    masked = Masked(name)
    masked.masks[0].scalars.grad = torch.full_like(masked.masks[0].scalars, 7.0)
    masked.pressure(0.3, alpha_mac=weights[0], alpha_nuc=weights[1]).add_gradients(0.1)
    expected = torch.autograd.grad(published_loss(masked, 0.3, *weights), [mask.scalars for mask in masked.masks])
    found = masked.gradients()
    assert torch.allclose(found[0] - 7.0, expected[0], atol=1e-5)
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-8)
    assert any(bool(gradient.any()) for gradient in expected)
    assert all(p.grad is None for name, p in masked.net.named_parameters() if name not in mask_parameters(masked.net))


def test_the_branches_of_the_penalties_point_where_they_should() -> None:
    masked = Masked()
    masked.pressure(0.01, alpha_nuc=0.0).add_gradients(0.0)
    assert all(bool((gradient >= 0).all()) for gradient in masked.gradients())  # descent masks channels
    masked = Masked()
    masked.pressure(0.99, alpha_nuc=0.0).add_gradients(0.0)
    assert all(bool((gradient <= 0).all()) for gradient in masked.gradients())
    masked = Masked()
    masked.pressure(0.5, alpha_mac=0.0).add_gradients(0.0)
    for mask, gradient in zip(masked.masks, masked.gradients(), strict=True):
        assert not gradient[~mask.kept].any() and bool((gradient <= 0).all())


def test_a_layer_without_channels_counts_as_one() -> None:
    masked = Masked()
    with torch.no_grad():
        masked.masks[1].scalars.fill_(0.1)
    masked.pressure(0.9, alpha_nuc=0.0).add_gradients(0.0)
    assert not masked.gradients()[1].any()
    counts = [int(mask.kept.sum()) for mask in masked.masks]
    assert counts[1] == 0
    assert mask_macs(masked.masks, masked.space) == masked.space.cost([max(1, n) for n in counts]).macs


def train(masked: Masked, pressure: MaskPressure, steps: int) -> list[list[Tensor]]:
    """The scalars after each step of an optimiser with momentum and decay."""
    optimizer = torch.optim.SGD(masked.net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    x, history = random_images(4, SIZE), []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        masked.net(x).square().sum().backward()
        pressure.add_gradients(step / steps)
        optimizer.step()
        history.append([mask.scalars.detach().clone() for mask in masked.masks])
    return history


def test_frozen_masks_keep_every_bit_and_the_budget() -> None:
    masked = Masked("vgg", seed=None)
    before = [p.detach().clone() for p in masked.net.parameters()]
    pressure = masked.pressure(0.5)
    history = train(masked, pressure, 10)
    assert all(any(not torch.equal(a, b) for a, b in zip(history[t], history[t + 1], strict=True)) for t in range(6))
    for later in history[8:]:
        assert all(torch.equal(a, b) for a, b in zip(history[7], later, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, masked.net.parameters(), strict=True))
    assert 0.9 * 0.5 * masked.whole <= mask_macs(masked.masks, masked.space) <= 0.5 * masked.whole
    assert pressure.metrics()["masks_of_budget"] == mask_macs(masked.masks, masked.space) / (0.5 * masked.whole)


def test_decompositions_are_kept_for_some_steps_and_over_a_resume() -> None:
    masked, resumed = Masked(), Masked()
    first = masked.pressure(nuclear_interval=3, alpha_mac=0.0, alpha_nuc=1.0)
    found = []
    for step in range(5):
        for mask in masked.masks:
            mask.scalars.grad = None
        with torch.no_grad():
            unmasked_weight(masked.filters[0].layer).mul_(2)
        if step == 2:
            second = resumed.pressure(nuclear_interval=3, alpha_mac=0.0, alpha_nuc=1.0)
            second.load_state_dict(first.state_dict())
            second.add_gradients(0.0)
        first.add_gradients(0.0)
        found.append(masked.gradients())
    same = [all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True)) for other in found]
    assert same == [True, True, True, False, False]
    assert all(torch.equal(a, b) for a, b in zip(found[3], found[4], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(found[2], resumed.gradients(), strict=True))


def test_a_resume_after_freezing_does_not_settle_again() -> None:
    masked = Masked()
    pressure = masked.pressure(0.5)
    pressure.add_gradients(0.7)
    other = Masked()
    again = other.pressure(0.5)
    again.load_state_dict(pressure.state_dict())
    before = [mask.scalars.detach().clone() for mask in other.masks]
    again.add_gradients(0.9)
    assert all(torch.equal(a, mask.scalars) for a, mask in zip(before, other.masks, strict=True))
    assert again.metrics()["masks_moved"] == pressure.metrics()["masks_moved"] > 0


def test_masks_and_filters_belong_together() -> None:
    masked = Masked("branches")
    layers = {name for name, module in masked.net.named_modules() if module in [f.layer for f in masked.filters]}
    assert layers == {"left", "right", "depthwise", "mix", "more", "squeeze", "excite"}
    (depthwise,) = [f for f in masked.filters if f.layer is masked.net.get_submodule("depthwise")]
    left, right = masked.masks[0], masked.masks[1]
    assert isinstance(left, ChannelMask)
    assert torch.equal(depthwise.kept(), torch.cat([left.kept, right.kept]))


def test_what_has_been_masked_since_the_decomposition_gets_no_nuclear_gradient() -> None:
    masked = Masked()
    pressure = masked.pressure(nuclear_interval=2, alpha_mac=0.0, alpha_nuc=1.0)
    pressure.add_gradients(0.0)
    mask, first = masked.masks[-1], masked.gradients()[-1]
    channel = int(first.argmin())
    assert bool(mask.kept[channel]) and float(first[channel]) < 0
    with torch.no_grad():
        mask.scalars[channel] = 0.1
    mask.scalars.grad = None
    pressure.add_gradients(0.0)
    second = masked.gradients()[-1]
    assert float(second[channel]) == 0
    others = torch.arange(len(first)) != channel
    assert torch.equal(second[others], first[others])


@pytest.mark.full
def test_the_factor_is_resnet50s_macs_without_projections_and_classifier() -> None:
    with torch.device("meta"):
        net = torchvision.models.resnet50()
    macs = layer_macs(net, lambda: net(torch.zeros(1, 3, 224, 224, device="meta")))
    counted = {name: value for name, value in macs.items() if "downsample" not in name and name != "fc"}
    assert round(sum(counted.values()) / 1e9, 3) == 3.727 and round(sum(macs.values()) / 1e9, 3) == 4.089
    assert round(sum(counted.values()) / 1e9, 2) == GMACS_OF_RESNET50
    assert SparsityOptions().freeze_at == round(65 / 90, 3)
