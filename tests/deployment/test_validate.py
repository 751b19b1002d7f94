"""Evaluation of any module, against the engine's of gated networks and by hand."""

from __future__ import annotations

import torch
from torch import nn

from hybridprune.deployment import deploy, evaluate_module
from hybridprune.engine.evaluate import evaluate
from tests.networks_and_images import batches_of, random_images, random_net

IMAGES, LABELS = random_images(7), torch.arange(7) % 5
BATCHES = batches_of(IMAGES, LABELS, 3)


def test_a_gated_network_is_executed_as_routed() -> None:
    net = random_net(8)
    found = evaluate_module(net, BATCHES, keep_logits=True)
    expected = evaluate(net, BATCHES, "executed", keep_logits=True)
    for name in ("logits", "decisions", "labels", "gate_logits"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert 0 < found.decisions.mean() < 1
    shipped = evaluate_module(deploy(net, IMAGES[:3]).module, BATCHES, keep_logits=True)
    assert torch.equal(shipped.decisions, expected.decisions)
    torch.testing.assert_close(shipped.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shipped.gate_logits, expected.gate_logits, rtol=1e-4, atol=1e-4)


def test_a_plain_module_has_no_decisions() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(IMAGES[0].numel(), 5))
    found = evaluate_module(module, BATCHES, keep_logits=True)
    torch.testing.assert_close(found.logits, module(IMAGES).detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(found.labels, LABELS) and found.decisions.shape == found.gate_logits.shape == (7, 0)
    assert found.block_rates == [] and not found.logits.requires_grad


def test_each_module_is_left_in_its_own_mode() -> None:
    """Though batch statistics would give other logits."""
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(IMAGES[0].numel(), 5)).train()
    module[2].eval()
    expected = module[2](IMAGES.flatten(1))
    torch.testing.assert_close(evaluate_module(module, BATCHES, True).logits, expected, rtol=1e-3, atol=1e-4)
    assert [each.training for each in module] == [True, True, False]
