"""What a method that trains towards its cut could not do afterwards is refused before it trains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CutOptions, SparsityOptions
from hybridprune.errors import UserError
from tests.networks_and_images import random_images, random_net

BATCHES = [(random_images(8), torch.randint(5, (8,)))]


def plain() -> nn.Module:
    """Channels of which some have no BatchNorm, neither in their layer nor in what it reads."""
    head = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*head, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


@pytest.mark.parametrize("method", ["slimming", "rni", "masksparsity", "peel", "adapruner"])
def test_channels_that_no_scale_ranks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybridprune.api.prune.finetune", forbidden)
    with pytest.raises(UserError, match="no BatchNorm scales the channels of 0"):
        hybridprune.prune(plain(), BATCHES, method=method, target_flops=0.9)


@pytest.mark.parametrize(
    ("method", "allocation", "normalize", "message"),
    [
        ("peel", "auto", True, "cut.normalize: .*allocation peel"),
        ("adapruner", "auto", True, "cut.normalize: .*allocation adapruner"),
        ("bn-scale", "peel", True, "cut.normalize: .*allocation peel"),
        ("l1", "peel", False, "cut.allocation peel: .*method l1 are relative"),
        ("ucs", "adapruner", False, "cut.allocation adapruner: .*method ucs are relative"),
        ("greg-1", "peel", False, "cut.allocation peel: .*method greg-1 are relative"),
        ("masksparsity", "importance", False, "cut.allocation importance: method masksparsity says itself"),
        ("nuspm", "importance_per_flop", False, "cut.allocation importance_per_flop: method nuspm says itself"),
        ("slimming", "rate_distortion", False, "cut.allocation rate_distortion: "),
    ],
)
def test_allocations_that_the_scores_do_not_allow(
    method: str, allocation: str, normalize: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybridprune.api.prune.finetune", forbidden)
    cut = CutOptions(allocation=allocation, normalize=normalize)
    with pytest.raises(UserError, match=message):
        hybridprune.prune(random_net(8).backbone, BATCHES, method=method, target_flops=0.8, cut=cut)


@pytest.mark.parametrize(("rule", "shown"), [("magnitude", "0.01"), ("energy", "0.0001")])
def test_masksparsity_does_not_train_again_for_no_channel(rule: str, shown: str) -> None:
    options = SparsityOptions(sparse_epochs=0, mask_rule=rule)
    net = random_net(8).backbone
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    with pytest.raises(
        UserError, match=f"sparsity.mask_threshold {shown}: no BatchNorm can lose .*sparsity.mask_rule {rule}"
    ):
        hybridprune.prune(net, BATCHES, method="masksparsity", sparsity=options)


def forbidden(*args: Tensor, **kwargs: object) -> None:
    raise AssertionError("trained")
