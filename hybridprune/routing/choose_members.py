"""Networks to join, by search: all pairs and triples are tried by one threshold on the margin, from logits alone.

A group's estimate is that of `cross_fitted` without training. What does not depend on the whole group is computed once:
temperatures for each network, the first answers for each pair, and all third members of a pair share its thresholds.

The best of many estimates is optimistic, since luck is chosen as well. So each half of the images also chooses for the
other half, which then says what the choice is worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.models.confidence import LEAST, START, STEEP
from hybridprune.routing.fit_cascade import (
    MemberLogits,
    cross_fitted,
    fit,
    fit_temperature,
    halves,
    macs_of_stops,
    within,
    without_members,
)
from hybridprune.routing.stopping import mean_macs_at, nearest, rates_by_threshold

Group = tuple[int, ...]
"""Networks by their number, cheapest first."""
Scores = Mapping[Group, Sequence[int]]
"""How many images of either half each group answers rightly."""


@dataclass(frozen=True)
class Networks:
    """R networks of one task and their logits for M images that none of them has fitted, on the CPU."""

    logits: Tensor
    """``[R, M, classes]``"""
    labels: Tensor
    """``[M]``"""
    macs: Sequence[int]
    """Of one image in each of them, none less than that of the network before it."""

    def said(self, group: Group) -> MemberLogits:
        """The logits and the costs that the cascade of a group is fitted to."""
        macs = macs_of_stops([self.macs[each] for each in group], self.logits.shape[2])
        return MemberLogits(self.logits[list(group)], self.labels, macs)


@dataclass(frozen=True)
class Chosen:
    """The best group of a size at a budget."""

    group: Group
    right: Tensor
    """bool ``[M]``: whether the answer is right, each half of the images by gates that were fitted on the other"""
    judged: Tensor
    """bool ``[M]``: the same, each half by the group that the other half has chosen"""
    rates: Sequence[float]
    """The share of the images that each member runs on, by gates that were fitted on all images."""
    macs: float
    """Mean of an image, by these gates."""
    budget_macs: float
    """Of the cascade: no more than all members together take."""
    tried: int
    """Groups of this size that fit the budget."""


def best_alone(networks: Networks, budget_macs: float) -> Chosen | None:
    """The most accurate network within the budget (`MemberLogits.best_alone`), None if there is none."""
    correct = networks.logits.argmax(2) == networks.labels
    parts, fitting = halves(len(networks.labels)), within(networks.macs, budget_macs)
    scores = {(k,): [int(correct[k, part].sum()) for part in parts] for k in fitting}
    if not scores:
        return None
    (best,) = _best(scores)
    judged = _judged({group: correct[group[0]] for group in scores}, scores)
    macs = float(networks.macs[best])
    return Chosen((best,), correct[best], judged, (1.0,), macs, macs, len(scores))


def best_cascade(
    networks: Networks, scores: Scores, size: int, budget_macs: float, train: bool = True
) -> Chosen | None:
    """The best cascade of so many members by its ``scores``, with gates as stage 3 fits them; None if none fits."""
    own = {group: score for group, score in scores.items() if len(group) == size}
    if not own:
        return None
    group = _best(own)
    empty = without_members(size, networks.logits.shape[2])
    right: dict[Group, Tensor] = {}
    for each in {group, *(_best(own, half) for half in (0, 1))}:
        said = networks.said(each)
        right[each] = cross_fitted(empty, said, float(_within(said.macs, budget_macs)), train)[1]
    said = networks.said(group)
    budget = float(_within(said.macs, budget_macs))
    stops = fit(empty, said, budget, train)
    rates = [float((stops >= k).double().mean()) for k in range(size)]
    return Chosen(group, right[group], _judged(right, own), rates, float(said.macs[stops].mean()), budget, len(own))


@torch.no_grad()
def search(networks: Networks, budget_macs: float) -> Scores:
    """The scores of all pairs and triples that rise in cost and whose first member is within the budget.

    A group that costs less than the budget on all images is given what it costs.
    """
    scores: dict[Group, list[int]] = {}
    first, second = halves(len(networks.labels))
    for own, other in ((second, first), (first, second)):  # judged on the first half, then on the second
        for group, right in _by_half(networks, budget_macs, own, other):
            scores.setdefault(group, []).append(right)
    return scores


def _by_half(networks: Networks, budget_macs: float, own: Tensor, other: Tensor) -> Iterator[tuple[Group, int]]:
    """How many of the ``other`` images each group answers rightly, fitted on the ``own`` ones."""
    temperatures = [fit_temperature(each[own], networks.labels[own]) for each in networks.logits]
    logits = networks.logits / torch.tensor(temperatures).view(-1, 1, 1)
    labels, macs = networks.labels[other], networks.macs
    gates = [macs_of_stops([0] * size, logits.shape[2]) for size in (2, 3)]
    answers = logits[:, other]
    for i in range(len(macs)):
        dearer = [j for j in range(i + 1, len(macs)) if macs[j] > macs[i]]
        if macs[i] + gates[0][0] > budget_macs or not dearer:
            continue
        unsure = _going_on(logits[i])
        alone = answers[i].argmax(1) == labels
        limits = _limits(unsure[own, None], _macs_of(macs, [(i, j) for j in dearer], gates[0]), budget_macs)
        for j, limit in zip(dearer, limits, strict=True):
            both = torch.lerp(logits[i], logits[j], 0.5)
            right = both[other].argmax(1) == labels
            yield (i, j), int(torch.where(unsure[other] > limit, right, alone).sum())
            last = [k for k in dearer if macs[k] > macs[j]]
            if not last:
                continue
            gate_logits = torch.stack([unsure, _going_on(both)], 1)
            limits_of_three = _limits(
                gate_logits[own], _macs_of(macs, [(i, j, k) for k in last], gates[1]), budget_macs
            )
            seen, both = gate_logits[other], both[other]
            for k, limit in zip(last, limits_of_three, strict=True):
                goes, on = (seen > limit).long().cumprod(1).bool().T
                found = torch.where(goes, right, alone)
                found[on] = torch.lerp(both[on], answers[k][on], 1 / 3).argmax(1) == labels[on]
                yield (i, j, k), int(found.sum())


def _macs_of(macs: Sequence[int], groups: Sequence[Group], gates: Tensor) -> Tensor:
    """MACs of an image that stops behind each member, ``[G, K]``; ``gates [K]`` are those of the gates alone."""
    return gates + torch.tensor([[macs[each] for each in group] for group in groups], dtype=torch.float64).cumsum(1)


def _within(macs: Tensor, budget_macs: float) -> Tensor:
    """The budget, or what all members take if that is less; ``[...]`` for MACs ``[..., K]``."""
    return macs[..., -1].clamp(max=budget_macs)


def _limits(gate_logits: Tensor, macs: Tensor, budget_macs: float) -> Tensor:
    """The threshold of each of G groups that share the ``gate_logits [m, K - 1]``, ``[G]`` for MACs ``[G, K]``."""
    limits, reached = rates_by_threshold(gate_logits)
    return limits[nearest(mean_macs_at(reached, macs), _within(macs, budget_macs))]


def _going_on(answers: Tensor) -> Tensor:
    """The logit of going on ``[M]`` of a gate as it starts (`ConfidenceGate`), behind answers ``[M, classes]``.

    It reads nothing but the margin. Without the other numbers it takes a twentieth of the time.
    """
    logs = answers.log_softmax(1)
    others = logs.scatter(1, logs.argmax(1, keepdim=True), -torch.inf)
    doubt = torch.logaddexp(others.logsumexp(1), others.amax(1))
    return STEEP * (doubt.clamp(min=LEAST) - math.log(1 - START))


def _best(scores: Scores, half: int | None = None) -> Group:
    """The group with the most right answers, on one half of the images or on both."""
    return max(scores, key=lambda group: sum(scores[group]) if half is None else scores[group][half])


def _judged(right: Mapping[Group, Tensor], scores: Scores) -> Tensor:
    """Whether answers are right, on each half of the images by the group that is the best one on the other half."""
    found = torch.zeros_like(next(iter(right.values())))
    for half, images in enumerate(halves(len(found))):
        found[images] = right[_best(scores, 1 - half)][images]
    return found
