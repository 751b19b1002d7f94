"""Stage 3: fine-tune the gates with REINFORCE, trading FLOPs against accuracy image by image."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from hybridprune.config import Invocation, RlConfig, resolve, to_json
from hybridprune.data import EvalBatches
from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.fit import Fit, Validation
from hybridprune.errors import UserError
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import gated_networks
from hybridprune.routing.policy_gradient import PolicyGradient
from hybridprune.stages.common import (
    Images,
    Parent,
    describe,
    device_of,
    finish,
    load_images,
    open_run,
    saved_progress,
    show_plan,
    show_result,
    to_device,
)
from hybridprune.store.run_folder import RunFolder, load_weights

DESCRIPTION = "Stage 3: fine-tune the gates with REINFORCE on the statically pruned network."


def main(argv: Sequence[str]) -> None:
    """The command ``main_rl_prune.py``."""
    invocation = resolve(RlConfig(), argv, prog="main_rl_prune.py", description=DESCRIPTION)
    if invocation.print_config:
        print(json.dumps(to_json(invocation.config), indent=2))
        return
    run(invocation)


def run(invocation: Invocation[RlConfig]) -> dict[str, Any] | None:
    """Fine-tune, select on validation, measure once on test; returns the result (None for a dry run)."""
    config = invocation.config
    device = device_of(config.run.device)
    dataset = load_images(config.data)
    wanted = describe("rl", dataset, config.data.resize, config.network)
    parent = Parent.load(config, wanted, "prune", also=("sp", "rl"))
    if parent.net.num_gates == 0:
        raise UserError(
            f"--network {config.network.network}: has no residual blocks to skip, hence no gates; "
            f"use {', '.join(gated_networks())}"
        )
    spec = dataclasses.replace(wanted, network=parent.spec.network, mean=parent.spec.mean, std=parent.spec.std)
    images = Images.of(dataset, parent.split(), config, device)
    net = to_device(parent.net, device, config.optim.channels_last)
    cost = count(net, spec.input_size)
    options = config.stage
    if invocation.dry_run:
        steps = len(images.training("rl"))
        show_plan("rl", spec, images, cost, [f"{options.epochs} epochs of {steps} steps on {device}"])
        return None

    folder, spec, _ = open_run(invocation, spec)
    if folder.finished:
        result = folder.read_json("result.json")
        show_result(folder, result)
        return result
    folder.write_json("split.json", images.split.to_json())
    progress, state = saved_progress(folder)
    fit = Fit(
        run=folder,
        net=net,
        objective=PolicyGradient(net, cost, options, images=len(dataset.train), seed=config.run.seed, device=device),
        batches=images.training("rl"),
        validate=lambda candidate: greedy_return(candidate, images.validation(), cost, options.reward_scale),
        optim=config.optim,
        epochs=options.epochs,
        device=device,
        log_interval=config.run.log_interval,
        gate_lr_factor=options.gate_lr_factor,
        gate_grad_norm=options.gate_grad_norm,
        # BatchNorm statistics are frozen: sampled routes would corrupt them.
        train_mode=nn.Module.eval,
    )
    progress = fit(progress, state)
    load_weights(net, folder.model_file)
    recalibrated = _recalibrate_if_better(folder, net, images, cost, options.reward_scale)
    extra = {"batchnorm_recalibrated": recalibrated}
    result = finish(folder, spec, config, net, images, progress, options.epochs, parent, extra)
    show_result(folder, result)
    return result


def greedy_return(net: GatedNetwork, batches: EvalBatches, cost: NetworkCost, reward_scale: float) -> Validation:
    """The mean undiscounted return of the greedy policy, which selects in this stage."""
    routed = evaluate(net, batches, "executed")
    rates = routed.block_rates
    saved = sum(share * (1 - rate) for share, rate in zip(cost.block_shares, rates, strict=True))
    score = reward_scale * saved - routed.loss
    share = cost.expected_macs(rates) / cost.backbone_macs
    metrics = {"return": score, "accuracy": routed.accuracy, "loss": routed.loss, "flops_share": share}
    return Validation(score, metrics)


def _recalibrate_if_better(
    folder: RunFolder, net: GatedNetwork, images: Images, cost: NetworkCost, reward_scale: float
) -> bool:
    """Re-estimate the BatchNorm statistics of ``net`` for its new routes; keep them if validation does not object."""
    candidate = copy.deepcopy(net)
    images.recalibrate(candidate)
    before = greedy_return(net, images.validation(), cost, reward_scale).score
    if greedy_return(candidate, images.validation(), cost, reward_scale).score < before:
        return False
    net.load_state_dict(candidate.state_dict())
    folder.save_weights("model.safetensors", net)
    return True
