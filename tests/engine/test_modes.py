"""Running a network with all blocks, and putting it back into the modes that it was in."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridprune.engine.modes import always_on, kept_modes
from tests.networks_and_images import random_images, random_net


@torch.no_grad()
def test_always_on_is_what_decisions_of_ones_give() -> None:
    net, images = random_net(), random_images(6)
    forced = net(images, torch.ones(6, net.num_gates)).logits
    torch.testing.assert_close(always_on(net)(images), forced, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(net(images).logits, forced, rtol=0.01)


def test_any_other_module_is_always_on() -> None:
    plain = nn.Linear(2, 2)
    assert always_on(plain) is plain


def test_each_module_gets_its_own_mode_back() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).train()
    net[1].eval()  # as users freeze statistics
    with kept_modes(net):
        net.eval()
        net[1].train()
    assert [module.training for module in net.modules()] == [True, True, False, True]
    with pytest.raises(KeyError), kept_modes(net):
        net.eval()
        raise KeyError
    assert [module.training for module in net.modules()] == [True, True, False, True]
