"""The arms of `benchmarks.cascade_arms` that are made of networks' logits: one network, several for all, a cascade."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hybridprune.models.cascade import Answer, Cascade
from hybridprune.routing.fit_cascade import MemberLogits, cross_fitted, fit, macs_of_stops, without_members

MOST = 3
"""Members of a cascade."""


@dataclass(frozen=True)
class Member:
    """A network: its logits ``[M, classes]`` for the test images, and its MACs."""

    name: str
    logits: Tensor
    macs: int


@dataclass(frozen=True)
class Images:
    """The test images: labels ``[M]``, and which are for choices and which are reported."""

    labels: Tensor
    choices: Tensor
    report: Tensor


@dataclass(frozen=True)
class Found:
    """The outcome of an arm on the reported images."""

    members: tuple[str, ...]
    correct: Tensor
    """bool ``[R]``"""
    stops: Tensor
    """The member behind which each stops, ``[R]``."""
    macs: float
    """Mean of an image."""
    chosen_by: float
    """Accuracy on the images for choices by which the members were chosen."""


def empty(members: Sequence[Member], answer: Answer = "average") -> Cascade:
    """A cascade without its members, of which there are logits."""
    return without_members(len(members), members[0].logits.shape[1], answer)


def costs(members: Sequence[Member]) -> Tensor:
    """MACs of an image that stops behind each member, ``[K]``, gates included."""
    return macs_of_stops([x.macs for x in members], members[0].logits.shape[1])


def said(members: Sequence[Member], images: Images, which: Tensor) -> MemberLogits:
    """The members' logits for some of the images."""
    return MemberLogits(torch.stack([x.logits[which] for x in members]), images.labels[which], costs(members))


def groups(members: Sequence[Member], fits: Callable[[Tensor], bool]) -> Iterator[tuple[Member, ...]]:
    """Two or three members, cheapest first, whose `costs` fit; one of them at least is cut."""
    rising = sorted(members, key=lambda x: x.macs)
    for count in range(2, MOST + 1):
        for group in itertools.combinations(rising, count):
            dearer = all(b.macs > a.macs for a, b in itertools.pairwise(group))
            if dearer and any("@" in x.name for x in group) and fits(costs(group)):
                yield group


def single(members: Sequence[Member], images: Images, budget: float) -> Found:
    """The best single network within the budget."""
    within = [x for x in members if x.macs <= budget]
    by = {x.name: _accuracy(x.logits, images, images.choices) for x in within}
    best = max(within, key=lambda x: by[x.name])
    return _same_for_all((best.name,), best.logits, best.macs, images, by[best.name])


def averaged(members: Sequence[Member], images: Images, budget: float) -> Found | None:
    """The best members that all run on every image, within the budget; none if no two fit."""
    best: tuple[float, tuple[Member, ...], Tensor] | None = None
    for group in groups(members, lambda macs: True):
        if sum(x.macs for x in group) > budget:  # nothing is asked, so no gate costs anything
            continue
        net = empty(group)
        fit(net, said(group, images, images.choices), float(costs(group)[-1]), train=False)  # for the temperatures
        answer = net.answers(torch.stack([x.logits for x in group]))[-1]
        by = _accuracy(answer, images, images.choices)
        if best is None or by > best[0]:
            best = by, group, answer
    if best is None:
        return None
    by, group, answer = best
    return _same_for_all(tuple(x.name for x in group), answer, sum(x.macs for x in group), images, by)


@dataclass(frozen=True)
class Search:
    """The search for the members of a cascade, by the estimate of one threshold on the margin; done once a budget."""

    members: Sequence[Member]
    images: Images
    whole: Mapping[float, Member] = field(default_factory=dict)
    """By budget, networks that were cut to it."""
    found: dict[tuple[float, Answer], tuple[float, tuple[Member, ...]]] = field(default_factory=dict)

    def best(self, budget: float, answer: Answer) -> tuple[float, tuple[Member, ...]]:
        """The estimated accuracy, and the members, cheapest first."""
        if (budget, answer) not in self.found:
            by = {}
            for group in groups(self.members, lambda macs: float(macs[0]) <= budget <= float(macs[-1])):
                of_choices = said(group, self.images, self.images.choices)
                by[group] = float(cross_fitted(empty(group, answer), of_choices, budget, False)[1].double().mean())
            assert by, f"no cascade spends {budget:,.0f} MACs"
            best = max(by, key=lambda group: by[group])
            self.found[budget, answer] = by[best], best
        return self.found[budget, answer]


def gated(search: Search, budget: float, answer: Answer, learned: bool) -> Found:
    """The cascade with the best estimate, whose gates are fitted on the images for choices."""
    (by, group), images = search.best(budget, answer), search.images
    net, shown = empty(group, answer), said(group, images, images.report)
    fit(net, said(group, images, images.choices), budget, learned)
    with torch.no_grad():
        table = shown.table(net)
        stops = table.stops(table.gate_logits(net.gate))
    return _stopped(tuple(x.name for x in group), net, shown, stops, by)


def reassigned(search: Search, budget: float, within_classes: bool, seed: int) -> Found:
    """A cascade whose decisions are dealt out anew: among all images, or among those of one predicted class."""
    (by, group), images = search.best(budget, "average"), search.images
    net, shown = empty(group), said(group, images, images.report)
    fit(net, said(group, images, images.choices), budget, train=False)
    with torch.no_grad():
        table = shown.table(net)
        taken = table.stops(table.gate_logits(net.gate))
    first = shown.logits[0].argmax(1) if within_classes else torch.zeros_like(taken)
    draw, stops = torch.Generator().manual_seed(seed), taken.clone()
    for each in first.unique():
        of_class = (first == each).nonzero().squeeze(1)
        stops[of_class] = taken[of_class[torch.randperm(len(of_class), generator=draw)]]
    return _stopped(tuple(x.name for x in group), net, shown, stops, by)


def _stopped(names: tuple[str, ...], net: Cascade, shown: MemberLogits, stops: Tensor, by: float) -> Found:
    correct = shown.table(net).correct[torch.arange(len(stops)), stops]
    return Found(names, correct, stops, float(shown.macs[stops].mean()), by)


def _same_for_all(names: tuple[str, ...], answer: Tensor, macs: float, images: Images, by: float) -> Found:
    correct = answer[images.report].argmax(1) == images.labels[images.report]
    return Found(names, correct, torch.full_like(images.report, len(names) - 1), float(macs), by)


def _accuracy(logits: Tensor, images: Images, which: Tensor) -> float:
    return float((logits[which].argmax(1) == images.labels[which]).double().mean())
