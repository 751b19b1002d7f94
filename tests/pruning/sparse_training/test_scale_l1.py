"""L1 on BatchNorm scales: exactly ``weight x sign(gamma)`` where it is asked for, and nothing anywhere else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.budget.space import Cost, Space
from hybridprune.pruning.channels import channel_groups
from hybridprune.pruning.sparse_training.protocol import Target
from hybridprune.pruning.sparse_training.scale_l1 import ScalePressure, all_scales, doomed_scales
from tests.networks_and_images import random_images, random_net

WEIGHT = 0.25  # a power of two: sums of it and of the gradients below are exact


def with_gradients(net: GatedNetwork) -> dict[str, Tensor]:
    """Gradients of a loss that are small multiples of 2^-10, so that adding to them does not round."""
    net.train()
    F.cross_entropy(net.backbone(random_images(6)), torch.arange(6) % 5).backward()
    for name, parameter in net.backbone.named_parameters():
        assert parameter.grad is not None, name
        parameter.grad = (parameter.grad * 1024).round().clamp(-512, 512) / 1024
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def signed(net: GatedNetwork) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.weight[::2] *= -1
                module.weight[-1] = 0.0


def test_on_all_batchnorms() -> None:
    net = random_net(8)
    signed(net)
    before = with_gradients(net)
    ScalePressure(all_scales(net.backbone), WEIGHT).add_gradients(0.0)
    norms = {f"{name}.weight" for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert len(norms) == 9
    for name, parameter in net.named_parameters():
        if name in before:
            assert parameter.grad is not None
            expected = WEIGHT * parameter.detach().sign() if name in norms else torch.zeros_like(parameter)
            assert torch.equal(parameter.grad - before[name], expected), name


def test_on_the_selected_channels_of_each_group_only() -> None:
    net = random_net(14)
    signed(net)
    groups = channel_groups(
        net.backbone, lambda model, images: model(images), torch.zeros(1, 3, 8, 8), exclude=(), coupled=True
    )
    removed = {groups[0].name: [1, 3], groups[-1].name: [0]}
    target = Target(net.backbone, groups, Space([], [], Cost(0, 0)), None, removed)
    before = with_gradients(net)
    ScalePressure(doomed_scales(target), WEIGHT).add_gradients(0.5)
    touched = 0
    for name, parameter in net.backbone.named_parameters():
        assert parameter.grad is not None
        expected = torch.zeros_like(parameter)
        for group in groups:
            for member in group.of("norm"):
                if name == f"{member.layer}.weight":
                    places = member.index[list(removed.get(group.name, ()))].flatten()
                    expected[places] = WEIGHT * parameter.detach()[places].sign()
                    touched += len(places)
        assert torch.equal(parameter.grad - before[f"backbone.{name}"], expected), name
    # The first group is a whole stage, the projection of the next one not included.
    assert touched >= 2 * 3 + 1


def test_a_scale_without_a_gradient_gets_one() -> None:
    norm = nn.BatchNorm2d(3)
    nn.init.constant_(norm.weight, -2.0)
    ScalePressure(all_scales(norm), 0.5).add_gradients(0.0)
    assert norm.weight.grad is not None and torch.equal(norm.weight.grad, torch.full((3,), -0.5))
