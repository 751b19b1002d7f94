"""Stage 3: fine-tune the gates, trading FLOPs against accuracy image by image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from hybridprune.config import Invocation, RlConfig
from hybridprune.data import EvalBatches
from hybridprune.engine.compiler import Switch
from hybridprune.engine.distill import Distillation, plainly
from hybridprune.engine.fit import Fit
from hybridprune.engine.objective import Objective
from hybridprune.engine.parallel import share_weights
from hybridprune.engine.progress import Validation
from hybridprune.errors import UserError
from hybridprune.models.architectures import gated_networks
from hybridprune.models.gates import UNGATED
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.precision import Precision, full_precision
from hybridprune.routing.gumbel import GumbelRouting
from hybridprune.routing.loss import RoutingTerms
from hybridprune.routing.policy_gradient import PolicyGradient
from hybridprune.routing.price import Price
from hybridprune.routing.rollout import Rollout, rollout
from hybridprune.stages.cascade import run_cascade
from hybridprune.stages.command import stage_command
from hybridprune.stages.console import say, show_plan
from hybridprune.stages.flops_budget import budget_of, meet_budget
from hybridprune.stages.gates_from_subset import gates_from_subset
from hybridprune.stages.images import RunImages
from hybridprune.stages.parent import Parent
from hybridprune.stages.result import finish, load_selected, show_result
from hybridprune.stages.routed_score import routed_score
from hybridprune.stages.setup import StageSetup, to_device
from hybridprune.stages.start import open_run, saved_progress
from hybridprune.store.run_folder import RunFolder

DESCRIPTION = (
    "Stage 3: fine-tune the gates of the pruned network, by REINFORCE or, with --estimator gumbel, by relaxation."
)

Score = Callable[[GatedNetwork, EvalBatches], Validation]


def main(argv: Sequence[str], prog: str = "main_rl_prune.py") -> None:
    """The command, typed as ``prog``."""
    stage_command(RlConfig(), run, argv, prog=prog, description=DESCRIPTION)


@full_precision()
def run(invocation: Invocation[RlConfig]) -> dict[str, Any] | None:
    """Fine-tune, select on validation, measure once on test; returns the result (None for a dry run)."""
    if invocation.config.cascade.routing == "cascade":
        return run_cascade(invocation)
    options = invocation.config.stage
    setup = StageSetup.descendant(invocation, "rl", of="prune", also=("sp", "rl"))
    images, net, cost = setup.images, setup.gated, setup.cost
    if setup.spec.gated.gate == UNGATED:
        raise UserError(
            f"--gate {UNGATED}: the parent has no gates to decide by; join it to others with --routing cascade, or "
            "train one with gates"
        )
    if net.num_gates == 0:
        raise UserError(
            f"--network {invocation.config.network.network}: has no residual blocks to skip, hence no gates; "
            f"use {', '.join(gated_networks())}"
        )
    budget = budget_of(options, cost, setup.dense["macs"])
    if invocation.dry_run:
        steps = len(images.training("rl"))
        show_plan(setup.spec, images, cost, [f"{options.epochs} epochs of {steps} steps on {setup.device}"])
        return None
    distillation = _distillation(setup)
    score = partial(routed_score, cost=cost, reward_scale=options.reward_scale, budget=budget)
    with open_run(setup) as (folder, setup, _):
        if folder.finished:
            return show_result(folder, folder.read_json("result.json"))
        folder.write_json("split.json", images.split.to_json())
        progress, state = saved_progress(folder)
        if state is None:
            folder.check_weights(setup.spec, net)
            net.gate.sharpen(options.gate_sharpen)
        price = _price(setup, budget, starts=state is None)
        progress = _training(setup, folder, score, price, distillation)(progress, state)
        load_selected(net, folder)
        # With --train gates the backbone's statistics stay as well: what is shipped is the parent with other gates.
        recalibrated = options.train != "gates" and _recalibrate_if_better(net, images, score)
        extra: dict[str, Any] = {"batchnorm_recalibrated": recalibrated}
        if budget is not None:
            # `gumbel` has the budget in its loss, and no price.
            alpha = float(price.value) if options.estimator == "reinforce" else None
            extra["target"] = {**meet_budget(net, images, cost, budget, alpha), "price": alpha}
        return show_result(folder, finish(folder, setup, progress, options.epochs, extra))


def _distillation(setup: StageSetup[RlConfig]) -> Distillation | None:
    """Distillation from the network of stage 1, if it is asked for; UserError if its run is gone."""
    options, optim = setup.config.stage, setup.config.optim
    if options.kd_weight == 0:
        return None
    assert setup.parent is not None
    teacher = to_device(_dense(setup.parent), setup.device, optim.channels_last)
    forward = Precision.of(optim.precision, setup.device)(plainly)
    return Distillation.of(teacher, options.kd_weight, options.kd_temperature, forward=forward)


def _dense(parent: Parent) -> GatedNetwork:
    """The network of stage 1 that the parent descends from; UserError if its run is gone."""
    try:
        *_, eldest = parent.run.lineage()
    except UserError as error:
        raise UserError(f"--kd_weight: the teacher cannot be found: {error}, or distil nothing") from error
    return eldest.load_gated()[0]


def _price(setup: StageSetup[RlConfig], budget: float | None, starts: bool) -> Price:
    """The price of FLOPs that training begins with. If it ``starts``, the gates are first put where it starts from."""
    options, cost = setup.config.stage, setup.cost
    first = options.reward_scale
    if options.gate_start == "subset" and starts:
        assert budget is not None
        subset, first = gates_from_subset(setup.gated, cost, budget, setup.images, first)
        kept, gates = int(subset.route.sum()), setup.gated.num_gates
        say(f"gates start from {kept} of {gates} gated blocks, alpha from {first:.3f}")
    target = None if budget is None else budget / cost.backbone_macs
    return Price(first, target, options.price_step, setup.device)


def _training(
    setup: StageSetup[RlConfig], folder: RunFolder, score: Score, price: Price, distillation: Distillation | None
) -> Fit[GatedNetwork]:
    """The training of this stage; validation tells ``price`` what share of the FLOPs is spent."""
    config, options, net, images = setup.config, setup.config.stage, setup.gated, setup.images
    # Where the backbone learns from rollouts there is no other pass to compile.
    rollouts = Switch(rollout) if options.estimator == "reinforce" and options.batchnorm == "frozen" else None

    def validate(candidate: GatedNetwork) -> Validation:
        found = score(candidate, images.validation())
        price.validated(found.metrics["flops_share"])
        return found

    return Fit(
        run=folder,
        net=net,
        objective=_objective(setup, price, distillation, learn_from=rollouts or rollout),
        batches=images.training("rl"),
        validate=validate,
        optim=config.optim,
        epochs=options.epochs,
        device=setup.device,
        log_interval=config.run.log_interval,
        save_every=config.run.save_every,
        compile=config.compiler.compile,
        switch=rollouts,
        frozen=[name for name, _ in net.named_parameters() if name.startswith("backbone.")]
        if options.train == "gates"
        else (),
        gate_lr_factor=options.gate_lr_factor,
        gate_grad_norm=options.gate_grad_norm,
        train_mode=nn.Module.eval if options.batchnorm == "frozen" else nn.Module.train,
        sync_batchnorm=config.optim.sync_batchnorm,
    )


def _objective(
    setup: StageSetup[RlConfig], price: Price, distillation: Distillation | None, learn_from: Callable[..., Rollout]
) -> Objective:
    """The estimator that was asked for."""
    config, options, device = setup.config, setup.config.stage, setup.device
    precision = Precision.of(config.optim.precision, device)
    terms = RoutingTerms.of(setup.cost, options, price, device, distillation, precision)
    images, seed = len(setup.images.dataset.train), config.run.seed
    if options.estimator == "gumbel":
        return GumbelRouting(terms, images=images, seed=seed)
    return PolicyGradient(setup.gated, terms, images=images, seed=seed, learn_from=learn_from)


def _recalibrate_if_better(net: GatedNetwork, images: RunImages, score: Score) -> bool:
    """Re-estimate the BatchNorm statistics of ``net`` for its new routes; keep them if validation does not object."""
    candidate = copy.deepcopy(net)
    images.recalibrate(candidate)
    share_weights(candidate)
    if score(candidate, images.validation()).score < score(net, images.validation()).score:
        return False
    net.load_state_dict(candidate.state_dict())
    return True
