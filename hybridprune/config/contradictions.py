"""Options that are each valid and contradict each other, whatever the network and the images are."""

from __future__ import annotations

from hybridprune.config.options import PruneConfig, RlConfig, SpConfig
from hybridprune.errors import UserError


def refuse_contradictions(config: SpConfig | PruneConfig | RlConfig) -> None:
    """Raise UserError, naming the flags and a way out, if options of ``config`` contradict each other."""
    if isinstance(config, SpConfig):
        _refuse_in_training(config)
    elif isinstance(config, RlConfig):
        _refuse_in_routing(config)


def _refuse_in_training(config: SpConfig) -> None:
    if config.stage.epochs == 0 and config.stage.weights is None:
        raise UserError("--epochs 0: nothing is learnt; name a trained network with --weights, or give at least 1")


def _refuse_in_routing(config: RlConfig) -> None:
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
    if options.target_flops is None and options.gate_start == "subset":
        raise UserError("--gate_start subset: needs the budget that it has to meet; give --target_flops as well")
    if options.target_flops is not None and options.reward_scale == 0:
        raise UserError("--alpha 0: a budget adapts it by factors; give a positive start, e.g. 0.1")
