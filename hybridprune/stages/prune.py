"""Stage 2: cut in the eigenbasis of the Fisher, fine-tune, and so on until the last iteration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import torch

from hybridprune.config import Invocation, PruneConfig, PruneOptions, resolve, to_json
from hybridprune.engine.fit import Fit, Progress
from hybridprune.engine.objective import Supervised
from hybridprune.errors import UserError
from hybridprune.measure.cost import NetworkCost, count
from hybridprune.models.factored import FactorEdit
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.apply import apply_plan
from hybridprune.pruning.decompose import Decomposition
from hybridprune.pruning.layers import PrunableLayer, prunable_layers
from hybridprune.pruning.plan import Budget, Candidate, Cut, InfeasibleBudget, LayerPlan
from hybridprune.pruning.score import decompose_layers
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
from hybridprune.stages.sp import routed_accuracy
from hybridprune.store.run_folder import RunFolder, RunSpec, load_weights
from hybridprune.store.seeds import generator

DESCRIPTION = "Stage 2: static pruning in the Kronecker-factored eigenbasis of the Fisher, with fine-tuning."
CURVATURE_BATCH = 128


def main(argv: Sequence[str]) -> None:
    """The command ``main_prune.py``; it reads ``config.json`` when no other file is named."""
    invocation = resolve(PruneConfig(), argv, prog="main_prune.py", description=DESCRIPTION, config_path="config.json")
    if invocation.print_config:
        print(json.dumps(to_json(invocation.config), indent=2))
        return
    run(invocation)


def run(invocation: Invocation[PruneConfig]) -> dict[str, Any] | None:
    """Prune, fine-tune, select on validation, measure once on test; returns the result (None for a dry run)."""
    config = invocation.config
    device = device_of(config.run.device)
    dataset = load_images(config.data)
    wanted = describe("prune", dataset, config.data.resize, config.network)
    parent = Parent.load(config, wanted, "sp", also=("prune",))
    spec = dataclasses.replace(wanted, network=parent.spec.network, mean=parent.spec.mean, std=parent.spec.std)
    images = Images.of(dataset, parent.split(), config, device)
    stage = _Stage(config, images, parent.result["dense"], device)
    net = to_device(parent.net, device, config.optim.channels_last)
    if invocation.dry_run:
        plan = stage.cut(net, phase=0)[2]
        lines = [
            f"{p.name}: input rank {p.ranks.rank_in or 'full'}, output rank {p.ranks.rank_out or 'full'}" for p in plan
        ]
        show_plan("prune", spec, images, count(net, spec.input_size), ["plan of the first iteration:", *lines])
        return None

    folder, spec, _ = open_run(invocation, spec)
    if folder.finished:
        result = folder.read_json("result.json")
        show_result(folder, result)
        return result
    folder.write_json("split.json", images.split.to_json())
    progress, state = saved_progress(folder)
    if state is None:
        spec, fit = stage.begin(folder, spec, net, progress)
    else:
        edits = tuple(FactorEdit.from_json(edit) for edit in json.loads(state["extra"])["edits"])
        spec, net = _with_edits(spec, edits, device, config)
        folder.write_json("spec.json", spec.to_json())
        fit = stage.fit(folder, net, edits)
    epochs = 0
    while True:
        progress = fit(progress, state)
        state, epochs = None, fit.epochs
        load_weights(fit.net, folder.model_file)
        if progress.phase + 1 >= config.stage.max_iter:
            break
        progress = progress.next_phase()
        spec, fit = stage.begin(folder, spec, fit.net, progress)
    result = finish(folder, spec, config, fit.net, images, progress, epochs, parent, {"iterations": progress.phase + 1})
    show_result(folder, result)
    return result


def _with_edits(
    spec: RunSpec, edits: tuple[FactorEdit, ...], device: torch.device, config: PruneConfig
) -> tuple[RunSpec, GatedNetwork]:
    network = dataclasses.replace(spec.network, edits=edits)
    return dataclasses.replace(spec, network=network), to_device(network.build(), device, config.optim.channels_last)


@dataclasses.dataclass(frozen=True)
class _Stage:
    config: PruneConfig
    images: Images
    dense: dict[str, int]
    """Parameters and MACs of the unpruned backbone, which shares refer to."""
    device: torch.device

    def begin(self, folder: RunFolder, spec: RunSpec, net: GatedNetwork, progress: Progress) -> tuple[RunSpec, Fit]:
        """Cut ``net`` in place for iteration ``progress.phase`` and save that as the start of its fine-tuning."""
        layers, decompositions, plan = self.cut(net, progress.phase)
        edits = apply_plan(net, layers, decompositions, plan)
        self.images.recalibrate(net)
        fit = self.fit(folder, net, edits)
        fit.save(progress)
        spec = dataclasses.replace(spec, network=dataclasses.replace(spec.network, edits=edits))
        folder.write_json("spec.json", spec.to_json())
        cost = count(net, spec.input_size)
        say(
            f"iteration {progress.phase + 1}/{self.config.stage.max_iter}: "
            f"{cost.backbone_macs / self.dense['macs']:.1%} of the dense FLOPs, "
            f"{cost.backbone_params / self.dense['params']:.1%} of the parameters; {fit.epochs} epochs"
        )
        return spec, fit

    def cut(
        self, net: GatedNetwork, phase: int
    ) -> tuple[list[PrunableLayer], dict[str, Decomposition], list[LayerPlan]]:
        """Curvature, scores and the plan of one iteration; changes nothing."""
        config, options = self.config, self.config.stage
        layers = prunable_layers(net, config.data.resize)
        decompositions = decompose_layers(
            net,
            layers,
            options.method,
            config.curvature,
            lambda images, purpose: self.images.sample(images, CURVATURE_BATCH, f"{purpose}/{phase}"),
            generator(config.run.seed, "labels", phase),
        )
        cost = count(net, config.data.resize)
        cut = Cut(
            candidates=[
                Candidate(x.name, x.shape, x.form, decompositions[x.name].in_scores, decompositions[x.name].out_scores)
                for x in layers
            ],
            other_macs=cost.backbone_macs - sum(x.shape.macs(x.form) for x in layers),
            other_params=cost.backbone_params - sum(x.shape.params(x.form) for x in layers),
            limit=options.prune_ratio_limit,
            normalize=options.normalize,
            allow_increase=options.allow_increase,
        )
        return layers, decompositions, self._plan(cut, cost, phase)

    def _plan(self, cut: Cut, cost: NetworkCost, phase: int) -> list[LayerPlan]:
        options = self.config.stage
        if options.target_flops is None and options.target_params is None:
            return cut.at_ratio(options.prune_ratio)
        remaining = options.max_iter - phase
        macs = _step(_absolute_macs(options, self.dense), cost.backbone_macs, remaining)
        params = _step(_absolute_params(options, self.dense), cost.backbone_params, remaining)
        try:
            return cut.at_budget(Budget(macs, params))
        except InfeasibleBudget as floor:
            raise UserError(
                f"--target_flops {options.target_flops}, --target_params {options.target_params}: below what "
                f"--prune_ratio_limit {options.prune_ratio_limit} allows; the floor is "
                f"{floor.macs / self.dense['macs']:.4f} of the FLOPs ({2 * floor.macs:,}) and "
                f"{floor.params / self.dense['params']:.4f} of the parameters ({floor.params:,})"
            ) from floor

    def fit(self, folder: RunFolder, net: GatedNetwork, edits: tuple[FactorEdit, ...]) -> Fit:
        """The fine-tuning of a cut network."""
        config, options = self.config, self.config.stage
        cost = count(net, config.data.resize)
        compression = 1 - cost.backbone_params / self.dense["params"]
        epochs = options.epochs_start + (options.epochs_end - options.epochs_start) * compression
        return Fit(
            run=folder,
            net=net,
            objective=Supervised.of(cost, options.rate_penalty, self.device),
            batches=self.images.training("prune"),
            validate=lambda candidate: routed_accuracy(candidate, self.images.validation(), cost),
            optim=config.optim,
            epochs=max(0, round(epochs)),
            device=self.device,
            log_interval=config.run.log_interval,
            compile=config.compiler.compile,
            extra_state={"edits": [edit.to_json() for edit in edits]},
        )


def _step(target: float | None, now: int, remaining: int) -> float | None:
    """This iteration's budget on a geometric path to the target."""
    return None if target is None else min(now * (target / now) ** (1 / remaining), now)


def _absolute_macs(options: PruneOptions, dense: dict[str, int]) -> float | None:
    target = options.target_flops
    if target is None:
        return None
    return target * dense["macs"] if target <= 1 else target / 2


def _absolute_params(options: PruneOptions, dense: dict[str, int]) -> float | None:
    target = options.target_params
    if target is None:
        return None
    return target * dense["params"] if target <= 1 else target
