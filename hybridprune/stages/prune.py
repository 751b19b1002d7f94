"""Stage 2: cut by a method of pruning/, fine-tune, and so on until the last iteration."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hybridprune.config import Invocation, PruneConfig, resolve, to_json
from hybridprune.engine.distill import Distillation
from hybridprune.engine.fit import Fit, Progress
from hybridprune.engine.freeze import rotation_parameters
from hybridprune.engine.objective import Supervised
from hybridprune.engine.processes import (
    local_device,
    process_group,
    receive_text,
    send_text,
    share_weights,
    world_size,
)
from hybridprune.errors import UserError
from hybridprune.measure.cost import count
from hybridprune.models.edits import edits_between
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.pruning.proposal import Proposal
from hybridprune.pruning.space import Cost
from hybridprune.stages.common import (
    Images,
    Parent,
    describe,
    device_of,
    finish,
    load_images,
    open_run,
    saved_progress,
    say,
    show_plan,
    show_result,
    to_device,
)
from hybridprune.stages.cutting import CutState, Cutting, layer_channels, plan_lines
from hybridprune.stages.sp import routed_accuracy
from hybridprune.store.run_folder import RunFolder, RunSpec, load_weights

DESCRIPTION = "Stage 2: static pruning by a method of your choice, with fine-tuning."


def main(argv: Sequence[str]) -> None:
    """The command ``main_prune.py``; it reads ``config.json`` when no other file is named."""
    invocation = resolve(PruneConfig(), argv, prog="main_prune.py", description=DESCRIPTION, config_path="config.json")
    if invocation.print_config:
        print(json.dumps(to_json(invocation.config), indent=2))
        return
    run(invocation)


def run(invocation: Invocation[PruneConfig]) -> dict[str, Any] | None:
    """Prune, fine-tune, select on validation, measure once on test; returns the result (None for a dry run).

    Of several processes (``pruner_id`` 1) the first does so, the others help to measure and return None.
    """
    config = invocation.config
    if world_size() > 1 and config.stage.pruner_id == 0:
        raise UserError(f"--pruner_id 0: is one process, torchrun has started {world_size()}; use --pruner_id 1")
    device = local_device(device_of(config.run.device))
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
    with process_group(device) as rank:
        if rank > 0:
            stage.help()
            return None
        if invocation.dry_run:
            proposal = stage.propose(net, spec.network, 0)
            kept, _ = cutting.decide(proposal, 0, CutState())
            show_plan("prune", spec, images, before, plan_lines(proposal, kept))
            result = None
        else:
            result = _prune(invocation, stage, spec, net, parent)
        send_text("", device)
        return result


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
            if not resumed:
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
        load_weights(fit.net, folder.model_file)
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

    def propose(self, net: GatedNetwork, network: NetworkSpec, phase: int) -> Proposal:
        """Measure ``net`` together with the other processes, if there are any."""
        send_text(json.dumps({"network": network.to_json(), "phase": phase}), self.images.device)
        share_weights(net)
        return self.cutting.propose(net, phase)

    def help(self) -> None:
        """What every process but the first does: its share of each measurement, until there are no more."""
        while text := receive_text(self.images.device):
            task = json.loads(text)
            net = self.place(NetworkSpec.from_json(task["network"]).build())
            share_weights(net)
            self.cutting.propose(net, task["phase"])

    def begin(
        self, folder: RunFolder, spec: RunSpec, net: GatedNetwork, progress: Progress, state: CutState
    ) -> tuple[RunSpec, Fit]:
        """Cut ``net`` in place for this phase and save that as the start of its fine-tuning."""
        proposal = self.propose(net, spec.network, progress.phase)
        kept, state = self.cutting.decide(proposal, progress.phase, state)
        proposal.apply(kept)
        self.images.recalibrate(net)
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

    def fit(self, folder: RunFolder, spec: RunSpec, net: GatedNetwork, phase: int, state: CutState) -> Fit:
        """The fine-tuning of a cut network."""
        config, options = self.config, self.config.stage
        cost = count(net, spec.input_size)
        compression = 1 - cost.backbone_params / self.cutting.dense["params"]
        epochs = options.epochs_start + (options.epochs_end - options.epochs_start) * compression
        return Fit(
            run=folder,
            net=net,
            objective=Supervised.of(cost, options.rate_penalty, self.images.device, self.distillation, config.gating),
            batches=self.images.training("prune"),
            validate=lambda candidate: routed_accuracy(candidate, self.images.validation(), cost),
            optim=config.optim,
            epochs=max(0, round(epochs)),
            device=self.images.device,
            log_interval=config.run.log_interval,
            compile=config.compiler.compile,
            lr_factor=self.cutting.lr_factor(phase, compression),
            frozen=rotation_parameters(net) if options.fix_rotation else (),
            extra_state={"edits": [edit.to_json() for edit in spec.network.edits], "cut": state.to_json()},
        )
