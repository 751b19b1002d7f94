"""A cascade is fitted to a budget: from its members' logits on images that they have not fitted, in seconds."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.measure.cost import cost_of, somewhere
from hybridprune.models.cascade import Answer, Cascade
from hybridprune.routing.price import TOLERANCE
from hybridprune.routing.stopping import StoppingTable, stop_macs, threshold_at, train_gates


@dataclass(frozen=True)
class MemberLogits:
    """The logits of a cascade's K members for M images that none of them has fitted, on the CPU."""

    logits: Tensor
    """``[K, M, classes]``, each member's own"""
    labels: Tensor
    """``[M]``"""
    macs: Tensor
    """``[K]``, float64: of an image that stops behind each member, gates included"""

    def part(self, images: Tensor) -> MemberLogits:
        """The logits for some of the images."""
        return MemberLogits(self.logits[:, images], self.labels[images], self.macs)

    @property
    def correct(self) -> Tensor:
        """Whether each member alone is right, bool ``[K, M]``."""
        return self.logits.argmax(2) == self.labels

    def best_alone(self, member_macs: Sequence[int], budget_macs: float) -> int:
        """The most accurate member of those whose own MACs are within the budget, which one has to be."""
        accuracies = self.correct.double().mean(1)
        return max(within(member_macs, budget_macs), key=lambda k: float(accuracies[k]))

    @torch.no_grad()
    def table(self, net: Cascade) -> StoppingTable:
        """The outcome of stopping behind each member, with the temperatures of ``net``."""
        return StoppingTable(net.answers(self.logits), self.labels, self.macs)


def within(member_macs: Sequence[int], budget_macs: float) -> list[int]:
    """The members that take no more MACs alone than a budget that is met within `TOLERANCE`."""
    return [k for k, macs in enumerate(member_macs) if macs <= budget_macs * (1 + TOLERANCE)]


def fit(net: Cascade, said: MemberLogits, target_macs: float, train: bool = True) -> Tensor:
    """Fit temperatures, gates and threshold to a budget, from nothing else; returns where each image stops, ``[M]``.

    Without ``train`` every gate is the same threshold on the margin. The threshold becomes part of the gates, which
    then decide at 0.
    """
    fitted = without_members(len(net.members), net.classes, net.answer)
    fitted.temperatures.copy_(torch.tensor([fit_temperature(each, said.labels) for each in said.logits]))
    table = said.table(fitted)
    if train:
        train_gates(fitted.gate, table, target_macs)
    with torch.no_grad():
        fitted.gate.shift(-threshold_at(table, table.gate_logits(fitted.gate), target_macs))
        stops = table.stops(table.gate_logits(fitted.gate))
    net.temperatures.copy_(fitted.temperatures)
    net.gate.load_state_dict(fitted.gate.state_dict())
    return stops


def cross_fitted(
    net: Cascade, said: MemberLogits, target_macs: float, train: bool = True, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Stops of each image, ``[M]``, and whether its answer is right, bool ``[M]``, by gates fitted without it.

    As in `fit`, on each half of the images for the other half. ``net`` stays as it is.
    """
    count = len(said.labels)
    stops, right = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
    first, second = halves(count, seed)
    for own, other in ((first, second), (second, first)):
        fitted = without_members(len(net.members), net.classes, net.answer)
        fit(fitted, said.part(own), target_macs, train)
        with torch.no_grad():
            table = said.part(other).table(fitted)
            stops[other] = table.stops(table.gate_logits(fitted.gate))
        right[other] = table.correct[torch.arange(len(other)), stops[other]]
    return stops, right


def halves(images: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two halves of so many images, drawn at random."""
    first, second = torch.randperm(images, generator=torch.Generator().manual_seed(seed)).tensor_split(2)
    return first, second


def macs_of_stops(member_macs: Sequence[int], classes: int) -> Tensor:
    """MACs of an image that stops behind each of these members, ``[K]`` float64, gates that were asked included."""
    return _gate_macs(len(member_macs), classes) + torch.tensor(member_macs, dtype=torch.float64).cumsum(0)


@functools.cache
def _gate_macs(members: int, classes: int) -> Tensor:
    """MACs of the gates alone, ``[K]``: they depend on nothing else, and are counted once."""
    net = without_members(members, classes)
    return stop_macs(
        somewhere(net, lambda found: cost_of(found, torch.zeros(1, classes, device=found.temperatures.device)))
    )


def without_members(members: int, classes: int, answer: Answer = "average") -> Cascade:
    """A new cascade of so many members for what needs no more than their logits."""
    return Cascade([nn.Identity() for _ in range(members)], classes, answer)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that makes ``logits [M, classes] / T`` most likely (Guo et al. 2017, equation 9).

    It is at least 1/2: on a few images that are all right, nothing else would keep it from 0.
    """
    from scipy.optimize import minimize_scalar  # here: it is slow to import

    wide = logits.double()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(wide / math.exp(log_temperature), labels))

    found: Any = minimize_scalar(loss, bounds=(math.log(0.5), 3.0), method="bounded")
    return math.exp(found.x)
