"""The deployed network computes what the trained one does, whatever forms and actions the clock prefers."""

from __future__ import annotations

import pytest
import torch

from hybridprune.deploy import DeployedNetwork, deploy
from hybridprune.models.spec import NetworkSpec
from tests.cases import random_decisions, random_images
from tests.deploy.cases import SPECS, assert_close, built, preferring

FORMS = {
    "dense": ("dense", "gather"),
    "input-sided": ("input-sided", "blend"),
    "output-sided": ("output-sided", "gather"),
    "two-sided": ("two-sided", "blend"),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize(("form", "action"), FORMS.values(), ids=FORMS.keys())
@torch.no_grad()
def test_the_same_logits_for_the_same_decisions(spec: NetworkSpec, form: str, action: str) -> None:
    net, images = built(spec), random_images(6, 12)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    module, report = deploy(net, images, time=preferring(form, action))
    assert all(choice.chosen == form for choice in report.forms.values() if form in choice.latencies)
    if isinstance(module, DeployedNetwork):
        assert {choice.chosen for choice in report.blocks.values()} == {action}
        for batch in (6, 3, 1):
            free, own = net(images[:batch]), module.route(images[:batch])
            assert torch.equal(own.decisions, free.decisions)
            assert_close(own.logits, free.logits)
            assert_close(own.gate_logits, free.gate_logits)
            assert torch.equal(module(images[:batch]), own.logits)
            for forced in (*(random_decisions(batch, net.num_gates, seed) for seed in range(3)), own.decisions * 0):
                routed = module.route(images[:batch], forced)
                assert torch.equal(routed.decisions, forced)
                assert_close(routed.logits, net(images[:batch], forced).logits)
    else:
        assert not net.num_gates and report.blocks == {}
        assert_close(module(images), net(images).logits)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
