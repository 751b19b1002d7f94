"""Stage 2: cut by a method of pruning/, fine-tune, and so on until the last iteration."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hybridprune.config import Invocation, PruneConfig, resolve
from hybridprune.engine.distill import Distillation
from hybridprune.engine.draws import Draws
from hybridprune.engine.fit import Fit, Progress
from hybridprune.engine.freeze import rotation_parameters
from hybridprune.engine.objective import Supervised
from hybridprune.engine.parallel import share_weights
from hybridprune.engine.run_data import load_images
from hybridprune.errors import UserError
from hybridprune.measure.cost import count
from hybridprune.models.edits import edits_between
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.processes import is_first, json_from_first
from hybridprune.pruning.proposal import Proposal
from hybridprune.pruning.space import Cost
from hybridprune.stages.common import (
    Images,
    Parent,
    describe,
    device_for,
    finish,
    load_selected,
    open_run,
    saved_progress,
    say,
    show_config,
    show_plan,
    show_result,
    to_device,
)
from hybridprune.stages.cutting import CutState, Cutting, layer_channels, plan_lines
from hybridprune.stages.sp import routed_accuracy
from hybridprune.store.run_folder import RunFolder, RunSpec

DESCRIPTION = "Stage 2: static pruning by a method of your choice, with fine-tuning."


def main(argv: Sequence[str]) -> None:
    """The command ``main_prune.py``; it reads ``config.json`` when no other file is named."""
    invocation = resolve(PruneConfig(), argv, prog="main_prune.py", description=DESCRIPTION, config_path="config.json")
    if invocation.print_config:
        show_config(invocation)
        return
    run(invocation)


def run(invocation: Invocation[PruneConfig]) -> dict[str, Any] | None:
    """Prune, fine-tune, select on validation, measure once on test; returns the result (None for a dry run)."""
    config = invocation.config
    device = device_for(config)
    dataset = load_images(config.data)
    wanted = describe("prune", dataset, config.data.resize, config.network)
    parent = Parent.load(config, wanted, "sp", also=("prune",))
    spec = dataclasses.replace(wanted, network=parent.spec.network, mean=parent.spec.mean, std=parent.spec.std)
    images = Images.of(dataset, parent.split(), config, device)
    net = to_device(parent.net, device, config.optim.channels_last)
    before = count(net, spec.input_size)
    cutting = Cutting(
        config,
        images,
        parent.result["dense"],
        Cost(before.backbone_macs, before.backbone_params),
        layer_channels(unpruned(spec.network)),
    )
    stage = _Stage(config, images, cutting, Distillation.of(net, config.stage.kd_weight, config.stage.kd_temperature))
    if invocation.dry_run:
        proposal = cutting.propose(net, 0)
        kept, _ = cutting.decide(proposal, 0, CutState())
        show_plan("prune", spec, images, before, plan_lines(proposal, kept))
        return None
    return _prune(invocation, stage, spec, net, parent)


def unpruned(network: NetworkSpec) -> GatedNetwork:
    """The architecture before any edit, on the meta device."""
    with torch.device("meta"):
        return dataclasses.replace(network, edits=()).build()


def _prune(
    invocation: Invocation[PruneConfig], stage: _Stage, spec: RunSpec, net: GatedNetwork, parent: Parent
) -> dict[str, Any]:
    config, images = invocation.config, stage.images
    folder, spec, resumed = open_run(invocation, spec)
    if folder.finished:
        result = folder.read_json("result.json")
        show_result(folder, result)
        return result
    folder.write_json("split.json", images.split.to_json())
    progress, saved = saved_progress(folder)
    if saved is None:
        try:
            spec, fit = stage.begin(folder, spec, net, progress, CutState())
        except UserError:
            if not resumed and is_first():
                # A plan that cannot be made leaves nothing behind that would stand in the way of the next try.
                shutil.rmtree(folder.path)
            raise
    else:
        extra = json.loads(saved["extra"])
        network = NetworkSpec.from_json({**spec.network.to_json(), "edits": extra["edits"]})
        spec, net = dataclasses.replace(spec, network=network), stage.place(network.build())
        folder.write_json("spec.json", spec.to_json())
        fit = stage.fit(folder, spec, net, progress.phase, CutState(**extra["cut"]))
    while True:
        progress = fit(progress, saved)
        saved, state = None, CutState(**fit.extra_state["cut"])
        load_selected(fit.net, folder)
        if progress.phase + 1 >= stage.cutting.phases:
            break
        progress = progress.next_phase()
        spec, fit = stage.begin(folder, spec, fit.net, progress, state)
    more = {"iterations": config.stage.max_iter, "method": config.cut.method}
    result = finish(folder, spec, config, fit.net, images, progress, fit.epochs, parent, more)
    show_result(folder, result)
    return result


@dataclass(frozen=True)
class _Stage:
    config: PruneConfig
    images: Images
    cutting: Cutting
    distillation: Distillation | None

    def place(self, net: GatedNetwork) -> GatedNetwork:
        """The network on this process's device."""
        return to_device(net, self.images.device, self.config.optim.channels_last)

    def begin(
        self, folder: RunFolder, spec: RunSpec, net: GatedNetwork, progress: Progress, state: CutState
    ) -> tuple[RunSpec, Fit]:
        """Cut ``net`` in place for this phase and save that as the start of its fine-tuning."""
        proposal = self.cutting.propose(net, progress.phase)
        # The first process's plan and weights, should others have rounded differently.
        kept, record = json_from_first(lambda: self._decide(proposal, progress.phase, state))
        state = CutState(**record)
        proposal.apply(kept)
        self.images.recalibrate(net)
        share_weights(net)
        network = dataclasses.replace(spec.network, edits=edits_between(unpruned(spec.network), net))
        spec = dataclasses.replace(spec, network=network)
        fit = self.fit(folder, spec, net, progress.phase, state)
        fit.save(progress)
        folder.write_json("spec.json", spec.to_json())
        cost, dense = count(net, spec.input_size), self.cutting.dense
        say(
            f"cut {progress.phase + 1}/{self.cutting.phases}: {cost.backbone_macs / dense['macs']:.1%} of the dense "
            f"FLOPs, {cost.backbone_params / dense['params']:.1%} of the parameters; {fit.epochs} epochs"
        )
        return spec, fit

    def _decide(self, proposal: Proposal, phase: int, state: CutState) -> tuple[list[int], dict[str, Any]]:
        kept, after = self.cutting.decide(proposal, phase, state)
        return kept, after.to_json()

    def fit(self, folder: RunFolder, spec: RunSpec, net: GatedNetwork, phase: int, state: CutState) -> Fit:
        """The fine-tuning of a cut network."""
        config, options = self.config, self.config.stage
        cost = count(net, spec.input_size)
        noise = Draws(len(self.images.dataset.train), net.num_gates, config.run.seed, "gate noise", phase)
        compression = 1 - cost.backbone_params / self.cutting.dense["params"]
        epochs = options.epochs_start + (options.epochs_end - options.epochs_start) * compression
        return Fit(
            run=folder,
            net=net,
            objective=Supervised.of(
                cost, options.rate_penalty, self.images.device, self.distillation, config.gating, noise
            ),
            batches=self.images.training("prune"),
            validate=lambda candidate: routed_accuracy(candidate, self.images.validation(), cost),
            optim=config.optim,
            epochs=max(0, round(epochs)),
            device=self.images.device,
            log_interval=config.run.log_interval,
            compile=config.compiler.compile,
            sync_batchnorm=config.optim.sync_batchnorm,
            lr_factor=self.cutting.lr_factor(phase, compression),
            frozen=rotation_parameters(net) if options.fix_rotation else (),
            extra_state={"edits": [edit.to_json() for edit in spec.network.edits], "cut": state.to_json()},
        )
