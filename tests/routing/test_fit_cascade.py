"""Cascades that are fitted to a budget: temperatures, gates, threshold, and what they do on other images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hybridprune.measure.cost import cost_of, count, count_module
from hybridprune.models.cascade import Cascade
from hybridprune.routing import fit_cascade
from hybridprune.routing.fit_cascade import MemberLogits, cross_fitted, fit, fit_temperature, macs_of_stops
from hybridprune.routing.stopping import stop_macs

MACS = torch.tensor([100.0, 300.0, 700.0], dtype=torch.float64)


def members_say(members: int, count: int) -> MemberLogits:
    """Logits of members that are the surer of the truth the dearer they are, all of them too sure."""
    draw = torch.Generator().manual_seed(count)
    labels = torch.randint(5, (count,), generator=draw)
    noise = torch.randn(members, count, 5, generator=draw)
    sure = torch.arange(1, members + 1).view(-1, 1, 1) * F.one_hot(labels, 5)
    return MemberLogits(3 * (sure + noise), labels, MACS[:members])


def test_the_temperature_is_the_one_that_the_labels_were_drawn_with() -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 5, generator=draw)
    labels = torch.multinomial((logits / 1.7).softmax(1), 1, generator=draw).squeeze(1)
    assert fit_temperature(logits, labels) == pytest.approx(1.7, rel=0.05)


@pytest.mark.parametrize("classes", [2, 9])
def test_the_cost_of_stopping_is_that_of_the_whole_cascade(classes: int) -> None:
    members = [nn.Sequential(nn.Flatten(), nn.Linear(12, k), nn.Linear(k, classes)) for k in (3, 5, 8)]
    macs = [count_module(member, torch.zeros(1, 3, 2, 2))[0] for member in members]
    whole = count(Cascade(members, classes), 2)
    assert macs_of_stops(macs, classes).tolist() == stop_macs(whole).tolist()
    assert macs_of_stops(macs[:2], classes).tolist() == [
        macs[0] + 3 + min(5, classes),
        sum(macs[:2]) + 3 + min(5, classes),
    ]


def test_gates_are_counted_once_for_a_number_of_members(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(fit_cascade, "cost_of", lambda net, image: counted.append(1) or cost_of(net, image))
    for macs in ([1, 2, 3], [4, 5, 6], [1, 2], [1, 2, 3]):
        assert macs_of_stops(macs, 77).tolist()[0] == macs[0] + 8
    assert len(counted) == 2


def cascade(members: int) -> Cascade:
    return Cascade([nn.Identity() for _ in range(members)], 5)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("target", [150.0, 250.0, 450.0])
def test_the_budget_is_hit_and_the_gates_decide_at_zero(train: bool, target: float) -> None:
    said, net = members_say(3, 4000), cascade(3)
    stops = fit(net, said, target, train)
    assert float(MACS[stops].mean()) == pytest.approx(target, rel=0.01)
    with torch.no_grad():
        table = said.table(net)
        assert torch.equal(table.stops(table.gate_logits(net.gate)), stops)
    assert net.temperatures.tolist() == pytest.approx([fit_temperature(x, said.labels) for x in said.logits])
    weight = torch.cat([layer.weight for layer in net.gate.scores()])
    assert train != bool((weight[:, 1:] == 0).all() and (weight[:, 0] == 3).all())


def test_fitting_again_starts_anew() -> None:
    said, once, twice = members_say(2, 500), cascade(2), cascade(2)
    fit(twice, members_say(2, 300), 150.0)
    for net in (once, twice):
        fit(net, said, 250.0)
    for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.full
def test_no_image_is_judged_by_gates_that_have_seen_it() -> None:
    said, net = members_say(2, 400), cascade(2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    stops, right = cross_fitted(net, said, 200.0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert float(MACS[stops].mean()) == pytest.approx(200, rel=0.1)
    halves = torch.randperm(400, generator=torch.Generator().manual_seed(0)).tensor_split(2)
    for own, other in (halves, halves[::-1]):
        changed = said.labels.clone()
        changed[other] = (changed[other] + 1) % 5
        again, wrong = cross_fitted(net, MemberLogits(said.logits, changed, said.macs), 200.0)
        assert torch.equal(again[other], stops[other])  # their own labels play no part
        assert not torch.equal(wrong[other], right[other])
        fitted = cascade(2)
        fit(fitted, said.part(own), 200.0)
        with torch.no_grad():
            table = said.part(other).table(fitted)
            assert torch.equal(table.stops(table.gate_logits(fitted.gate)), stops[other])
