"""The ranks of all layers at once: least expected loss at a price of computation (Shoham & Gersho 1988; pure).

Every layer offers its forms and ranks, each with a cost and an expected rise of the loss. At a price ``lambda`` of a
MAC (or parameter, or nanosecond) each layer takes its own best choice; the budget fixes ``lambda``. Greedy removal sees
one direction of one side at a time; this sees what both sides and the change of form are worth together. What is worth
nothing at any price (scores of 0) would all be cut: as much of it is put back as may stay.

Where the channels between two layers may go instead, at each price either they do or the directions of both layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.pruning.budget.greedy import put_back
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget, Space
from hybridprune.pruning.directions.inner_channels import InnerCell
from hybridprune.pruning.directions.space import Choices, DirectionCell

STEPS = 60


def cut_at_budget(space: Space, budget: Budget) -> list[int]:
    """Kept directions of each set under the budget; raises InfeasibleBudget if no choice meets it.

    At a price ``lambda`` layer l takes ``argmin_c loss_l(c) + lambda (macs_l(c) / M + params_l(c) / P + ns_l(c) / T)``
    among its choices c, with the budget's M, P and T (a missing bound has no term). The least ``lambda`` that meets the
    budget is found by bisection of its logarithm; what is left of the budget is spent by the best upgrades that fit.
    """
    offers = _offers(space, budget)
    taken = _cheapest_price(offers, lambda taken: budget.allows(_cost(offers, taken, space.other)))
    if taken is None:
        raise InfeasibleBudget(_cost(offers, _taken(offers, None), space.other))
    kept = _kept(space, offers, _fill(offers, taken, budget, space.other))
    return put_back(space, kept, lambda _, cost: budget.allows(cost))


def cut_at_ratio(space: Space, ratio: float) -> list[int]:
    """Kept directions of each set when the share ``ratio`` of all is removed, as far as the limits allow.

    The choices are those of `cut_at_budget`, at the least price of a MAC at which so many directions are gone.
    """
    offers = _offers(space, Budget(macs=1.0))
    wanted = (1 - ratio) * sum(space.everything())
    taken = _cheapest_price(offers, lambda taken: sum(_kept(space, offers, taken)) <= wanted)
    kept = _kept(space, offers, taken or _taken(offers, None))
    return put_back(space, kept, lambda more, _: sum(more) <= wanted, highest=0.0)


@dataclass(frozen=True)
class Offer:
    """The choices of a cell that are worth their price."""

    choices: Choices
    price: Tensor
    """Of each choice, in shares of the budget."""
    whole: int
    """The place of the choice to leave it as it is."""
    pair: tuple[int, int] | None
    """The cells that must be left as they are where this one is not."""


def _offers(space: Space, budget: Budget) -> list[Offer]:
    offers: list[Offer] = []
    for cell in space.cells:
        assert isinstance(cell, DirectionCell | InnerCell)
        choices = cell.choices()
        price = torch.zeros_like(choices.loss)
        for costs, bound in zip(choices.costs, budget.bounds, strict=True):
            if bound is not None:
                price = price + costs.double() / bound
        worth = pareto(price, choices.loss)
        if 0 not in worth:  # what is as it was is the first
            worth = torch.cat([worth, worth.new_zeros(1)])
        whole = int((worth == 0).nonzero())
        pair = cell.pair if isinstance(cell, InnerCell) else None
        offers.append(Offer(choices.at(worth), price[worth], whole, pair))
    return offers


def pareto(price: Tensor, loss: Tensor) -> Tensor:
    """Places of the choices with less loss than every cheaper one, by ascending price."""
    order = torch.argsort(loss, stable=True)
    order = order[torch.argsort(price[order], stable=True)]
    best = torch.cummin(loss[order], 0).values
    better = torch.ones_like(order, dtype=torch.bool)
    better[1:] = best[1:] < best[:-1]
    return order[better]


def _taken(offers: Sequence[Offer], exponent: float | None) -> list[int]:
    """Each cell's best choice at the price ``10**exponent`` of computation, or where that alone counts (None)."""
    worths = [o.price if exponent is None else o.choices.loss + 10.0**exponent * o.price for o in offers]
    taken = [int(worth.argmin()) for worth in worths]
    for place, offer in enumerate(offers):
        if offer.pair is None:
            continue
        directions = sum(float(worths[i][taken[i]]) for i in offer.pair) + float(worths[place][offer.whole])
        channels = sum(float(worths[i][offers[i].whole]) for i in offer.pair) + float(worths[place].min())
        if channels < directions:
            for i in offer.pair:
                taken[i] = offers[i].whole
        else:
            taken[place] = offer.whole
    return taken


def _cheapest_price(offers: Sequence[Offer], met: Callable[[list[int]], bool]) -> list[int] | None:
    """The choices at the smallest price of computation for which ``met`` holds; None if there is none."""

    def at(exponent: float) -> list[int]:
        return _taken(offers, exponent)

    low, high = -20.0, 20.0
    if met(at(low)):
        return at(low)
    if not met(at(high)):
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if met(at(middle)) else (middle, high)
    return at(high)


def _fill(offers: Sequence[Offer], taken: list[int], budget: Budget, other: Cost) -> list[int]:
    """Spend what is left of the budget: again and again the upgrade that fits and is worth most for its price.

    A cell that must be left as it is has no upgrade.
    """
    taken, cost = [*taken], _cost(offers, taken, other)
    while True:
        best: tuple[float, int, int] | None = None
        for index, (offer, now) in enumerate(zip(offers, taken, strict=True)):
            choices, price = offer.choices, offer.price
            gain = choices.loss[now] - choices.loss
            fits = gain > 0
            for costs, spent, bound in zip(choices.costs, cost, budget.bounds, strict=True):
                if bound is not None:
                    fits = fits & (spent + costs - costs[now] <= bound)
            if not bool(fits.any()):
                continue
            value = torch.where(fits, gain / (price - price[now]).clamp(min=1e-12), -1.0)
            choice = int(value.argmax())
            if best is None or float(value[choice]) > best[0]:
                best = float(value[choice]), index, choice
        if best is None:
            return taken
        taken[best[1]] = best[2]
        cost = _cost(offers, taken, other)


def _cost(offers: Sequence[Offer], taken: Sequence[int], other: Cost) -> Cost:
    for offer, i in zip(offers, taken, strict=True):
        other = other.plus(Cost(*(int(costs[i]) for costs in offer.choices.costs)))
    return other


def _kept(space: Space, offers: Sequence[Offer], taken: Sequence[int]) -> list[int]:
    kept = space.everything()
    for cell, offer, i in zip(space.cells, offers, taken, strict=True):
        for place, number in zip(cell.sets, offer.choices.kept(i), strict=False):  # a cell has one set at least
            kept[place] = number
    return kept
