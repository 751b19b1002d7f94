"""Stage 2: cut by a method of pruning/, fine-tune, and so on until the last iteration.

A method may train towards sparsity before its cut. Each training is a phase of the run, which can be resumed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hybridprune.config import Invocation, PruneConfig
from hybridprune.engine.curves import Curves
from hybridprune.engine.distill import Distillation, plainly
from hybridprune.engine.draws import Draws
from hybridprune.engine.fit import Fit
from hybridprune.engine.freeze import rotation_parameters
from hybridprune.engine.imitation import merge_pairs
from hybridprune.engine.objective import Supervised
from hybridprune.engine.parallel import share_weights
from hybridprune.engine.pressure import Drive
from hybridprune.engine.progress import Progress
from hybridprune.errors import UserError
from hybridprune.measure.cost import count
from hybridprune.models.backbone import Backbone
from hybridprune.models.copies import copied
from hybridprune.models.edits import edits_between
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.precision import Precision, full_precision
from hybridprune.processes import is_first
from hybridprune.pruning.left_alone import notice
from hybridprune.pruning.pipeline import CutState, Phase, Pipeline, Trainer
from hybridprune.pruning.plan import Plan
from hybridprune.pruning.within_time import told
from hybridprune.stages.command import stage_command
from hybridprune.stages.console import name_configuration, say, show_plan
from hybridprune.stages.cut_curves import cut_points
from hybridprune.stages.cut_schedule import Cutting
from hybridprune.stages.first_plan import Measurements, first_plan, prepare, set_up, try_all
from hybridprune.stages.lessons import Lessons
from hybridprune.stages.result import finish, load_selected, show_result
from hybridprune.stages.setup import StageSetup, to_device, unpruned
from hybridprune.stages.sp import routed_accuracy
from hybridprune.stages.start import open_run, saved_progress
from hybridprune.store.run_folder import RunFolder

DESCRIPTION = "Stage 2: static pruning by a method of your choice, with fine-tuning."


def main(argv: Sequence[str], prog: str = "main_prune.py", config_path: str | None = "config.json") -> None:
    """The command, typed as ``prog``; ``config_path`` is read when no other file is named."""
    stage_command(PruneConfig(), run_each, argv, prog=prog, description=DESCRIPTION, config_path=config_path)


def run_each(invocation: Invocation[PruneConfig]) -> list[dict[str, Any] | None]:
    """The runs that the command asks for, one after the other; `run` says what each does.

    Several have different budgets and are measured once. Before the first one starts, all first plans are made.
    """
    runs = invocation.each()
    if len(runs) == 1:
        return [run(invocation)]
    name_configuration(invocation)
    measurements: Measurements = {}
    if not invocation.resume and not invocation.dry_run:
        with full_precision():
            try_all(runs, measurements)
    results = []
    for number, each in enumerate(runs, 1):
        say(f"run {number} of {len(runs)}: {each.config.run.exp_name}")
        results.append(run(each, measurements))
    return results


@full_precision()
def run(invocation: Invocation[PruneConfig], measurements: Measurements | None = None) -> dict[str, Any] | None:
    """Prune, fine-tune, select on validation, measure once on test; returns the result (None for a dry run).

    ``measurements`` are shared by runs that differ in their budgets alone.
    """
    setup = set_up(invocation)
    net = setup.gated
    name_configuration(invocation)
    cutting, pipeline = prepare(setup, measurements)
    teacher = None
    if setup.config.cut.cut_weights == "imitate":
        teacher = copied(net.backbone).eval().requires_grad_(False)
    precision = Precision.of(setup.config.optim.precision, setup.device)
    weight, temperature = setup.config.stage.kd_weight, setup.config.stage.kd_temperature
    distillation = Distillation.of(net, weight, temperature, forward=precision(plainly))
    if invocation.dry_run:
        show_plan(setup.spec, setup.images, setup.cost, first_plan(cutting, pipeline, net))
        return None
    return _prune(setup, cutting, pipeline, distillation, teacher)


def _prune(
    setup: StageSetup[PruneConfig],
    cutting: Cutting,
    pipeline: Pipeline[GatedNetwork],
    distillation: Distillation | None,
    teacher: Backbone | None,
) -> dict[str, Any]:
    config, images = setup.config, setup.images
    with open_run(setup) as (folder, setup, resumed):
        if folder.finished:
            return show_result(folder, folder.read_json("result.json"))
        folder.write_json("split.json", images.split.to_json())
        progress, saved = saved_progress(folder)
        state = CutState()
        if saved is not None:
            extra = json.loads(saved["extra"])
            network = NetworkSpec.from_json({**setup.spec.network.to_json(), "edits": extra["edits"]})
            net, state = network.build(), CutState(**extra["cut"])
            setup = dataclasses.replace(setup, spec=dataclasses.replace(setup.spec, network=network), net=net)
            folder.write_json("spec.json", setup.spec.to_json())
        trainer = _Trainer(folder, cutting, pipeline.phases, distillation, teacher, setup, progress, saved)
        trainer.place(setup.gated)
        if saved is None:
            trainer.add_curves(setup.gated, 0)
        try:
            net, state = pipeline.run(trainer, setup.gated, state, start=progress.phase, resumed=saved is not None)
        except UserError:
            if not resumed and is_first() and not folder.state_file.is_file():
                # A plan that cannot be made leaves nothing behind that would stand in the way of the next try.
                shutil.rmtree(folder.path)
            raise
        aim = cutting.wanted
        revived = None if aim is None else aim.shortfall(net)
        if revived is not None:
            say(f"warning: {revived}")
        more = {
            "iterations": config.stage.max_iter,
            "method": config.cut.method,
            **({} if state.gap is None else {"gap": state.gap}),
            **({} if state.latency is None else {"latency": state.latency}),
            **({} if aim is None else {"effective": {"target": aim.wanted, "met": revived is None}}),
            "sparse_epochs": config.sparsity.sparse_epochs * len(cutting.sparsity.trainings),
        }
        setup = dataclasses.replace(trainer.setup, net=net)
        return show_result(folder, finish(folder, setup, trainer.progress, trainer.epochs, more))


@dataclass
class _Trainer(Trainer[GatedNetwork]):
    """Trains the phases of a run, which can be resumed in each of them."""

    folder: RunFolder
    cutting: Cutting
    phases: Sequence[Phase]
    distillation: Distillation | None
    teacher: Backbone | None
    """The parent's backbone, if the cut networks imitate it."""
    setup: StageSetup[PruneConfig]
    """Its specification and cost are those of the network with which the present phase starts."""
    progress: Progress
    """Of the present phase."""
    saved: dict[str, Any] | None
    """The state from which the present phase goes on; None where it starts."""
    epochs: int = 0
    """Of the present phase."""

    def planned(self, plan: Plan) -> None:
        """Say it."""
        if (remark := notice(plan.left_alone)) is not None:
            say(remark)

    def timed(self, record: Mapping[str, Any]) -> None:
        """Say it."""
        say(told(record))

    def settle(self, model: GatedNetwork) -> GatedNetwork:
        """With the statistics of training images on the routes that they take."""
        self.setup.images.recalibrate(model)
        return model

    def validate(self, model: GatedNetwork) -> dict[str, float]:
        """Accuracy and loss on the validation images."""
        cost = count(model, self.setup.spec.input_size)
        metrics = routed_accuracy(model, self.setup.images.validation(), cost).metrics
        return {name: metrics[name] for name in ("accuracy", "loss")}

    def place(self, model: GatedNetwork) -> None:
        """On this process's device, in the memory format of its images."""
        to_device(model, self.setup.device, self.setup.images.channels_last)

    def begin(self, model: GatedNetwork, number: int) -> None:
        """Write down the network's form and cost; all processes go on with the first one's weights."""
        spec = self.setup.spec
        if self.saved is None:
            share_weights(model)
            network = dataclasses.replace(spec.gated, edits=edits_between(unpruned(spec.gated), model))
            spec = dataclasses.replace(spec, network=network)
            self.folder.check_weights(spec, model)
        self.setup = dataclasses.replace(self.setup, spec=spec, net=model, cost=count(model, spec.input_size))

    def train(self, model: GatedNetwork, number: int, state: CutState, drive: Drive | None) -> None:
        """Leaves the selected weights: the best on validation or the last ones, as of a training towards sparsity."""
        phase, spec = self.phases[number], self.setup.spec
        if number > self.progress.phase:
            self.progress = self.progress.next_phase()
        fit = self._fit(model, number, state, drive)
        if phase.lesson is not None and self.teacher is not None:
            fit = Lessons(self.setup, self.teacher).of(fit, phase.lesson, self.saved is not None)
        self.epochs = fit.epochs
        if self.saved is None:
            fit.save(self.progress)
            self.folder.write_json("spec.json", spec.to_json())
            self._tell(phase, state)
            if phase.sparse is None and phase.cuts:
                self.add_curves(model, phase.cut + 1)
        self.progress, self.saved = fit(self.progress, self.saved), None
        if phase.sparse is None:
            load_selected(model, self.folder)
            if phase.lesson == "features":
                merge_pairs(model.backbone)
        elif (name := self.cutting.sparsity.keeps) is not None:
            self.folder.save_weights(f"{name}.safetensors", model)
            self.folder.write_json(f"{name}.json", spec.to_json())

    def add_curves(self, model: GatedNetwork, cuts: int) -> None:
        """Add a point after so many cuts to the curves of tensorboard, in the first process."""
        if is_first():
            setup, size = self.setup, self.setup.spec.input_size
            images = torch.zeros(setup.config.latency.batch, 3, size, size, device=setup.device)
            if setup.images.channels_last:
                images = images.to(memory_format=torch.channels_last)
            points = cut_points(model, unpruned(setup.spec.gated), images)
            with Curves(self.folder.path / "tb") as curves:
                curves.add({**points, "cut/flops": setup.cost.backbone_macs / self.cutting.dense["macs"]}, cuts)

    def _tell(self, phase: Phase, state: CutState) -> None:
        cost, dense = self.setup.cost, self.cutting.dense
        if phase.sparse is not None:
            aim = f", {sum(map(len, state.removed.values()))} channels are to go" if state.removed else ""
            say(f"training towards sparsity{aim}; {self.epochs} epochs")
            return
        if not phase.cuts:
            aim = "fine-tuning" if phase.lesson is None else "learning the logits of the parent"
            say(f"{aim}; {self.epochs} epochs")
            return
        if state.gap is not None:
            before, after = (state.gap[when]["accuracy"] for when in ("before", "after"))
            say(f"the cut alone: validation accuracy {before:.4f} -> {after:.4f}")
        say(
            f"cut {phase.cut + 1}/{self.cutting.cuts}: {cost.backbone_macs / dense['macs']:.1%} of the dense "
            f"FLOPs, {cost.backbone_params / dense['params']:.1%} of the parameters; {self.epochs} epochs"
            + (" on the features of the parent" if phase.lesson else "")
        )

    def _lr_factor(self, phase: Phase, compression: float) -> float:
        """The learning rate of a phase over ``lr``."""
        options, sparse_lr = self.setup.config.optim, self.setup.config.sparsity.sparse_lr
        if phase.sparse is None:
            return self.cutting.lr_factor(phase.cut, compression)
        return 1.0 if sparse_lr is None else sparse_lr / options.lr

    def _fit(self, model: GatedNetwork, number: int, state: CutState, drive: Drive | None) -> Fit[GatedNetwork]:
        setup, config, phase = self.setup, self.setup.config, self.phases[number]
        options, images, cost = config.stage, setup.images, setup.cost
        noise = Draws(len(images.dataset.train), model.num_gates, config.run.seed, "gate noise", number)
        compression = 1 - cost.backbone_params / self.cutting.dense["params"]
        # A network on its way to sparsity is driven by its method, as published.
        distillation = self.distillation if phase.sparse is None else None
        return Fit(
            run=self.folder,
            net=model,
            objective=Supervised.of(
                cost, options.rate_penalty, setup.device, distillation, config.gating, noise, config.loss
            ),
            batches=images.training("prune"),
            validate=lambda candidate: routed_accuracy(candidate, images.validation(), cost),
            optim=config.optim,
            epochs=config.sparsity.sparse_epochs if phase.sparse else self.cutting.epochs(phase.cut, compression),
            device=setup.device,
            log_interval=config.run.log_interval,
            save_every=config.run.save_every,
            compile=config.compiler.compile,
            sync_batchnorm=config.optim.sync_batchnorm,
            # Towards sparsity it is the last weights that count.
            ema_decay=0.0 if phase.sparse else config.averaging.ema_decay,
            lr_factor=self._lr_factor(phase, compression),
            frozen=rotation_parameters(model) if options.fix_rotation else (),
            extra_state={"edits": [edit.to_json() for edit in setup.spec.network.edits], "cut": state.to_json()},
            drive=drive,
            keep_last=phase.sparse is not None or options.select == "last",
        )
