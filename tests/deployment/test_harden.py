"""Hardening: what is fixed, what it costs and saves, and what it does to the decisions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybridprune.data import Batch
from hybridprune.deployment import Deployed, DeployedNetwork, Harden, deploy
from hybridprune.measure.cost import count
from hybridprune.models.skipnet import GatedNetwork
from tests.deployment.networks import SPECS, assert_close, built, preferring
from tests.networks_and_images import batches_of, random_images, random_net

SIZE = 12


def biased(net: GatedNetwork, images: Tensor, never: int | None, always: int | None) -> GatedNetwork:
    """``net`` with feed-forward gates of which two decide alike for all images, and each other one in its own way."""
    for i, linear in enumerate(net.gate.linears):
        if i in (never, always):
            linear.bias.data.fill_(-1e3 if i == never else 1e3)
            continue
        logits = net(images).gate_logits[:, i].sort().values  # the gates before decide already
        linear.bias.data.sub_((logits[3 * i + 3] + logits[3 * i + 4]) / 2)
    return net


@pytest.fixture
def images() -> Tensor:
    return random_images(20, SIZE)


def validation(images: Tensor) -> list[Batch]:
    labels = torch.arange(len(images)) % 5
    return batches_of(images, labels, 8)


def hardened(net: GatedNetwork, images: Tensor, harden: Harden, *prefer: str) -> tuple[DeployedNetwork, Deployed]:
    found = deploy(net, images[:4], harden=harden, validation=validation(images), time=preferring(*prefer))
    assert isinstance(found.module, DeployedNetwork)
    return found.module, found


@torch.no_grad()
def test_gates_without_state_are_removed_without_a_trace(images: Tensor) -> None:
    net = biased(built(SPECS["resnet, ff2"]), images, never=2, always=0)
    free = net(images)
    rates = free.decisions.mean(0)
    assert rates[2] == 0 and rates[0] == 1 and all(0 < rate < 1 for rate in rates[[1, 3, 4]])
    module, (_, report) = hardened(net, images, Harden(), "gather")
    routed = module.route(images)
    assert torch.equal(routed.decisions, free.decisions)
    assert_close(routed.logits, free.logits)
    assert torch.equal(routed.gate_logits[:, [0, 2]], torch.tensor([[torch.inf, -torch.inf]]).expand(20, 2))
    assert [(step.action, step.gate) for step in report.steps] == [
        ("run", "none"),
        ("run", "none"),
        ("gather", "decides"),
        ("skip", "none"),
        ("gather", "decides"),
        ("gather", "decides"),
    ]
    assert set(report.fixed) == {"1", "3"} and "3" not in report.blocks
    assert report.validated is not None and report.validated.changed_decisions == 0
    assert report.rates == pytest.approx(tuple(rates.tolist()))
    # The cost is that of the trained network but for the two gates and for the norms, which are no MACs.
    cost = count(net, SIZE)
    assert report.macs_before == pytest.approx(cost.expected_macs(rates.tolist()))
    assert report.macs_after == pytest.approx(report.macs_before - cost.gate_macs[0] - cost.gate_macs[2])
    assert not list(module.step(3).block.parameters()), "the block's layers are gone"
    # Decisions given from outside do not bring them back.
    forced = module.route(images, 1 - free.decisions)
    assert torch.equal(forced.decisions[:, [0, 2]], free.decisions[:, [0, 2]])
    assert torch.equal(forced.decisions[:, [1, 3, 4]], 1 - free.decisions[:, [1, 3, 4]])


@torch.no_grad()
def test_a_removed_projecting_block_goes_on_projecting(images: Tensor) -> None:
    net = biased(built(SPECS["resnet, ff2"]), images, never=1, always=0)
    module, (_, report) = hardened(net, images, Harden(), "blend")
    assert report.steps[2].action == "skip"
    left = {name for name, each in module.step(2).block.named_modules() if isinstance(each, nn.Conv2d)}
    assert left == {"projection.0"}
    assert_close(module(images), net(images).logits)
    # Blended blocks are computed for every image.
    cost = count(net, SIZE)
    expected = cost.expected_macs([1, 0, 1, 1, 1]) - cost.gate_macs[0] - cost.gate_macs[1]
    assert report.macs_after == pytest.approx(expected)


@torch.no_grad()
def test_thresholds_are_shares_of_the_images(images: Tensor) -> None:
    net = biased(built(SPECS["resnet, ff2"]), images, never=None, always=None)
    rates = net(images).decisions.double().mean(0).tolist()
    low, high = min(rates), max(rates)
    assert 0 < low < high < 1
    module, (_, report) = hardened(net, images, Harden(never=low, always=high), "gather")
    actions = [step.action for step in report.steps[1:]]
    assert actions == ["skip" if rate <= low else "run" if rate >= high else "gather" for rate in rates]
    found, routed = report.validated, module.route(images)
    assert found is not None and found.images == 20
    assert found.changed_decisions == float((routed.decisions != net(images).decisions).double().mean()) > 0
    labels = torch.arange(20) % 5
    assert found.accuracy_before == float((net(images).logits.argmax(1) == labels).double().mean())
    assert found.accuracy_after == float((routed.logits.argmax(1) == labels).double().mean())
    assert found.rates_after == tuple(routed.decisions.double().mean(0).tolist()) == report.rates
    assert_close(routed.logits, net(images, routed.decisions).logits)


@pytest.mark.parametrize("keep_state", [False, True])
@torch.no_grad()
def test_the_state_of_a_recurrent_gate(keep_state: bool, images: Tensor) -> None:
    net = random_net(seed=7)
    rates = net(images).decisions.double().mean(0).tolist()
    assert rates == pytest.approx([1, 0.05, 0.5, 0.45, 0.9])
    module, (_, report) = hardened(net, images, Harden(never=0.06, always=0.89, keep_state=keep_state), "gather")
    fixed = {0: 1.0, 1: 0.0, 4: 1.0}
    routed = module.route(images)
    listens = "listens" if keep_state else "none"  # the last gate is read by nobody
    assert [(step.action, step.gate) for step in report.steps[1:]] == [
        ("run", listens),
        ("skip", listens),
        ("gather", "decides"),
        ("gather", "decides"),
        ("run", "none"),
    ]
    # The oracle: the trained network whose gates' cells are stepped, or not, where a gate is gone.
    state, hidden, decisions = net.start(images), None, []
    for i in range(5):
        logit = torch.full((20,), torch.nan)
        if i not in fixed or keep_state:
            logit, hidden = net.gate(i, state.features, hidden)
        decision = torch.full((20,), fixed[i]) if i in fixed else (logit > 0).float()
        state = net.advance(state, decision, "masked")
        decisions.append(decision)
    assert torch.equal(routed.decisions, torch.stack(decisions, 1))
    assert_close(routed.logits, net.finish(state))
    others = [2, 3]
    assert 0 < routed.decisions[:, others].mean() < 1
    if not keep_state:
        assert not torch.equal(routed.gate_logits[:, others], net(images).gate_logits[:, others])


@torch.no_grad()
def test_gates_that_cost_more_than_they_save(images: Tensor) -> None:
    net = built(SPECS["preresnet"])
    module, (_, report) = hardened(net, images, Harden(never=-1, always=2, unprofitable=True, keep_state=True), "run")
    assert {choice.chosen for choice in report.blocks.values()} == {"run"} and len(report.fixed) == 5
    assert all(step.action == "run" and step.gate == "none" for step in report.steps)
    assert_close(module(images), net.backbone(images))
    assert report.macs_after == count(net, SIZE).backbone_macs
    assert report.params_after < report.params_before


@torch.no_grad()
def test_nothing_is_offered_that_changes_decisions_unless_asked(images: Tensor) -> None:
    for harden in (None, Harden(never=-1, always=2)):
        arms: list[set[str]] = []
        told = preferring("run", "gather")

        def time(given, arms=arms, told=told):  # type: ignore[no-untyped-def]
            arms.append(set(given))
            return told(given)

        net = random_net()
        report = deploy(net, images, harden=harden, validation=validation(images), time=time).report
        assert arms and all("run" not in each for each in arms)
        assert report.validated is not None and report.validated.changed_decisions == 0 and not report.fixed
