"""The search for members against one fit after the other, and what a choice is worth on images that did not choose."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from hybridprune.models.cascade import Cascade
from hybridprune.models.confidence import ConfidenceGate
from hybridprune.routing.choose_members import Networks, _going_on, best_alone, best_cascade, search
from hybridprune.routing.fit_cascade import MemberLogits, cross_fitted, fit, halves
from hybridprune.routing.price import TOLERANCE


def networks(macs: list[int], count: int, classes: int = 5, seed: int = 0) -> Networks:
    """Networks that are the better the dearer they are, with mistakes in common and mistakes of their own."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=draw)
    skill = torch.linspace(1, 2, len(macs)).view(-1, 1, 1) * F.one_hot(labels, classes)
    common = torch.randn(count, classes, generator=draw)
    own = torch.randn(len(macs), count, classes, generator=draw)
    return Networks(3 * (skill + 0.5 * common + 0.7 * own), labels, macs)


def empty(said: MemberLogits) -> Cascade:
    return Cascade([nn.Identity() for _ in said.logits], said.logits.shape[2])


def one_by_one(found: Networks, group: tuple[int, ...], budget: float, train: bool = False) -> torch.Tensor:
    said = found.said(group)
    return cross_fitted(empty(said), said, min(budget, float(said.macs[-1])), train)[1]


def groups(found: Networks, budget: float) -> list[tuple[int, ...]]:
    rising = (g for k in (2, 3) for g in itertools.combinations(range(len(found.macs)), k))
    return [
        group
        for group in rising
        if all(found.macs[b] > found.macs[a] for a, b in itertools.pairwise(group))
        and float(found.said(group).macs[0]) <= budget
    ]


@settings(max_examples=8, deadline=None, phases=[Phase.generate])
@given(st.integers(3, 5), st.integers(60, 200), st.floats(0.3, 2.5), st.integers(0, 99))
def test_every_group_has_the_estimate_of_a_fit_of_its_own(number: int, count: int, share: float, seed: int) -> None:
    found = networks([1000 * (1 + k) + k * k for k in range(number)], count, seed=seed)
    budget = share * found.macs[-1]
    scores = search(found, budget)
    assert sorted(scores) == sorted(groups(found, budget))
    for group, score in scores.items():
        right = one_by_one(found, group, budget)
        assert score == [int(right[half].sum()) for half in halves(count)]


def test_networks_of_equal_cost_are_not_joined_nor_any_below_a_first_one_that_is_too_dear() -> None:
    found = networks([1000, 1000, 2000, 2000, 3000], 80)
    pairs = [(0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)]
    assert sorted(search(found, 1500.0)) == sorted([*pairs, (0, 2, 4), (0, 3, 4), (1, 2, 4), (1, 3, 4)])
    assert search(found, 1004.0) == {}  # the gate is not in it
    assert best_cascade(found, {}, 2, 1004.0) is None


@pytest.mark.full
@pytest.mark.parametrize(("size", "budget"), [(2, 2500.0), (3, 4200.0), (2, 20_000.0)])
def test_the_best_cascade_is_fitted_as_stage_3_does_and_each_half_judges_the_choice_of_the_other(
    size: int, budget: float
) -> None:
    found = networks([1000, 2000, 3500, 5000], 241)
    chosen = best_cascade(found, search(found, budget), size, budget)
    assert chosen is not None
    first, second = halves(241)
    own = [group for group in groups(found, budget) if len(group) == size]
    estimate = {group: one_by_one(found, group, budget) for group in own}
    assert chosen.tried == len(own)
    assert chosen.group == max(own, key=lambda group: int(estimate[group].sum()))
    assert torch.equal(chosen.right, one_by_one(found, chosen.group, budget, train=True))
    for choosing, judging in ((first, second), (second, first)):
        best = max(own, key=lambda group: int(estimate[group][choosing].sum()))
        assert torch.equal(chosen.judged[judging], one_by_one(found, best, budget, train=True)[judging])
    said = found.said(chosen.group)
    stops = fit(empty(said), said, chosen.budget_macs)
    assert chosen.budget_macs == min(budget, float(said.macs[-1]))
    assert chosen.macs == float(said.macs[stops].mean()) == pytest.approx(chosen.budget_macs, rel=0.02)
    assert list(chosen.rates) == [float((stops >= k).double().mean()) for k in range(size)]


def test_the_best_single_network_is_chosen_within_the_budget_and_judged_on_the_other_half() -> None:
    found = networks([1000, 2000, 3000], 200)
    budget = 2000 / (1 + TOLERANCE)
    chosen = best_alone(found, budget)
    correct = found.logits.argmax(2) == found.labels
    assert chosen is not None and chosen.tried == 2
    assert chosen.group == (int(correct[:2].sum(1).argmax()),) and chosen.macs == found.macs[chosen.group[0]]
    assert torch.equal(chosen.right, correct[chosen.group[0]])
    first, second = halves(200)
    for choosing, judging in ((first, second), (second, first)):
        best = int(correct[:2, choosing].sum(1).argmax())
        assert torch.equal(chosen.judged[judging], correct[best, judging])
    assert best_alone(found, 900.0) is None


def test_luck_that_is_chosen_is_not_counted() -> None:
    """Networks that all guess: the best of many looks good on the images that chose it, and is not."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (200,), generator=draw)
    found = Networks(torch.randn(300, 200, 10, generator=draw), labels, [1000] * 300)
    chosen = best_alone(found, 1000.0)
    assert chosen is not None
    assert float(chosen.right.double().mean()) > 0.15 > 0.13 > float(chosen.judged.double().mean())


@pytest.mark.parametrize("classes", [2, 7])
def test_the_margin_alone_gives_the_logits_of_gates_as_they_start(classes: int) -> None:
    draw = torch.Generator().manual_seed(0)
    answers = torch.randn(500, classes, generator=draw) * torch.logspace(-1, 3, 500).view(-1, 1)
    with torch.no_grad():
        torch.testing.assert_close(_going_on(answers), ConfidenceGate(1, classes)(0, answers, None)[0])
