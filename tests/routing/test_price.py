"""Dual ascent: the price of FLOPs rises until a budget is met and stays there."""

from __future__ import annotations

import math

import pytest

from hybridprune.routing.price import DAMPING, MOMENTUM, Price, met


@pytest.mark.parametrize("target", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("start", [0.01, 0.1, 5.0])
def test_it_finds_the_price_at_which_the_budget_is_met(start: float, target: float) -> None:
    price = Price(start, target, step=0.1)
    for epoch in range(200):
        share = 1 / (1 + price.value)  # whoever pays more spends less
        price.validated(share)
        for _ in range(20):
            price.spend(1 / (1 + price.value))
        if price.held and epoch > 100:
            break
    assert met(1 / (1 + price.value), target)


def lowest_share(target: float, monkeypatch: pytest.MonkeyPatch, damping: float) -> float:
    """The least FLOPs on the way, of gates that move with the price of the moment: they answer with a delay."""
    monkeypatch.setattr("hybridprune.routing.price.DAMPING", damping)
    price, logit, shares = Price(0.3, target, step=0.02), 2.0, []
    for _ in range(1500):
        logit += 0.05 * (1 - price.value)  # at a price of 1 there is nothing to gain either way
        shares.append(1 / (1 + math.exp(-logit)))
        price.spend(shares[-1])
    assert met(shares[-1], target) or damping == 0
    return min(shares)


def test_damping_keeps_gates_that_answer_late_from_falling_far_below_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert lowest_share(0.6, monkeypatch, 0.0) < 0.35
    assert lowest_share(0.6, monkeypatch, DAMPING) > 0.5


def test_a_step_is_the_excess_in_the_logarithm_and_what_lasts_of_it() -> None:
    price = Price(2.0, 0.5, step=0.1)
    price.spend(0.6)
    lasting = (1 - MOMENTUM) * 0.2
    assert price.value == pytest.approx(2 * math.exp(0.1 * 0.2 + DAMPING * lasting))
    price.spend(50.0)  # nothing counts as more than the double
    lasting = MOMENTUM * lasting + (1 - MOMENTUM)
    assert price.value == pytest.approx(2 * math.exp(0.1 * 0.2 + 0.1 + DAMPING * lasting))


def test_it_is_held_while_validation_is_within_two_percent() -> None:
    price = Price(1.0, 0.5, step=0.1)
    price.validated(0.5)  # nothing was trained at this price yet
    price.spend(0.9)
    assert not price.held and (before := price.value) > 1
    price.validated(0.509)
    price.spend(0.9)
    assert price.held and price.value == before
    price.validated(0.511)
    price.spend(0.9)
    assert not price.held and price.value > before
    other = Price(1.0, 0.5, step=0.1)
    other.load_state_dict(price.state_dict())
    assert (other.value, other.held) == (price.value, price.held)
    untried, fresh = Price(1.0, 0.5, step=0.1), Price(1.0, 0.5, step=0.1)
    fresh.load_state_dict(untried.state_dict())
    fresh.validated(0.5)
    assert not fresh.held
    for one in (price, other):
        one.spend(0.9)
    assert other.value == price.value


def test_without_a_target_it_stays() -> None:
    price = Price(0.3, None, step=0.1)
    price.spend(0.9)
    price.validated(0.9)
    assert price.value == 0.3 and price.held
