"""Stage 3: fine-tune the gates, trading FLOPs against accuracy image by image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import nn

from hybridprune.config import Invocation, RlConfig, RoutingOptions, resolve
from hybridprune.data import Batch, EvalBatches
from hybridprune.engine.compiler import compiled
from hybridprune.engine.distill import Distillation, plainly
from hybridprune.engine.fit import Fit
from hybridprune.engine.parallel import share_weights
from hybridprune.engine.progress import Validation
from hybridprune.engine.threshold import operating_point, threshold_for
from hybridprune.errors import UserError
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import gated_networks
from hybridprune.precision import Precision, full_precision
from hybridprune.pruning.budget.space import target_macs
from hybridprune.routing.gumbel import GumbelRouting
from hybridprune.routing.loss import RoutingTerms
from hybridprune.routing.policy_gradient import PolicyGradient
from hybridprune.routing.price import TOLERANCE, Price, met
from hybridprune.routing.rollout import rollout
from hybridprune.routing.subset import Subset, start_from_subset
from hybridprune.stages.console import say, show_config, show_plan
from hybridprune.stages.images import RunImages
from hybridprune.stages.parent import Parent
from hybridprune.stages.result import finish, load_selected, show_result
from hybridprune.stages.setup import StageSetup, to_device
from hybridprune.stages.start import open_run, saved_progress

SEARCH_IMAGES = 2000
DESCRIPTION = "Stage 3: fine-tune the gates with REINFORCE on the statically pruned network."


def main(argv: Sequence[str]) -> None:
    """The command ``main_rl_prune.py``."""
    invocation = resolve(RlConfig(), argv, prog="main_rl_prune.py", description=DESCRIPTION)
    if invocation.print_config:
        show_config(invocation)
        return
    run(invocation)


@full_precision()
def run(invocation: Invocation[RlConfig]) -> dict[str, Any] | None:
    """Fine-tune, select on validation, measure once on test; returns the result (None for a dry run)."""
    config = invocation.config
    setup = StageSetup.descendant(invocation, "rl", of="prune", also=("sp", "rl"))
    images, net, cost, device, parent = setup.images, setup.net, setup.cost, setup.device, setup.parent
    assert parent is not None
    if net.num_gates == 0:
        raise UserError(
            f"--network {config.network.network}: has no residual blocks to skip, hence no gates; "
            f"use {', '.join(gated_networks())}"
        )
    options = config.stage
    if options.train == "gates" and options.batchnorm == "trained":
        raise UserError(
            "--batchnorm trained: changes the backbone's statistics, which --train gates leaves alone; "
            "use --batchnorm frozen"
        )
    if options.train == "gates" and options.estimator == "reinforce":
        if options.kd_weight > 0:
            raise UserError(
                "--kd_weight: distils the backbone, which --train gates leaves alone; leave it out, or use --estimator "
                "gumbel, whose gates learn from the loss as well"
            )
        if config.compiler.compile:
            raise UserError(
                "--compile: with --train gates all rollouts skip blocks, which does not compile; leave it out, or use "
                "--estimator gumbel"
            )
    budget = _budget(options, cost, parent)
    if options.gate_start == "subset" and budget is None:
        raise UserError("--gate_start subset: needs the budget that it has to meet; give --target_flops as well")
    if invocation.dry_run:
        steps = len(images.training("rl"))
        show_plan(setup.spec, images, cost, [f"{options.epochs} epochs of {steps} steps on {device}"])
        return None

    distillation, precision = None, Precision.of(config.optim.precision, device)
    if options.kd_weight > 0:
        teacher = to_device(_dense(parent), device, config.optim.channels_last)
        distillation = Distillation.of(teacher, options.kd_weight, options.kd_temperature, forward=precision(plainly))
    with open_run(setup) as (folder, setup, _):
        if folder.finished:
            result = folder.read_json("result.json")
            show_result(folder, result)
            return result
        folder.write_json("split.json", images.split.to_json())
        progress, state = saved_progress(folder)
        if state is None:
            folder.check_weights(setup.spec, net)
        first_price = options.reward_scale
        if options.gate_start == "subset" and state is None:
            assert budget is not None
            subset, first_price = gates_from_subset(net, cost, budget, images, first_price)
            blocks = f"{int(subset.route.sum())} of {net.num_gates} gated blocks"
            say(f"gates start from {blocks}, alpha from {first_price:.3f}")
        target = None if budget is None else budget / cost.backbone_macs
        price = Price(first_price, target, options.price_step, device)
        score = partial(routed_score, cost=cost, reward_scale=options.reward_scale, budget=budget)

        def validate(candidate: GatedNetwork) -> Validation:
            found = score(candidate, images.validation())
            price.validated(found.metrics["flops_share"])
            return found

        terms = RoutingTerms.of(cost, options, price, device, distillation, precision)
        # Where the backbone learns from rollouts there is no other pass to compile.
        compile_rollouts = (
            config.compiler.compile and options.estimator == "reinforce" and options.batchnorm == "frozen"
        )
        objective = (
            GumbelRouting(terms, images=len(images.dataset.train), seed=config.run.seed)
            if options.estimator == "gumbel"
            else PolicyGradient(
                net,
                terms,
                images=len(images.dataset.train),
                seed=config.run.seed,
                learn_from=compiled(rollout, device) if compile_rollouts else rollout,
            )
        )
        fit = Fit(
            run=folder,
            net=net,
            objective=objective,
            batches=images.training("rl"),
            validate=validate,
            optim=config.optim,
            epochs=options.epochs,
            device=device,
            log_interval=config.run.log_interval,
            save_every=config.run.save_every,
            compile=config.compiler.compile and not compile_rollouts,
            frozen=[name for name, _ in net.named_parameters() if name.startswith("backbone.")]
            if options.train == "gates"
            else (),
            gate_lr_factor=options.gate_lr_factor,
            gate_grad_norm=options.gate_grad_norm,
            train_mode=nn.Module.eval if options.batchnorm == "frozen" else nn.Module.train,
            sync_batchnorm=config.optim.sync_batchnorm,
        )
        progress = fit(progress, state)
        load_selected(net, folder)
        # With --train gates the backbone's statistics stay as well: what is shipped is the parent with other gates.
        recalibrated = options.train != "gates" and _recalibrate_if_better(net, images, score)
        extra: dict[str, Any] = {"batchnorm_recalibrated": recalibrated}
        if budget is not None:
            # `gumbel` has the budget in its loss, and no price.
            alpha = float(price.value) if options.estimator == "reinforce" else None
            extra["target"] = {**_meet(net, images, cost, budget, alpha), "price": alpha}
        result = finish(folder, setup, progress, options.epochs, extra)
        show_result(folder, result)
        return result


def search_images(images: RunImages) -> EvalBatches:
    """The training images that subsets of blocks are compared on."""
    return images.sample(SEARCH_IMAGES, images.eval_batch, "subset", shared=True)


def gates_from_subset(
    net: GatedNetwork, cost: NetworkCost, budget: float, images: RunImages, alpha: float
) -> tuple[Subset, float]:
    """Let the gates start from the best subset of blocks for ``budget`` MACs, gates counted.

    Gives that subset and the price of the whole backbone (nats) at which it pays, or ``alpha`` if none does.
    """
    subset = start_from_subset(net, cost, budget, search_images(images), images.training("lessons"))
    return subset, subset.price * cost.backbone_macs or alpha


def routed_score(
    net: GatedNetwork, batches: Iterable[Batch], cost: NetworkCost, reward_scale: float, budget: float | None = None
) -> Validation:
    """What selects in this stage, of the greedy policy: its mean undiscounted return.

    With a ``budget`` (MACs), the network that would be shipped is scored: minus the cross-entropy at the threshold that
    meets the budget (``budget_...`` in the metrics), and minus 10 nats per 100 % that even the nearest threshold misses
    beyond the 2 % that count as met. The price of FLOPs changes while training goes on, so returns cannot be compared.
    """
    own = operating_point(net, batches, cost, 0.0)
    routed = own.evaluation
    metrics = {"accuracy": routed.accuracy, "loss": routed.loss, "flops_share": own.macs / cost.backbone_macs}
    if budget is None:
        saved = sum(share * (1 - rate) for share, rate in zip(cost.block_shares, routed.block_rates, strict=True))
        score = reward_scale * saved - routed.loss
    else:
        point = threshold_for(net, batches, cost, budget, TOLERANCE / 2, own)
        score = -point.evaluation.loss - 10 * max(0.0, abs(point.macs / budget - 1) - TOLERANCE)
        metrics["budget_accuracy"] = point.evaluation.accuracy
        metrics["budget_flops_share"] = point.macs / cost.backbone_macs
    return Validation(score, {"score": score, **metrics})


def _budget(options: RoutingOptions, cost: NetworkCost, parent: Parent) -> float | None:
    """The MACs that ``--target_flops`` asks for; UserError for what skipping blocks cannot reach."""
    if options.target_flops is None:
        return None
    dense = parent.result["dense"]["macs"]
    budget = target_macs(options.target_flops, dense)
    floor = cost.expected_macs([0.0] * len(cost.block_macs))
    ceiling = cost.expected_macs([1.0] * len(cost.block_macs))
    if not floor <= budget <= ceiling:
        raise UserError(
            f"--target_flops {options.target_flops}: skipping blocks reaches {floor / dense:.4f} to "
            f"{ceiling / dense:.4f} of the dense FLOPs ({2 * floor:,.0f} to {2 * ceiling:,.0f}); choose a budget "
            "in between, or another --checkpoint_file"
        )
    if options.reward_scale == 0:
        raise UserError("--alpha 0: a budget adapts it by factors; give a positive start, e.g. 0.1")
    return budget


def _dense(parent: Parent) -> GatedNetwork:
    """The network of stage 1 that the parent descends from; UserError if its run is gone."""
    try:
        *_, eldest = parent.run.lineage()
    except UserError as error:
        raise UserError(f"--kd_weight: the teacher cannot be found: {error}, or distil nothing") from error
    return eldest.load_network()[0]


def _recalibrate_if_better(
    net: GatedNetwork, images: RunImages, score: Callable[[GatedNetwork, EvalBatches], Validation]
) -> bool:
    """Re-estimate the BatchNorm statistics of ``net`` for its new routes; keep them if validation does not object."""
    candidate = copy.deepcopy(net)
    images.recalibrate(candidate)
    share_weights(candidate)
    if score(candidate, images.validation()).score < score(net, images.validation()).score:
        return False
    net.load_state_dict(candidate.state_dict())
    return True


def _meet(
    net: GatedNetwork, images: RunImages, cost: NetworkCost, budget: float, alpha: float | None
) -> dict[str, Any]:
    """Shift the gates so that the expected FLOPs on validation are the budget's, as far as a threshold can do it.

    ``alpha`` is the price that training ended with, if there was one.
    """
    own = operating_point(net, images.validation(), cost, 0.0)
    if alpha is not None and own.macs < budget and not met(own.macs, budget):
        say(
            f"at the final alpha of {alpha:.4g} the gates spend only {own.macs / budget:.1%} of --target_flops (alpha "
            "can stop charging for FLOPs, not pay for them); a threshold raises that as far as it can"
        )
    point = threshold_for(net, images.validation(), cost, budget, TOLERANCE / 2, own)
    if point.threshold != 0:
        net.gate.shift(-point.threshold)
    reached = met(point.macs, budget)
    if not reached:
        say(
            f"warning: expected FLOPs are {point.macs / budget:.1%} of --target_flops, since the gates hardly tell "
            "images apart; train for more epochs, or with a higher --price_step, --exploration or --rate_bound"
        )
    return {"macs": budget, "validation_macs": point.macs, "met": reached, "threshold": point.threshold}
