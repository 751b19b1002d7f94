"""Cascades of published CIFAR-100 ResNets and of their cuts, against one network of the same FLOPs.

    python -m benchmarks.cascade_arms --data_dir DATA/cifar_100 --weights WEIGHTS --work WORK  # what is missing
    python -m benchmarks.cascade_arms --tables --plot FILE                                     # of what is there

The cut networks are those of ``benchmarks.converged``, whose WORK is read (and filled where they are missing, which
takes hours). All else is made of the networks' logits, in a minute or two. Members, temperatures, gates and thresholds
are chosen on the fixed fifth of the test images, without any of the others, and figures are of these.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cascade_tables import WHOLE, plot, show
from benchmarks.converged import MEAN, OURS, STD, Bench, Cell, commit, shared_parser
from benchmarks.recipe import CPU, BenchImages, Recipe, save
from benchmarks.results_log import append_line, find_line, pack, read_lines
from hybridprune.config import DataOptions
from hybridprune.engine.run_data import load_images
from hybridprune.measure.cost import count_module
from hybridprune.models.cascade import Answer, Cascade
from hybridprune.routing.fit_cascade import MemberLogits, cross_fitted, fit, macs_of_stops, without_members
from hybridprune.store.provenance import hardware, versions

RESULTS = Path(__file__).parent / "results" / "cascade_arms.jsonl"
OF, BUDGETS = 56, (0.4, 0.55, 0.75)
"""Budgets are shares of this published network's FLOPs."""
MEMBERS = ("56@0.32", "32@0.59", "20", "56@0.55", "32", "44", "56")
EPOCHS, MOST = 10, 3
TO_BUDGET = {0.25: "56@0.25x20", 0.4: "56@0.4x20"}
"""A network that is cut to the whole budget, and trained for as many epochs as a cascade's members together."""
SINGLE, RANDOM, SHUFFLED, ALL = "one network", "at random", "shuffled within classes", "averaged for all images"
GATED: dict[str, tuple[Answer, bool]] = {
    "margin, last answer": ("last", False),
    "margin": ("average", False),
    "learned": ("average", True),
}
"""The arms that choose per image: how the members' answers become one, and whether the gates are trained."""
ARMS = (SINGLE, WHOLE, *GATED, RANDOM, SHUFFLED, ALL)


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


def outcome(arm: str, search: Search, budget: float, seed: int) -> Found | None:
    """The outcome of an arm at a budget; none where it has nothing to offer."""
    if arm == SINGLE:
        return single(search.members, search.images, budget)
    if arm == WHOLE:
        return single([search.whole[budget]], search.images, budget) if budget in search.whole else None
    if arm == ALL:
        return averaged(search.members, search.images, budget)
    if arm in GATED:
        return gated(search, budget, *GATED[arm])
    return reassigned(search, budget, arm == SHUFFLED, seed)


def member(bench: Bench, name: str, seed: int, recipe: Recipe) -> Member:
    """A published network, or one that was cut and trained; its logits are kept in the work folder."""
    depth, _, cut = name.partition("@")
    target, _, epochs = cut.partition("x")
    path = bench.work / f"logits-{name}-seed{seed if target else 0}.pt"
    if not path.is_file():
        if target:
            net, _ = bench.trained(Cell(int(depth), float(target)), OURS, seed, recipe, int(epochs or EPOCHS))
        else:
            net = bench.dense(int(depth))
        macs = count_module(net, next(iter(bench.images.shuffled(0, 1)))[0])[0]
        save(path, {"logits": bench.images.logits(net), "macs": macs})
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return Member(name, found["logits"], found["macs"])


def run_missing(
    search: Search, path: Path, arguments: argparse.Namespace, whole: int, say: Callable[[str], object]
) -> None:
    """Append a line for each arm and budget that has none."""
    for budget, arm in itertools.product(arguments.budgets, arguments.arms):
        key = {"budget": budget, "arm": arm, "seed": arguments.seed, "among": list(arguments.members)}
        if find_line(read_lines(path), **key) is not None:
            continue
        found = outcome(arm, search, budget * whole, arguments.seed)
        if found is None:
            continue
        counts = [int((found.stops >= k).sum()) for k in range(len(found.members))]
        append_line(
            path,
            {
                **key,
                "members": list(found.members),
                "report": float(found.correct.double().mean()),
                "choices": found.chosen_by,
                "report_correct": pack(found.correct.numpy()),
                "images": [len(search.images.choices), len(search.images.report)],
                "share": found.macs / whole,
                "rates": [count / len(found.stops) for count in counts],
                "command": command(arguments, budget, arm),
                "commit": commit(),
                "versions": versions(),
                "hardware": hardware(CPU),
            },
        )
        say(f"{budget} {arm}: {found.correct.double().mean():.2%} at {found.macs / whole:.3f}, {found.members}")


def command(arguments: argparse.Namespace, budget: float, arm: str) -> str:
    """The command line that gives one line anew, wherever the data lies."""
    flags = ["--budgets", str(budget), "--arms", arm, "--seed", str(arguments.seed)]
    flags += [] if arguments.precision == Recipe.precision else ["--precision", arguments.precision]
    return shlex.join(["python", "-m", "benchmarks.cascade_arms", *flags, "--members", *arguments.members])


def parser() -> argparse.ArgumentParser:
    found = shared_parser(__doc__, RESULTS)
    found.add_argument(
        "--members", nargs="+", default=list(MEMBERS), help="DEPTH, or DEPTH@TARGET[xEPOCHS] of a cut one"
    )
    found.add_argument("--budgets", type=float, nargs="+", default=list(BUDGETS), help=f"shares of ResNet-{OF}'s FLOPs")
    found.add_argument("--precision", default=Recipe.precision, help="of the trainings of cut networks")
    found.add_argument("--arms", nargs="+", default=[x for x in ARMS if x != WHOLE], choices=ARMS, metavar="ARM")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    if arguments.tables:
        show(read_lines(arguments.results))
    if arguments.plot is not None:
        plot(read_lines(arguments.results), arguments.plot)
    if arguments.tables or arguments.plot is not None:
        return
    data = BenchImages(load_images(DataOptions(data_dir=arguments.data_dir)), MEAN, STD)
    bench, recipe = Bench(data, arguments.weights, arguments.work), Recipe(precision=arguments.precision)
    parts, of = data.parts, lambda name: member(bench, name, arguments.seed, recipe)
    images = Images(data.dataset.test.labels, parts.validation, parts.train)
    members = [of(name) for name in arguments.members if set(arguments.arms) != {WHOLE}]  # else none has to be trained
    whole = of(str(OF)).macs
    to_budget = TO_BUDGET if WHOLE in arguments.arms else {}
    cut_to = {budget * whole: of(to_budget[budget]) for budget in arguments.budgets if budget in to_budget}
    run_missing(Search(members, images, cut_to), arguments.results, arguments, whole, lambda x: print(x, flush=True))


if __name__ == "__main__":
    main()
