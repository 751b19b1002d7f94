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
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.cascade_choices import Found, Images, Search, averaged, gated, reassigned, single
from benchmarks.cascade_members import OF, Networks
from benchmarks.cascade_rivals import GATED as BY_BLOCKS
from benchmarks.cascade_rivals import gates_at_blocks, shared_trunk
from benchmarks.cascade_tables import WHOLE, plot, show
from benchmarks.converged import MEAN, STD, Bench, commit, shared_parser
from benchmarks.recipe import CPU, BenchImages, Recipe
from benchmarks.results_log import append_line, find_line, pack, read_lines
from hybridprune.config import DataOptions
from hybridprune.engine.run_data import load_images
from hybridprune.models.cascade import Answer
from hybridprune.store.provenance import hardware, versions

RESULTS = Path(__file__).parent / "results" / "cascade_arms.jsonl"
BUDGETS = (0.4, 0.55, 0.75)
MEMBERS = ("56@0.32", "32@0.59", "20", "56@0.55", "32", "44", "56")
TO_BUDGET = {0.25: "56@0.25x20", 0.4: "56@0.4x20"}
"""A network that is cut to the whole budget, and trained for as many epochs as a cascade's members together."""
SINGLE, RANDOM, SHUFFLED, ALL = "one network", "at random", "shuffled within classes", "averaged for all images"
BLOCKS, TRUNK = "gates at blocks", "shared trunk"
GATED: dict[str, tuple[Answer, bool]] = {
    "margin, last answer": ("last", False),
    "margin": ("average", False),
    "learned": ("average", True),
}
"""The arms that choose per image: how the members' answers become one, and whether the gates are trained."""
ALONE = (WHOLE, BLOCKS, TRUNK)
"""Arms with networks of their own, which are run only where they are named."""
ARMS = (SINGLE, WHOLE, *GATED, RANDOM, SHUFFLED, ALL, BLOCKS, TRUNK)


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


def run_missing(
    find: Callable[[str, float], Found | None],
    images: Images,
    whole: int,
    arguments: argparse.Namespace,
    say: Callable[[str], object],
) -> None:
    """Append a line for each arm and budget that has none, where ``find`` gives an outcome for both.

    The budget is a share of ``whole`` MACs.
    """
    path = arguments.results
    for budget, arm in itertools.product(arguments.budgets, arguments.arms):
        key = {"budget": budget, "arm": arm, "seed": arguments.seed, "among": list(arguments.members)}
        if find_line(read_lines(path), **key) is not None:
            continue
        found = find(arm, budget)
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
                "images": [len(images.choices), len(images.report)],
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
    found.add_argument("--arms", nargs="+", default=[x for x in ARMS if x not in ALONE], choices=ARMS, metavar="ARM")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    flags = parser()
    arguments = flags.parse_args(argv)
    if unknown := {BLOCKS, TRUNK} & set(arguments.arms) and set(arguments.budgets) - set(BY_BLOCKS):
        known = ", ".join(map(str, BY_BLOCKS))
        flags.error(f"--budgets {min(unknown):g}: {BLOCKS} and {TRUNK} have networks for {known}")
    if arguments.tables:
        show(read_lines(arguments.results))
    if arguments.plot is not None:
        plot(read_lines(arguments.results), arguments.plot)
    if arguments.tables or arguments.plot is not None:
        return
    data = BenchImages(load_images(DataOptions(data_dir=arguments.data_dir)), MEAN, STD)
    bench = Bench(data, arguments.weights, arguments.work)
    networks = Networks(bench, arguments.seed, Recipe(precision=arguments.precision))
    images = Images(data.dataset.test.labels, data.parts.validation, data.parts.train)
    whole = networks.member(str(OF)).macs
    arms = set(arguments.arms)
    # Networks that no arm asks for are not trained.
    members = [networks.member(name) for name in arguments.members if not arms <= set(ALONE)]
    to_budget = TO_BUDGET if WHOLE in arms else {}
    cut_to = {budget * whole: networks.member(to_budget[budget]) for budget in arguments.budgets if budget in to_budget}
    search = Search(members, images, cut_to)
    own = {BLOCKS: partial(gates_at_blocks, networks, images), TRUNK: partial(shared_trunk, networks, images)}

    def find(arm: str, budget: float) -> Found | None:
        if arm in own:
            return own[arm](budget, budget * whole)
        return outcome(arm, search, budget * whole, arguments.seed)

    run_missing(find, images, whole, arguments, lambda x: print(x, flush=True))


if __name__ == "__main__":
    main()
