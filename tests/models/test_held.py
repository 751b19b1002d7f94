"""Results that hold a network are taken wherever a network is."""

from __future__ import annotations

import torch
from torch import nn

import hybridprune
from hybridprune.api.inference import Model
from hybridprune.models.held import network_of
from tests.networks_and_images import random_net
from tests.store.run_folders import SPEC


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()


def test_what_is_held_is_found() -> None:
    module = net()
    assert network_of(hybridprune.Pruned(module, hybridprune.PrunedSpec((), 1, 1, 1, 1))) is module
    assert network_of(Model(random_net(8), SPEC)) is not None
    assert network_of(3) == 3
    wrapped = nn.DataParallel(module)  # a module with a part of that name
    assert network_of(wrapped) is wrapped


def test_results_are_measured_as_their_networks() -> None:
    module, gated = net(), random_net(8)
    pruned, loaded = hybridprune.Pruned(module, hybridprune.PrunedSpec((), 1, 1, 1, 1)), Model(gated, SPEC)
    images = torch.randn(6, 3, 8, 8)
    batches = [(images, module(images).argmax(1))]
    deployed = hybridprune.deploy(pruned, images)
    assert torch.allclose(deployed.module(images), module(images), atol=1e-5)
    assert [hybridprune.accuracy(given, batches) for given in (module, pruned, deployed)] == [1, 1, 1]
    assert hybridprune.count_weights(pruned) == hybridprune.count_weights(module)
    assert hybridprune.effective_sparsity(pruned, images[:1], 828) == 0
    assert hybridprune.count(loaded, 8) == hybridprune.count(gated, 8)


def test_what_was_pruned_is_pruned_again() -> None:
    batches = [(torch.randn(4, 3, 8, 8), torch.arange(4))]
    once = hybridprune.prune(net(), batches, target_flops=0.8, method="l1")
    twice, same = (hybridprune.prune(given, batches, target_flops=0.8, method="l1") for given in (once, once.module))
    assert twice.spec == same.spec
