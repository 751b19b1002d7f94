"""The deployed network computes what the trained one does, whatever forms and actions the clock prefers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hybridprune.deploy import DeployedNetwork, deploy
from hybridprune.models.spec import NetworkSpec
from tests.cases import random_decisions, random_images
from tests.deploy.cases import SPECS, assert_close, built, preferring

FORMS = ("dense", "input-sided", "output-sided", "two-sided")


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_the_same_logits_for_the_same_decisions(spec: NetworkSpec, form: str) -> None:
    net, images = built(spec), random_images(6, 12)
    before = {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)}
    for action in ("gather", "blend"):
        module, report = deploy(net, images, time=preferring(form, action, "gather 0"))
        assert all(choice.chosen == form for choice in report.forms.values() if form in choice.latencies)
        if not net.num_gates:
            assert_close(module(images), net(images).logits)
            continue
        assert isinstance(module, DeployedNetwork)
        assert {choice.chosen for choice in report.blocks.values()} == {action}
        for batch in (6, 3, 1):
            free = net(images[:batch])
            own = module.route(images[:batch])
            assert torch.equal(own.decisions, free.decisions)
            assert_close(own.logits, free.logits)
            assert_close(own.gate_logits, free.gate_logits)
            assert torch.equal(module(images[:batch]), own.logits)
            for seed in range(3):
                decisions = random_decisions(batch, net.num_gates, seed)
                assert_close(module.route(images[:batch], decisions).logits, net(images[:batch], decisions).logits)
    after = net.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
