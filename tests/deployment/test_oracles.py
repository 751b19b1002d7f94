"""Deployed networks beside a walk through the trained one that knows only what each step is said to do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hybridprune.deployment import DeployedNetwork, Harden, deploy
from hybridprune.deployment.network import StepRecord
from hybridprune.models.skipnet import GatedNetwork
from tests.deployment.networks import SPECS, assert_close, built, preferring
from tests.networks_and_images import batches_of, random_images

IMAGES = 24


def different_images() -> Tensor:
    """Noise of another contrast and colour in each image, so that the gates' decisions differ between images."""
    draw = torch.Generator().manual_seed(1)
    contrast = 2 * torch.rand(IMAGES, 1, 1, 1, generator=draw)
    return random_images(IMAGES, 12) * contrast + 1.5 * torch.randn(IMAGES, 3, 1, 1, generator=draw)


def walk(net: GatedNetwork, images: Tensor, steps: tuple[StepRecord, ...]) -> tuple[Tensor, Tensor]:
    """Logits and decisions of the trained network with these steps."""
    state, hidden, decisions = net.start(images), None, []
    for i, step in enumerate(steps[1:]):
        logit = torch.full((len(images),), torch.inf if step.action == "run" else -torch.inf)
        if step.gate != "none":
            asked, hidden = net.gate(i, state.features, hidden)
            logit = asked if step.gate == "decides" else logit
        decisions.append((logit > 0).float())
        state = net.advance(state, decisions[-1], "masked")
    return net.finish(state), torch.stack(decisions, 1)


@pytest.mark.parametrize("name", ["resnet, factored", "preresnet, bottleneck, factored", "resnet, ff2"])
@pytest.mark.parametrize("keep_state", [False, True])
@pytest.mark.parametrize(("harden", "action"), [((0.3, 0.7), "gather"), ((0.3, 0.7), "blend"), ((0.0, 1.0), "run")])
@torch.no_grad()
def test_hardened_networks(name: str, keep_state: bool, harden: tuple[float, float], action: str) -> None:
    net, images, labels = built(SPECS[name]), different_images(), torch.arange(IMAGES) % 5
    before = net(images)
    rates = before.decisions.mean(0)
    assert ((rates > 0) & (rates < 1)).any(), "images must differ in some decision"
    how = Harden(*harden, unprofitable=action == "run", keep_state=keep_state)
    time = preferring("input-sided", action)
    module, report = deploy(net, images[:4], validation=batches_of(images, labels, 9), harden=how, time=time)
    assert isinstance(module, DeployedNetwork)
    for rate, step in zip(rates, report.steps[1:], strict=True):
        certain = "skip" if rate <= how.never else "run" if rate >= how.always else action
        assert step.action == certain
    gates = [step.gate for step in report.steps]
    assert "listens" not in gates[max((i for i, gate in enumerate(gates) if gate == "decides"), default=0) :]
    logits, decisions = walk(net, images, report.steps)
    routed = module.route(images)
    assert torch.equal(routed.decisions, decisions)
    assert_close(routed.logits, logits)
    said = report.validated
    assert said is not None and said.images == IMAGES
    assert said.changed_decisions == pytest.approx(float((decisions != before.decisions).double().mean()))
    assert said.accuracy_before == pytest.approx(float((before.logits.argmax(1) == labels).double().mean()))
    assert said.accuracy_after == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert report.rates == pytest.approx(decisions.mean(0).tolist())
    # What is really computed, image by image: with it the expected MACs are exact.
    with FlopCounterMode(display=False) as counter:
        for image in images.split(1):
            module(image)
    assert report.macs_after == pytest.approx(counter.get_total_flops() / 2 / IMAGES)
    assert report.params_after == sum(p.numel() for p in module.parameters()) < report.params_before or name != "resnet"


@torch.no_grad()
def test_a_kept_state_changes_no_decision_that_the_features_do_not() -> None:
    net, images, labels = built(SPECS["resnet, factored"]), different_images(), torch.arange(IMAGES) % 5
    expected = net(images)

    def changed(keep_state: bool) -> float:
        # Nothing but what is certain is fixed: features are the same.
        harden, batches = Harden(keep_state=keep_state), batches_of(images, labels, IMAGES)
        module, report = deploy(
            net, images[:2], validation=batches, harden=harden, time=preferring("two-sided", "gather")
        )
        assert report.fixed and isinstance(module, DeployedNetwork)
        return float((module.route(images).decisions != expected.decisions).double().mean())

    assert changed(keep_state=True) == 0 < changed(keep_state=False)
