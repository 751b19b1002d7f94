"""Dual ascent: the price of FLOPs rises until a budget is met and stays there."""

from __future__ import annotations

import math

import pytest

from hybridprune.routing.price import Price, met


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


def test_a_step_is_the_excess_in_the_logarithm() -> None:
    price = Price(2.0, 0.5, step=0.1)
    price.spend(0.6)
    assert price.value == pytest.approx(2 * math.exp(0.1 * 0.2))
    price.spend(50.0)  # nothing moves it by more than the step
    assert price.value == pytest.approx(2 * math.exp(0.1 * 0.2 + 0.1))


def test_it_is_held_while_validation_is_within_two_percent() -> None:
    price = Price(1.0, 0.5, step=0.1)
    price.validated(0.509)
    price.spend(0.9)
    assert price.held and price.value == 1
    price.validated(0.511)
    price.spend(0.9)
    assert not price.held and price.value > 1
    other = Price(1.0, 0.5, step=0.1)
    other.load_state_dict(price.state_dict())
    assert (other.value, other.held) == (price.value, price.held)


def test_without_a_target_it_stays() -> None:
    price = Price(0.3, None, step=0.1)
    price.spend(0.9)
    price.validated(0.9)
    assert price.value == 0.3 and price.held
