"""Stage 1: train a gated network with straight-through gate decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridprune.config import Invocation, SpConfig
from hybridprune.data import EvalBatches
from hybridprune.engine.draws import Draws
from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.fit import Fit
from hybridprune.engine.objective import Supervised
from hybridprune.engine.progress import Validation
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.precision import full_precision
from hybridprune.stages.command import stage_command
from hybridprune.stages.console import show_plan
from hybridprune.stages.result import finish, load_selected, show_result
from hybridprune.stages.setup import StageSetup
from hybridprune.stages.start import open_run, saved_progress

DESCRIPTION = "Stage 1: train a gated network (cross-entropy plus a FLOPs-weighted rate penalty)."


def main(argv: Sequence[str], prog: str = "main_sp.py") -> None:
    """The command, typed as ``prog``."""
    stage_command(SpConfig(), run, argv, prog=prog, description=DESCRIPTION)


@full_precision()
def run(invocation: Invocation[SpConfig]) -> dict[str, Any] | None:
    """Train, select on validation, measure once on test; returns the result (None for a dry run)."""
    config = invocation.config
    setup = StageSetup.fresh(invocation)
    images, net, cost, device = setup.images, setup.gated, setup.cost, setup.device
    if invocation.dry_run:
        steps = len(images.training("sp"))
        show_plan(setup.spec, images, cost, [f"{config.stage.epochs} epochs of {steps} steps on {device}"])
        return None

    with open_run(setup) as (folder, setup, _):
        if folder.finished:
            return show_result(folder, folder.read_json("result.json"))
        folder.write_json("split.json", images.split.to_json())
        progress, state = saved_progress(folder)
        if state is None:
            folder.check_weights(setup.spec, net)
        noise = Draws(len(images.dataset.train), net.num_gates, config.run.seed, "gate noise")
        fit = Fit(
            run=folder,
            net=net,
            objective=Supervised.of(
                cost, config.stage.rate_penalty, device, gating=config.gating, draws=noise, loss=config.loss
            ),
            batches=images.training("sp"),
            validate=lambda candidate: routed_accuracy(candidate, images.validation(), cost),
            optim=config.optim,
            epochs=config.stage.epochs,
            device=device,
            log_interval=config.run.log_interval,
            save_every=config.run.save_every,
            compile=config.compiler.compile,
            sync_batchnorm=config.optim.sync_batchnorm,
            ema_decay=config.averaging.ema_decay,
        )
        progress = fit(progress, state)
        load_selected(net, folder)
        return show_result(folder, finish(folder, setup, progress, config.stage.epochs, {}))


def routed_accuracy(net: GatedNetwork, batches: EvalBatches, cost: NetworkCost) -> Validation:
    """The accuracy as routed by the gates, which selects in the supervised stages."""
    routed = evaluate(net, batches, "masked")
    expected = cost.expected_macs(routed.block_rates)
    metrics = {"accuracy": routed.accuracy, "loss": routed.loss, "flops_share": expected / cost.backbone_macs}
    return Validation(routed.accuracy, metrics)
