"""Frozen parameters are the named ones, and only for a while."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridprune.engine.freeze import frozen_parameters, rotation_parameters
from hybridprune.models.edits import FactorEdit
from hybridprune.models.factored import FactoredConv2d, FactoredLinear
from tests.networks_and_images import random_images, random_net

EDITS = (
    FactorEdit("backbone.blocks.0.conv1", 2, 3),
    FactorEdit("backbone.blocks.1.conv2", None, 2),
    FactorEdit("backbone.blocks.2.conv1", 3, None),
)
ROTATIONS = {
    "backbone.blocks.0.conv1.rotate_in.weight",
    "backbone.blocks.0.conv1.rotate_out.weight",
    "backbone.blocks.1.conv2.rotate_out.weight",
    "backbone.blocks.2.conv1.rotate_in.weight",
}


def test_rotations_of_every_form() -> None:
    net = random_net(20, edits=EDITS)
    assert rotation_parameters(net) == ROTATIONS
    assert {name for name, _ in net.named_parameters() if ".rotate_" in name} == ROTATIONS
    assert rotation_parameters(random_net()) == frozenset()


def test_the_bias_behind_a_rotation_is_no_rotation() -> None:
    layers = nn.Sequential(FactoredConv2d(nn.Conv2d(4, 4, 3), 2, 2), FactoredLinear(nn.Linear(4, 4), 2, 2))
    assert {name for name, _ in layers.named_parameters()} >= {"0.rotate_out.bias", "1.rotate_out.bias"}
    assert rotation_parameters(layers) == {f"{i}.rotate_{side}.weight" for i in (0, 1) for side in ("in", "out")}
    assert rotation_parameters(layers[1]) == {"rotate_in.weight", "rotate_out.weight"}


def test_frozen_inside_and_as_before_afterwards() -> None:
    net = random_net(20, edits=EDITS)
    net.backbone.classifier.bias.requires_grad_(False)  # the user's own choice
    chosen = {*ROTATIONS, "backbone.classifier.bias"}
    with frozen_parameters(net, chosen):
        assert {name for name, p in net.named_parameters() if not p.requires_grad} == chosen
        net(random_images(2)).logits.sum().backward()
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == {"backbone.classifier.bias"}
    # Gradients went through the rotations to what lies before them, not into them.
    assert all(net.get_parameter(name).grad is None for name in chosen)
    for name in ("backbone.conv.weight", "backbone.blocks.0.conv1.core.weight"):
        gradient = net.get_parameter(name).grad
        assert gradient is not None and gradient.abs().sum() > 0


def test_restored_after_an_exception() -> None:
    net = random_net(20, edits=EDITS)
    with pytest.raises(KeyError), frozen_parameters(net, ROTATIONS):
        raise KeyError
    assert all(p.requires_grad for p in net.parameters())


def test_an_unknown_name_is_an_error_and_freezes_nothing() -> None:
    net = random_net(8)
    names = ["backbone.conv.weight", "backbone.conv.wieght"]
    with pytest.raises(AttributeError, match="wieght"), frozen_parameters(net, names):
        pass
    assert all(p.requires_grad for p in net.parameters()) and torch.is_grad_enabled()
