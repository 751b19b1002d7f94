"""Plans by the name of a method, for any network: the one path that all methods share."""

from __future__ import annotations

from hybridprune.config import CurvatureOptions, CutOptions, SparsityOptions
from hybridprune.config.registry import Extension
from hybridprune.engine.modes import kept_modes
from hybridprune.errors import UserError
from hybridprune.precision import full_precision
from hybridprune.pruning.allocate import BY_LAYER, allocate
from hybridprune.pruning.budget.space import Budget
from hybridprune.pruning.clock import NetworkClock
from hybridprune.pruning.method import BranchMethod, ChannelMethod, DirectionMethod, Method
from hybridprune.pruning.methods import find
from hybridprune.pruning.plan import Plan
from hybridprune.pruning.plan_branches import branch_target, plan_branches
from hybridprune.pruning.plan_channels import Wish, plan_channels, target
from hybridprune.pruning.plan_directions import plan_directions
from hybridprune.pruning.prunable import PrunableNetwork
from hybridprune.pruning.sparse_training.protocol import Removal, Sparsity, Target


@full_precision()
def make_plan(
    network: PrunableNetwork,
    options: CutOptions,
    curvature: CurvatureOptions,
    sparsity: SparsityOptions | None = None,
    budget: Budget | None = None,
    removed: Removal | None = None,
    clock: NetworkClock | None = None,
) -> Plan:
    """Score all units of the network by the method that the options name; UserError if it could cut nothing.

    ``clock`` tells the times of a budget that bounds them. ``removed`` is what an earlier plan selected, which
    then decides alone unless the method selects again. A method that selects by itself raises InfeasibleBudget here,
    and not when the plan is asked to allocate.
    """
    method = find(options.method)
    allocation = _allocation(method, options)
    with kept_modes(network.model):
        network.model.eval()  # in training mode the mere look at a weight under spectral_norm would change it
        if isinstance(method, DirectionMethod):
            return plan_directions(network, method, allocation, options, curvature, budget, clock)
        if isinstance(method, BranchMethod):
            return plan_branches(network, allocation, options)
        wish = Wish(sparsity or SparsityOptions(), budget, removed, clock)
        return plan_channels(network, method, allocation, options, curvature, wish)


def sparsity_of(method: str | Extension) -> Sparsity:
    """The trainings and the selection of a method before it cuts; empty if it has none."""
    found = find(method)
    return (None if isinstance(found, DirectionMethod) else found.sparsity) or Sparsity()


def sparse_target(network: PrunableNetwork, options: CutOptions, budget: Budget | None, removed: Removal) -> Target:
    """The network as what trains it towards sparsity sees it; UserError if it has no channels to remove.

    Raises InfeasibleBudget if no cut could meet the budget, so that nobody trains in vain.
    """
    method = find(options.method)
    if isinstance(method, DirectionMethod):
        raise UserError(f"--method {options.method}: does not train towards sparsity")
    if isinstance(method, BranchMethod):
        found = branch_target(network, options, budget)
    else:
        found = target(network, method, options, budget, removed)
    allocate(found.space, _allocation(method, options), ratio=0.0, budget=None)  # refused now, not after the training
    return found


def _allocation(method: Method, options: CutOptions) -> str:
    """What ``auto`` means; UserError if there is no choice, or if the scores could not be compared as it needs."""
    if options.allocation != "auto" and sparsity_of(options.method).select is not None:
        raise UserError(
            f"--allocation {options.allocation}: --method {options.method} says itself which channels go; leave it out"
        )
    if options.target_effective is not None and sparsity_of(options.method).select is not None:
        raise UserError(
            f"--target_effective {options.target_effective}: --method {options.method} says itself which channels go; "
            "use one that ranks them, e.g. slimming"
        )
    allocation = method.allocation if options.allocation == "auto" else options.allocation
    if isinstance(method, BranchMethod) and options.normalize:
        raise UserError(
            f"--normalize: the scores of --method {options.method} are shares of their group's energy already; leave "
            "it out"
        )
    if allocation not in BY_LAYER:
        return allocation
    if options.normalize:
        raise UserError(
            f"--normalize: gives all layers the same mean score but for their widths, by which allocation {allocation} "
            "would share out the budget; leave it out"
        )
    if isinstance(method, BranchMethod) or (isinstance(method, ChannelMethod) and method.relative):
        raise UserError(
            f"--allocation {allocation}: shares the budget out by layers' mean scores, and those of --method "
            f"{options.method} are relative to their layer's; use another method, e.g. bn-scale or slimming"
        )
    return allocation
