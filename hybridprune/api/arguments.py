# pyright: strict, reportUnnecessaryIsInstance=false
"""Cut options from `prune`'s own arguments and its options object: each said once, and nothing guessed."""

from __future__ import annotations

from dataclasses import replace

from hybridprune.config import CutOptions, checked, checked_value, given
from hybridprune.errors import UserError
from hybridprune.pruning.make_plan import sparsity_of
from hybridprune.pruning.method import Method
from hybridprune.pruning.methods import find


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
    budgets = [name for name in targets if getattr(found, name) is not None]
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
