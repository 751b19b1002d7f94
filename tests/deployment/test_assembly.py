"""Forms that pay layer by layer must pay together, or the layers are dense."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hybridprune.deployment import DeployedNetwork, deploy
from hybridprune.deployment.assembly import all_of, exact_logits, spread
from hybridprune.measure.latency import Arms, Latency
from hybridprune.models.factored import FactoredLayer
from tests.deployment.networks import SPECS, assert_close, built, preferring
from tests.networks_and_images import random_images


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", ["resnet, factored", "preresnet, bottleneck, factored", "vgg, factored"])
@pytest.mark.parametrize("winner", ["layer by layer", "dense"])
@torch.no_grad()
def test_the_faster_whole_is_kept(name: str, batch: int, winner: str) -> None:
    net, images = built(SPECS[name]), random_images(batch, 12).to(memory_format=torch.channels_last)
    calls: list[list[str]] = []

    def time(arms: Arms) -> dict[str, Latency]:
        calls.append(list(arms))
        prefer = (winner,) if "layer by layer" in arms else ("two-sided", "input-sided", "output-sided", "blend")
        return dict(preferring(*prefer)(arms))

    module, report = deploy(net, images, time=time)
    assert calls.count(["layer by layer", "dense"]) == 1
    assert report.whole is not None and report.whole.chosen == winner and str(report.whole) in str(report)
    factored = [name for name, each in module.named_modules() if isinstance(each, FactoredLayer)]
    assert bool(factored) == (winner == "layer by layer")
    assert all(
        ("dense" in choice.chosen) == (winner == "dense")
        for choice in report.forms.values()
        if choice.before != "dense"
    )
    more = random_images(3, 12)
    if isinstance(module, DeployedNetwork):
        assert torch.equal(module.route(more).decisions, net(more).decisions)
        assert_close(module.route(more).logits, net(more).logits)
    else:
        assert_close(module(more), net(more).logits)


@pytest.mark.parametrize(("name", "form"), [("resnet", "two-sided"), ("resnet, factored", "dense")])
def test_nothing_to_compare(name: str, form: str) -> None:
    report = deploy(built(SPECS[name]), random_images(2, 12), time=preferring(form, "gather")).report
    assert report.whole is None and report.pieces is None


@given(rates=st.lists(st.floats(0, 1), min_size=1, max_size=8), batch=st.integers(1, 40))
def test_decisions_at_given_rates(rates: list[float], batch: int) -> None:
    decisions = spread(rates, batch)
    assert decisions.shape == (batch, len(rates)) and set(decisions.unique().tolist()) <= {0.0, 1.0}
    for rate, passed in zip(rates, decisions.sum(0).tolist(), strict=True):
        assert abs(passed - rate * batch) < 1 + 1e-9
        assert 0 < rate < 1 or passed == rate * batch


def test_a_single_image_executes_the_share_of_the_blocks() -> None:
    for rate in (0.0, 0.25, 0.5, 0.9, 1.0):
        assert float(spread([rate] * 40, 1).mean()) == pytest.approx(rate, abs=0.03)


@torch.no_grad()
def test_what_is_compared_is_not_rounded_to_tf32() -> None:
    seen: list[bool] = []
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5)).eval()
    net[0].register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    images = random_images(2, 12)
    assert torch.equal(all_of(net, images), exact_logits(net, images)) and seen == [True, False]
    seen.clear()
    deploy(net, images)
    assert seen.count(False) == 3, "the trained network, the plain one and the one that is kept"
    assert torch.backends.cudnn.allow_tf32
