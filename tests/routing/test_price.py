"""Dual ascent: the price of FLOPs rises until a budget is met and stays there."""

from __future__ import annotations

import math

import pytest
import torch

from hybridprune.routing.price import DAMPING, MOMENTUM, Price, met

CPU = torch.device("cpu")


def spend(price: Price, *shares: float) -> None:
    for share in shares:
        price.spend(torch.tensor(share, dtype=torch.float64))


@pytest.mark.parametrize("target", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("start", [0.01, 0.1, 5.0])
def test_it_finds_the_price_at_which_the_budget_is_met(start: float, target: float) -> None:
    price = Price(start, target, step=0.1, device=CPU)
    for epoch in range(200):
        share = 1 / (1 + float(price.value))  # whoever pays more spends less
        price.validated(share)
        for _ in range(20):
            spend(price, 1 / (1 + float(price.value)))
        if price.held and epoch > 100:
            break
    assert met(1 / (1 + float(price.value)), target)


def lowest_share(target: float, monkeypatch: pytest.MonkeyPatch, damping: float) -> float:
    """The least FLOPs on the way, of gates that move with the price of the moment: they answer with a delay."""
    monkeypatch.setattr("hybridprune.routing.price.DAMPING", damping)
    price, logit, shares = Price(0.3, target, step=0.02, device=CPU), 2.0, []
    for _ in range(1500):
        logit += 0.05 * (1 - float(price.value))  # at a price of 1 there is nothing to gain either way
        shares.append(1 / (1 + math.exp(-logit)))
        spend(price, shares[-1])
    assert met(shares[-1], target) or damping == 0
    return min(shares)


def test_damping_keeps_gates_that_answer_late_from_falling_far_below_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert lowest_share(0.6, monkeypatch, 0.0) < 0.35
    assert lowest_share(0.6, monkeypatch, DAMPING) > 0.5


def test_a_step_is_the_excess_in_the_logarithm_and_what_lasts_of_it() -> None:
    price = Price(2.0, 0.5, step=0.1, device=CPU)
    spend(price, 0.6)
    lasting = (1 - MOMENTUM) * 0.2
    assert float(price.value) == pytest.approx(2 * math.exp(0.1 * 0.2 + DAMPING * lasting))
    spend(price, 50.0)  # nothing counts as more than the double
    lasting = MOMENTUM * lasting + (1 - MOMENTUM)
    assert float(price.value) == pytest.approx(2 * math.exp(0.1 * 0.2 + 0.1 + DAMPING * lasting))


def test_it_is_held_while_validation_is_within_two_percent() -> None:
    price = Price(1.0, 0.5, step=0.1, device=CPU)
    price.validated(0.5)  # nothing was trained at this price yet
    spend(price, 0.9)
    assert not price.held and (before := float(price.value)) > 1
    price.validated(0.509)
    spend(price, 0.9)
    assert price.held and float(price.value) == before
    price.validated(0.511)
    spend(price, 0.9)
    assert not price.held and float(price.value) > before
    other = Price(1.0, 0.5, step=0.1, device=CPU)
    other.load_state_dict(price.state_dict())
    assert (float(other.value), other.held) == (float(price.value), price.held)
    untried, fresh = Price(1.0, 0.5, step=0.1, device=CPU), Price(1.0, 0.5, step=0.1, device=CPU)
    fresh.load_state_dict(untried.state_dict())
    fresh.validated(0.5)
    assert not fresh.held
    for one in (price, other):
        spend(one, 0.9)
    assert float(other.value) == float(price.value)


def test_it_is_the_arithmetic_of_floats_and_resumes_to_the_last_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    shares = (1.5 * torch.rand(60, generator=draw)).tolist()
    price, base, lasting = Price(0.7, 0.4, step=0.05, device=CPU), 0.7, 0.0
    for share in shares:
        spend(price, share)
        excess = max(-1.0, min(1.0, share / 0.4 - 1))
        base, lasting = base * math.exp(0.05 * excess), MOMENTUM * lasting + (1 - MOMENTUM) * excess
        assert float(price.value) == pytest.approx(base * math.exp(DAMPING * lasting), rel=1e-13)
    state = price.state_dict()
    assert state == {
        "base": pytest.approx(base, rel=1e-13), "excess": pytest.approx(lasting, rel=1e-12, abs=1e-13),
        "held": False, "tried": True,
    }  # fmt: skip
    assert [type(value) for value in state.values()] == [float, float, bool, bool]
    resumed = Price(0.1, 0.4, step=0.05, device=CPU)
    resumed.load_state_dict(state)
    for one in (price, resumed):
        spend(one, *shares)
    assert resumed.state_dict() == price.state_dict() != state


def test_a_price_that_is_held_is_held_after_a_resume() -> None:
    price, resumed = (Price(1.0, 0.5, step=0.1, device=CPU) for _ in range(2))
    spend(price, 0.9)
    price.validated(0.5)
    resumed.load_state_dict(price.state_dict())
    spend(resumed, 0.9)
    assert resumed.held and float(resumed.value) == float(price.value)


def test_a_price_that_was_read_stays_what_it_was() -> None:
    price = Price(1.0, 0.5, step=0.1, device=CPU)
    before = price.value
    spend(price, 0.9)
    assert float(before) == 1 < float(price.value)


def test_a_share_for_each_image_is_refused() -> None:
    with pytest.raises(AssertionError):
        Price(1.0, 0.5, step=0.1, device=CPU).spend(torch.ones(2))


def test_without_a_target_it_stays() -> None:
    price = Price(0.3, None, step=0.1, device=CPU)
    spend(price, 0.9)
    price.validated(0.9)
    assert float(price.value) == 0.3 and price.held
