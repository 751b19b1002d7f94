"""Stage 2: cut by a method of pruning/, fine-tune, and so on until the last iteration.

A method may train towards sparsity before its cut. Each training is a phase of the run, which can be resumed.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hybridprune.config import Invocation, PruneConfig, resolve
from hybridprune.engine.distill import Distillation, plainly
from hybridprune.engine.draws import Draws
from hybridprune.engine.fit import Fit
from hybridprune.engine.freeze import rotation_parameters
from hybridprune.engine.initialise import initialise
from hybridprune.engine.objective import Supervised
from hybridprune.engine.parallel import share_weights
from hybridprune.engine.progress import Progress
from hybridprune.errors import UserError
from hybridprune.measure.cost import count
from hybridprune.models.edits import edits_between
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.precision import Precision, full_precision
from hybridprune.processes import is_first, json_from_first
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.left_alone import notice
from hybridprune.pruning.methods import find
from hybridprune.pruning.plan import ChannelPlan, Plan
from hybridprune.pruning.sparse_training.protocol import SparseTraining
from hybridprune.stages.console import say, show_config, show_plan
from hybridprune.stages.cut_schedule import CutState, Cutting, Phase, layer_channels, plan_lines
from hybridprune.stages.images import RunImages
from hybridprune.stages.result import finish, load_selected, show_result
from hybridprune.stages.setup import StageSetup, to_device, unpruned
from hybridprune.stages.sp import routed_accuracy
from hybridprune.stages.start import open_run, saved_progress
from hybridprune.store.run_folder import RunFolder, RunSpec

DESCRIPTION = "Stage 2: static pruning by a method of your choice, with fine-tuning."


def main(argv: Sequence[str], prog: str = "main_prune.py", config_path: str | None = "config.json") -> None:
    """The command, typed as ``prog``; ``config_path`` is read when no other file is named."""
    invocation = resolve(PruneConfig(), argv, prog=prog, description=DESCRIPTION, config_path=config_path)
    if invocation.print_config:
        show_config(invocation)
        return
    run(invocation)


@full_precision()
def run(invocation: Invocation[PruneConfig]) -> dict[str, Any] | None:
    """Prune, fine-tune, select on validation, measure once on test; returns the result (None for a dry run)."""
    config = invocation.config
    find(config.cut.method)  # what cannot be imported is refused before anything is read
    setup = StageSetup.descendant(invocation, "prune", of="sp", also=("prune",))
    spec, images, net, before = setup.spec, setup.images, setup.net, setup.cost
    cutting = Cutting(
        config,
        images,
        setup.dense,
        Cost(before.backbone_macs, before.backbone_params),
        layer_channels(unpruned(spec.network)),
    )
    precision = Precision.of(config.optim.precision, setup.device)
    weight, temperature = config.stage.kd_weight, config.stage.kd_temperature
    distillation = Distillation.of(net, weight, temperature, forward=precision(plainly))
    stage = _Stage(config, images, cutting, cutting.schedule, copy.deepcopy(net.state_dict()), distillation)
    if invocation.dry_run:
        training = stage.schedule[0].sparse
        if training is not None:
            # Refuses what the run itself would.
            training.prepare(cutting.target(copy.deepcopy(net), CutState()), config.sparsity)
        plan = cutting.make_plan(net, 0)
        kept, _ = cutting.decide(plan, 0, CutState())
        show_plan(spec, images, before, plan_lines(plan, kept, training is not None))
        return None
    return _prune(setup, stage)


def _prune(setup: StageSetup[PruneConfig], stage: _Stage) -> dict[str, Any]:
    config, images = setup.config, setup.images
    with open_run(setup) as (folder, setup, resumed):
        spec, net = setup.spec, setup.net
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
            stage.conclude(fit.net, progress.phase, folder)
            if progress.phase + 1 >= len(stage.schedule):
                break
            progress = progress.next_phase()
            spec, fit = stage.begin(folder, spec, fit.net, progress, state)
        more = {
            "iterations": config.stage.max_iter,
            "method": config.cut.method,
            **({} if state.gap is None else {"gap": state.gap}),
            "sparse_epochs": config.sparsity.sparse_epochs * sum(phase.sparse is not None for phase in stage.schedule),
        }
        result = finish(folder, dataclasses.replace(setup, spec=spec, net=fit.net), progress, fit.epochs, more)
        show_result(folder, result)
        return result


@dataclass(frozen=True)
class _Stage:
    config: PruneConfig
    images: RunImages
    cutting: Cutting
    schedule: Sequence[Phase]
    initial: Mapping[str, Tensor]
    """The parent's weights."""
    distillation: Distillation | None

    def place(self, net: GatedNetwork) -> GatedNetwork:
        """The network on this process's device."""
        return to_device(net, self.images.device, self.config.optim.channels_last)

    def begin(
        self, folder: RunFolder, spec: RunSpec, net: GatedNetwork, progress: Progress, state: CutState
    ) -> tuple[RunSpec, Fit]:
        """Do to ``net``, in place, what precedes this phase's training, and save that as its start."""
        phase = self.schedule[progress.phase]
        if phase.sparse is None:
            state = self._cut(net, phase, state)
        else:
            state = self._aim(net, phase, phase.sparse, state, first=progress.phase == 0)
        # A cut layer has its weights in another memory format than a resumed run's, and kernels round by it.
        self.place(net)
        share_weights(net)
        network = dataclasses.replace(spec.network, edits=edits_between(unpruned(spec.network), net))
        spec = dataclasses.replace(spec, network=network)
        folder.check_weights(spec, net)
        cost, dense = count(net, spec.input_size), self.cutting.dense
        fit = self.fit(folder, spec, net, progress.phase, state)
        fit.save(progress)
        folder.write_json("spec.json", spec.to_json())
        if phase.sparse is None:
            say(
                f"cut {phase.cut + 1}/{self.cutting.cuts}: {cost.backbone_macs / dense['macs']:.1%} of the dense "
                f"FLOPs, {cost.backbone_params / dense['params']:.1%} of the parameters; {fit.epochs} epochs"
            )
        else:
            aim = f", {sum(map(len, state.removed.values()))} channels are to go" if state.removed else ""
            say(f"training towards sparsity{aim}; {fit.epochs} epochs")
        return spec, fit

    def _cut(self, net: GatedNetwork, phase: Phase, state: CutState) -> CutState:
        plan = self.cutting.make_plan(net, phase.cut, state.removed)
        if (told := notice(plan.left_alone)) is not None:
            say(told)
        # The first process's plan and weights, should others have rounded differently.
        kept, record = json_from_first(lambda: self._decide(plan, phase.cut, state))
        gap = {"before": self._validate(net)} if self.cutting.sparsity.trainings else None
        plan.apply(kept)
        if gap is not None:
            gap["after"] = self._validate(net)
            say(f"the cut alone: validation accuracy {gap['before']['accuracy']:.4f} -> {gap['after']['accuracy']:.4f}")
        if self.config.cut.cut_weights == "scratch":
            initialise(net, self.config.run.seed, "cut")
        self.images.recalibrate(net)
        return dataclasses.replace(CutState(**record), gap=gap)

    def _validate(self, net: GatedNetwork) -> dict[str, float]:
        cost = count(net, self.config.data.resize)
        metrics = routed_accuracy(net, self.images.validation(), cost).metrics
        return {name: metrics[name] for name in ("accuracy", "loss")}

    def _decide(self, plan: Plan, cut: int, state: CutState) -> tuple[list[int], dict[str, Any]]:
        kept, after = self.cutting.decide(plan, cut, state)
        return kept, after.to_json()

    def _aim(self, net: GatedNetwork, phase: Phase, training: SparseTraining, state: CutState, first: bool) -> CutState:
        """Select what will go, if it is time, and put the network where the training starts."""
        if phase.selects:
            plan = self.cutting.make_plan(net, phase.cut)
            assert isinstance(plan, ChannelPlan)  # `sparse_target` refuses other methods
            removed = json_from_first(lambda: plan.removed(self.cutting.decide(plan, phase.cut, state)[0]))
            state = dataclasses.replace(state, removed=removed)
        if training.start == "parent":
            net.load_state_dict(self.initial)
        if first and training.starts_fresh(self.config.sparsity):
            initialise(net, self.config.run.seed, "sparse")
        return state

    def fit(self, folder: RunFolder, spec: RunSpec, net: GatedNetwork, number: int, state: CutState) -> Fit:
        """The training of this phase, of a network as ``begin`` leaves it."""
        config, options, phase = self.config, self.config.stage, self.schedule[number]
        cost = count(net, spec.input_size)
        noise = Draws(len(self.images.dataset.train), net.num_gates, config.run.seed, "gate noise", number)
        compression = 1 - cost.backbone_params / self.cutting.dense["params"]
        epochs = options.epochs_start + (options.epochs_end - options.epochs_start) * compression
        drive = None
        if phase.sparse is not None:
            drive = phase.sparse.prepare(self.cutting.target(net, state), config.sparsity)
            self.place(net)
        return Fit(
            run=folder,
            net=net,
            objective=Supervised.of(
                cost, options.rate_penalty, self.images.device, self.distillation, config.gating, noise, config.loss
            ),
            batches=self.images.training("prune"),
            validate=lambda candidate: routed_accuracy(candidate, self.images.validation(), cost),
            optim=config.optim,
            epochs=config.sparsity.sparse_epochs if phase.sparse else max(0, round(epochs)),
            device=self.images.device,
            log_interval=config.run.log_interval,
            save_every=config.run.save_every,
            compile=config.compiler.compile,
            sync_batchnorm=config.optim.sync_batchnorm,
            lr_factor=self.cutting.lr_factor(phase.cut, compression),
            frozen=rotation_parameters(net) if options.fix_rotation else (),
            extra_state={"edits": [edit.to_json() for edit in spec.network.edits], "cut": state.to_json()},
            drive=drive,
            keep_last=phase.sparse is not None,
        )

    def conclude(self, net: GatedNetwork, number: int, folder: RunFolder) -> None:
        """Leave ``net`` as this phase's training gives it to the next one: plain layers, the selected weights."""
        method = self.cutting.sparsity
        if self.schedule[number].sparse is None:
            load_selected(net, folder)
            return
        if method.keeps is not None:
            folder.save_weights(f"{method.keeps}.safetensors", net)
            folder.write_json(f"{method.keeps}.json", folder.read_spec().to_json())
        if method.conclude is not None:
            method.conclude(net)
            self.place(net)
