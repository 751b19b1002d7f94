"""The members of a cascade are trained for what each will keep and get; they stay as they were if that is no better."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn

from hybridprune.config import RlConfig
from hybridprune.engine.compiler import Switch
from hybridprune.engine.fit import Fit
from hybridprune.engine.modes import kept_modes
from hybridprune.engine.parallel import gather
from hybridprune.engine.progress import Progress, Validation
from hybridprune.errors import UserError
from hybridprune.models.cascade import Cascade
from hybridprune.models.cascade_spec import CascadeSpec
from hybridprune.models.copies import copied
from hybridprune.models.trunk import run_until
from hybridprune.precision import Precision, full_precision
from hybridprune.processes import json_from_first
from hybridprune.routing.fit_cascade import MemberLogits
from hybridprune.routing.member_loss import kd_shares_of
from hybridprune.routing.member_training import MemberTraining
from hybridprune.routing.stopping import stop_macs
from hybridprune.stages.images import RunImages
from hybridprune.stages.result import load_selected
from hybridprune.stages.setup import StageSetup, placed
from hybridprune.stages.start import saved_progress
from hybridprune.store.run_folder import RunFolder

CrossFitted = Callable[[MemberLogits], float]
"""The accuracy on validation by gates that are fitted for these members, each half by those of the other half."""


def to_train(setup: StageSetup[RlConfig], paths: Sequence[object]) -> StageSetup[RlConfig]:
    """The setup with the members that are to be trained: copies, with the trunk that ``--trunk`` asks for.

    The members lie at ``paths``. UserError if the first two cannot share such a trunk.
    """
    trunk, net = setup.config.cascade.trunk, cast(Cascade, setup.net)
    network = cast(CascadeSpec, setup.spec.network)
    members = [copied(member) for member in net.members]
    if trunk:
        network = dataclasses.replace(network, trunks=(0, trunk, *(0 for _ in members[2:])))
        try:
            joined = network.joined(members)
        except ValueError as error:
            raise UserError(f"--trunk {trunk}: {error}") from error
        image = torch.zeros(1, 3, setup.spec.input_size, setup.spec.input_size, device=setup.device)
        with torch.no_grad(), kept_modes(net):
            net.eval()
            first, second = (list(run_until(member, image, trunk)[0].shape[1:]) for member in net.members[:2])
        if first != second:
            raise UserError(
                f"--trunk {trunk}: before its block {trunk} {paths[0]} has features {first}, {paths[1]} has {second}; "
                "choose a block before which both have the same"
            )
    else:
        joined = network.joined(members)
    spec = dataclasses.replace(setup.spec, network=network)
    return placed(setup.invocation, spec, setup.images, joined, setup.parent)


def train_members(
    given: StageSetup[RlConfig], candidate: StageSetup[RlConfig], folder: RunFolder, accuracy: CrossFitted
) -> Progress:
    """Train the members of ``candidate``, resumably, and leave it with the best ones on validation.

    The policy, and the teacher, is the cascade of ``given``, whose gates are fitted.
    """
    options, config, device = given.config.stage, given.config, given.device
    net, policy = cast(Cascade, candidate.net), cast(Cascade, given.net)
    precision = Precision.of(config.optim.precision, device)
    own = Switch(precision(net.own_logits))
    objective = MemberTraining(
        policy=policy.eval(),
        learn_from=own,
        teach=precision(policy.own_logits),
        kd_shares=kd_shares_of(len(net.members), config.cascade.kd_small, config.cascade.kd_large).to(device),
        temperature=options.kd_temperature,
        floor=config.cascade.weight_floor,
    )

    def validate(_: Cascade) -> Validation:
        said = validation_logits(candidate)
        found = accuracy(said) if bool(said.logits.isfinite().all()) else math.nan
        return Validation(found, {"accuracy": found})

    progress, state = saved_progress(folder)
    if state is None:
        _meet_trunk(net, candidate.images)
        folder.check_weights(candidate.spec, net)
    shared = tuple(f"{name}." for name in net.trunk_modules)
    fit = Fit(
        run=folder,
        net=net,
        objective=objective,
        batches=candidate.images.training("members"),
        validate=validate,
        optim=config.optim,
        epochs=options.epochs,
        device=device,
        log_interval=config.run.log_interval,
        save_every=config.run.save_every,
        compile=config.compiler.compile,
        switch=own,
        frozen=[name for name, _ in net.named_parameters() if name.startswith(("gate.", *shared))],
        train_mode=_train if options.batchnorm == "trained" else nn.Module.eval,
        sync_batchnorm=config.optim.sync_batchnorm,
    )
    progress = fit(progress, state)
    load_selected(net, folder)
    return progress


def outcome(folder: RunFolder, progress: Progress, before: float) -> dict[str, Any]:
    """The training in result.json: whether its members are kept, and the accuracies on validation that decide it."""
    lines = json_from_first(folder.read_metrics)
    found = [line["validation_accuracy"] for line in lines if line["epoch"] > 0]
    after = max((accuracy for accuracy in found if accuracy is not None), default=None)
    kept = progress.best_epoch > 0 and progress.best_score > before
    return {"kept": kept, "accuracy_before": before, "accuracy_trained": after}


@torch.no_grad()
@full_precision()
def validation_logits(setup: StageSetup[RlConfig]) -> MemberLogits:
    """The own logits of all members for the validation images, in fp32."""
    net, batches = cast(Cascade, setup.net), setup.images.validation()
    found: list[torch.Tensor] = []
    labels: list[torch.Tensor] = []
    with kept_modes(net):
        net.eval()
        for batch in batches:
            found.append(net.own_logits(batch.images).transpose(0, 1).cpu())
            labels.append(batch.labels.cpu())
    share = batches.share
    logits, ids = (gather(torch.cat(each), share.start, share.whole) for each in (found, labels))
    return MemberLogits(logits.transpose(0, 1), ids, stop_macs(setup.cost))


def _meet_trunk(net: Cascade, images: RunImages) -> None:
    """Re-estimate the BatchNorm statistics of what goes on from another network's trunk, whose own ones stay."""
    if not net.shares_trunk:
        return
    trunk = {name: copied(net.get_submodule(name)).state_dict() for name in net.trunk_modules}
    images.recalibrate(net.members[0])
    for name, state in trunk.items():
        net.get_submodule(name).load_state_dict(state)


def _train(net: Cascade) -> None:
    """Training mode, but for what members share: that stays as it is, its BatchNorm statistics included."""
    net.train()
    for name in net.trunk_modules:
        net.get_submodule(name).eval()
