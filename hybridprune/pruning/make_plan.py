"""From a network and the name of a method to what would be cut: the one path that all methods share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from hybridprune.config import CurvatureOptions, CutOptions, SparsityOptions
from hybridprune.engine.modes import kept_modes
from hybridprune.errors import UserError
from hybridprune.precision import full_precision
from hybridprune.pruning.allocate import BY_LAYER, allocate
from hybridprune.pruning.budget.space import Budget
from hybridprune.pruning.method import ChannelMethod, DirectionMethod, Method
from hybridprune.pruning.methods import METHODS
from hybridprune.pruning.plan import Proposal
from hybridprune.pruning.plan_channels import Wish, propose_channels, target
from hybridprune.pruning.plan_directions import propose_directions
from hybridprune.pruning.promise import check_promise
from hybridprune.pruning.sparse_training.protocol import Removal, Sparsity, Target
from hybridprune.pruning.subject import Subject


@full_precision()
def propose(
    subject: Subject,
    options: CutOptions,
    curvature: CurvatureOptions,
    sparsity: SparsityOptions | None = None,
    budget: Budget | None = None,
    removed: Removal | None = None,
) -> Proposal:
    """Score all units of the network by the method that the options name; UserError if it could cut nothing.

    ``removed`` is what an earlier proposal selected on this network, which then decides alone. A method that selects by
    itself raises InfeasibleBudget here, and not when the proposal is asked to allocate. Applying the proposal raises
    BrokenPromise if the network then costs anything else than its space says.
    """
    method = METHODS[options.method]
    allocation = _allocation(method, options)
    with kept_modes(subject.model):
        subject.model.eval()  # in training mode the mere look at a weight under spectral_norm would change it
        if isinstance(method, DirectionMethod):
            proposal = propose_directions(subject, method, allocation, options, curvature)
        else:
            wish = Wish(sparsity or SparsityOptions(), budget, removed)
            proposal = propose_channels(subject, method, allocation, options, curvature, wish)

    def apply(kept: Sequence[int]) -> None:
        proposal.apply(kept)
        check_promise(proposal.space.cost(kept), subject.cost)

    return dataclasses.replace(proposal, apply=apply)


def sparsity_of(method: str) -> Sparsity:
    """What the method does before it cuts."""
    found = METHODS[method]
    return (found.sparsity if isinstance(found, ChannelMethod) else None) or Sparsity()


def sparse_target(subject: Subject, options: CutOptions, budget: Budget | None, removed: Removal) -> Target:
    """The network as what trains it towards sparsity sees it; UserError if it has no channels to remove.

    Raises InfeasibleBudget if no cut could meet the budget, so that nobody trains in vain.
    """
    method = METHODS[options.method]
    if not isinstance(method, ChannelMethod):
        raise UserError(f"--method {options.method}: does not train towards sparsity")
    found = target(subject, method, options, budget, removed)
    allocate(found.space, _allocation(method, options), ratio=0.0, budget=None)  # refused now, not after the training
    return found


def _allocation(method: Method, options: CutOptions) -> str:
    """What ``auto`` means; UserError if there is no choice, or if the scores could not be compared as it needs."""
    if options.allocation != "auto" and sparsity_of(options.method).select is not None:
        raise UserError(
            f"--allocation {options.allocation}: --method {options.method} says itself which channels go; leave it out"
        )
    allocation = method.allocation if options.allocation == "auto" else options.allocation
    if allocation not in BY_LAYER:
        return allocation
    if options.normalize:
        raise UserError(
            f"--normalize: gives all layers the same mean score but for their widths, by which allocation {allocation} "
            "would share out the budget; leave it out"
        )
    if isinstance(method, ChannelMethod) and method.relative:
        raise UserError(
            f"--allocation {allocation}: shares the budget out by layers' mean scores, and those of --method "
            f"{options.method} are relative to their layer's; use another method, e.g. bn-scale or slimming"
        )
    return allocation
