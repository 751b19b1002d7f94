"""The refusal of a budget that no cut can meet: how it was read, what could be reached, and what to do."""

from __future__ import annotations

from hybridprune.config import CutOptions
from hybridprune.errors import UserError
from hybridprune.pruning.budget.space import Cost, InfeasibleBudget, taken_as
from hybridprune.pruning.left_alone import GROUPED, JOINED, listed
from hybridprune.pruning.method import DirectionMethod
from hybridprune.pruning.methods import find
from hybridprune.pruning.within_time import AIM


def refusal_of(options: CutOptions, floor: InfeasibleBudget, dense: Cost) -> UserError:
    """The refusal of the options' targets, shares of ``dense``: in flags, see `argument_names`."""
    targets = {
        "--target_flops": options.target_flops,
        "--target_params": options.target_params,
        "--target_latency": options.target_latency,
    }
    wanted = ", ".join(f"{flag} {target}" for flag, target in targets.items() if target is not None)
    if floor.gains_nothing:
        share = floor.floor.ns / dense.ns
        return UserError(
            f"{wanted}: no cut that was timed is faster than the dense network by more than {AIM:.0%}, the fastest "
            f"takes {share:.3f} of its time; give --target_flops, or another "
            "--latency_engine, --latency_batch or --method"
        )
    reached = f"below what --prune_ratio_limit {options.prune_ratio_limit} allows; {floor.of(dense)}"
    if percent := taken_as(targets):
        return UserError(f"{wanted}: {percent}{reached}")
    alone = f"; left alone: {listed(floor.left_alone)}" if floor.left_alone else ""
    return UserError(f"{wanted}: {reached}{alone}; give {_remedy(options, floor)}")


def _remedy(options: CutOptions, floor: InfeasibleBudget) -> str:
    ways = ["a larger budget"]
    if options.exclude:
        ways.append("fewer layers to --exclude")
    if isinstance(find(options.method), DirectionMethod):
        if GROUPED in floor.left_alone.values():
            ways.append("a --method that cuts channels, such as taylor, which takes those of depthwise layers along")
    elif floor.left_alone:
        if JOINED in floor.left_alone.values() and not options.use_out_dependencies:
            ways.append("--use_out_dependencies")
        ways.append("a --method that cuts directions, such as fisher-tucker, which needs no channels of their own")
    return ", or ".join(ways)
