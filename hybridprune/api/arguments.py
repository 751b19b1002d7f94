# pyright: strict, reportUnnecessaryIsInstance=false
"""Cut options from `prune`'s own arguments and its options object: each said once, and nothing guessed."""

from __future__ import annotations

from dataclasses import replace

from hybridprune.api.first_look import Task
from hybridprune.config import CutOptions, checked, checked_value, given, shown
from hybridprune.curvature.likelihood import UserLoss
from hybridprune.errors import UserError
from hybridprune.pruning.make_plan import sparsity_of
from hybridprune.pruning.method import Method
from hybridprune.pruning.methods import find

MOST_EPOCHS = 1_000_000
"""More is a slip of the pen."""


def cut_options(
    cut: CutOptions | None,
    method: str | Method | None,
    target_flops: float | None,
    target_params: float | None,
    target_latency: float | None,
) -> CutOptions:
    """``cut`` with what the arguments say; None says nothing, nor does an option that was not given.

    Raises UserError for a value that may not be, for an argument and an option that disagree, for a ratio beside a
    budget, and where there is neither, unless the method chooses by itself.
    """
    said = checked(cut, "cut", CutOptions)
    targets = {"target_flops": target_flops, "target_params": target_params, "target_latency": target_latency}
    arguments = {"method": method, **targets}
    wanted = {
        name: checked_value(CutOptions, name, value, name) for name, value in arguments.items() if value is not None
    }
    for name, value in wanted.items():
        there = getattr(said, name)
        if name in given(said) and there not in (None, value):
            raise UserError(f"{name} {value}: cut.{name} is {there}; give one of them")
    found = replace(said, **wanted)
    find(found.method, "method")
    if found.cut_weights == "imitate":
        raise UserError("cut.cut_weights imitate: is a training of stage 2, hybridprune prune; give inherit or scratch")
    budgets = [name for name in (*targets, "target_effective") if getattr(found, name) is not None]
    if budgets and found.prune_ratio is not None:
        raise UserError(
            f"cut.prune_ratio {found.prune_ratio}: is not read where there is a budget, {budgets[0]} "
            f"{getattr(found, budgets[0])}; give one of them"
        )
    if not budgets and found.prune_ratio is None and sparsity_of(found.method).select is None:
        raise UserError(
            "target_flops: it is not said how much goes; give target_flops=0.5 for half of the FLOPs, target_params, "
            "or cut=CutOptions(prune_ratio=0.5) for half of the channels or directions"
        )
    return found


def check_training(task: Task, fine_tune: object, kd_weight: float) -> None:
    """UserError for a training that could not be run, before anything else is."""
    epochs = isinstance(fine_tune, int | float) and not isinstance(fine_tune, bool) and 0 <= fine_tune <= MOST_EPOCHS
    if not callable(fine_tune) and not epochs:
        said = str(fine_tune) if isinstance(fine_tune, bool) else shown(fine_tune)
        raise UserError(
            f"fine_tune {said}: give a number of epochs in [0, {MOST_EPOCHS:,}], or a function of the pruned module"
        )
    if kd_weight and isinstance(task.likelihood, UserLoss):
        raise UserError("kd_weight: a function as loss says nothing of the distance between two outputs; give 0")
