# pyright: strict, reportUnnecessaryIsInstance=false
"""Static pruning of any module of the user's own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hybridprune.ambient import isolated
from hybridprune.api.arguments import check_training, cut_options
from hybridprune.api.finite import check_finite
from hybridprune.api.first_look import Batches, Loader, Task, device_of, look
from hybridprune.api.prunable import PlainNetwork
from hybridprune.api.pruned import Pruned, PrunedSpec
from hybridprune.api.summary import layer_states, summarised
from hybridprune.caller import warn_caller
from hybridprune.config import (
    RECIPES,
    CurvatureOptions,
    CutOptions,
    LatencyTarget,
    OptimOptions,
    PruneOptions,
    RunOptions,
    SparsityOptions,
    argument_names,
    checked,
    checked_value,
)
from hybridprune.curvature import likelihood_of
from hybridprune.curvature.likelihood import UserLoss
from hybridprune.engine.batchnorm import recalibrate_by
from hybridprune.engine.finetune import finetune, length, trainable
from hybridprune.engine.modes import take_modes
from hybridprune.engine.parallel import share_weights
from hybridprune.engine.plain import checkpointing, plain_copy, take_types, unwrapped
from hybridprune.engine.pressure import Drive
from hybridprune.errors import UserError
from hybridprune.latency.network_clock import DeployedClock
from hybridprune.models.copies import copied
from hybridprune.models.edits import apply_edits, edit_from_json, edits_between
from hybridprune.models.held import AnyNetwork, network_of
from hybridprune.models.origin import note_origin, origin_of
from hybridprune.processes import json_from_first
from hybridprune.progress_bar import progress_bars
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget
from hybridprune.pruning.clock import NetworkClock
from hybridprune.pruning.effective_target import EffectiveTarget
from hybridprune.pruning.excluded import check_excluded
from hybridprune.pruning.left_alone import notice
from hybridprune.pruning.make_plan import sparsity_of
from hybridprune.pruning.method import Method
from hybridprune.pruning.pipeline import Cuts, CutState, Pipeline, Trainer, phases_of
from hybridprune.pruning.plan import Plan
from hybridprune.pruning.refusal import refusal_of
from hybridprune.pruning.within_time import told
from hybridprune.store.seeds import stream_seed

RECALIBRATION_IMAGES = 4096


@argument_names(
    own=("method", "target_flops", "target_params", "target_latency"),
    cut=CutOptions,
    latency=LatencyTarget,
    curvature=CurvatureOptions,
    sparsity=SparsityOptions,
)
def prune(
    model: AnyNetwork,
    train_loader: Loader,
    *,
    target_flops: float | None = None,
    target_params: float | None = None,
    target_latency: float | None = None,
    method: str | Method | None = None,
    loss: str | Callable[[Any, Any], Tensor] = "cross_entropy",
    forward: Callable[[nn.Module, Any], Any] | None = None,
    fine_tune: float | Callable[[nn.Module], object] = 0.0,
    lr: float = RECIPES["default"]["lr"],
    kd_weight: float | None = None,
    cut: CutOptions | None = None,
    curvature: CurvatureOptions | None = None,
    sparsity: SparsityOptions | None = None,
    latency: LatencyTarget | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Pruned:
    """A pruned copy of any network with ``nn.Conv2d`` or ``nn.Linear`` layers; ``model`` itself is not changed.

    Direction pruning is local to a layer, so shortcuts, concatenations and functional calls do not matter; grouped
    convolutions, layers that run several times, layers that no gradient reaches and layers matching ``cut.exclude`` are
    left alone. The rest of the options are those of stage 2.

    Args:
        model: the network, or what `prune` returned, on the device where all is to happen. A compiled or
            ``DataParallel`` (or distributed) one is unwrapped, and comes back so; half precision is measured in float32
            and comes back as it was.
        train_loader: batches, on any device; it is gone through several times.
        target_flops: share of the FLOPs to keep if <= 1, else FLOPs (2 x MACs) of one image.
        target_params: the same of the parameters. Without a budget, ``cut=CutOptions(prune_ratio=...)`` says how many
            units go. What stands here must not disagree with what stands in ``cut``.
        target_latency: share of the time to keep if <= 1, else milliseconds, of a batch that ``latency`` describes, of
            the network as it is deployed; alone or with other targets. It is checked by the clock.
        method: the name of a method (`hybridprune.methods.names`), ``module:Name`` of your own, or a method itself;
            ``"fisher-tucker"`` by default.
        loss: of the network's outputs, for the curvature and for fine-tuning: ``"cross_entropy"`` (class logits
            ``[B, K]`` or, for every position, ``[B, K, ...]``), ``"bce"`` (yes or no, one logit for each label) or
            ``"mse"`` (numbers), each as torch's function of that name takes it, with the true Fisher by sampled
            targets; or a function of (output, batch) that returns the mean over the batch's images (0-d), with the
            empirical Fisher of the given targets. ``curvature.fisher_type="exp"`` takes the given targets always.
        forward: a function of (model, batch) that gives the output, called with whatever ``train_loader`` gives, on the
            model's device, while the model is in eval mode, and in training mode when it is trained. By default a batch
            is a pair of inputs and targets, and the output is ``model(inputs)``.
        fine_tune: epochs (a fraction is a part of one) of SGD at ``lr`` after the cut; or your own training, which gets
            the pruned module.
        kd_weight: share of the loss of this training that is distilled from ``model``; by default that of stage 2, 0.7,
            and 0 where ``loss`` is a function.
        sparsity: of a method that trains towards sparsity before it cuts; these trainings, too, are SGD at ``lr``,
            unless its ``sparse_lr`` says otherwise.
        latency: batch, threads and engine of ``target_latency``.
        seed: of the sampled targets, of new weights, and of what else is drawn from torch's own generators (dropout, a
            loader that shuffles by them); afterwards these go on as before.
        progress: whether bars show, on a terminal or in a notebook, how far the measurements and trainings have come.

    In an initialised process group all processes have to call it together, each with a loader of its own or the same:
    all get the first one's cut and weights.

    Raises:
        UserError: if an argument or an option is not what it may be, the loader, the network and the loss do not fit
            together, the budget lies below the reachable floor, or nothing can be pruned.
        RunFailed: if something that is computed is not finite.
    """
    if not isinstance(network := network_of(model), nn.Module):
        raise UserError(f"model: is a {type(model).__name__}; give a torch.nn.Module, or what prune returned")
    original = unwrapped(network)
    cut = cut_options(cut, method, target_flops, target_params, target_latency)
    if latency is not None and cut.target_latency is None:
        raise UserError("latency: says how a budget of time is measured; give target_latency, the budget, as well")
    latency = checked(latency, "latency", LatencyTarget)
    curvature = checked(curvature, "curvature", CurvatureOptions)
    sparsity = checked(sparsity, "sparsity", SparsityOptions)
    seed = checked_value(RunOptions, "seed", seed, "seed")
    lr = checked_value(OptimOptions, "lr", lr, "lr")
    task = Task(likelihood_of(loss), forward)
    if kd_weight is None:
        kd_weight = 0.0 if isinstance(task.likelihood, UserLoss) else RECIPES["default"]["kd_weight"]
    distilled: float = checked_value(PruneOptions, "kd_weight", kd_weight, "kd_weight")
    check_training(task, fine_tune, distilled)
    device = device_of(original)
    with isolated(stream_seed(seed, "prune"), device, dtype=None), checkpointing(False), progress_bars(progress):
        module = plain_copy(original)
        check_excluded(module, cut.exclude)
        share_weights(module)
        batches, example = look(module, train_loader, task)
        if sparsity_of(cut.method).trainings or (not callable(fine_tune) and fine_tune > 0):
            length(batches)  # refused now, not after the cut
            trainable(module)
        prunable = PlainNetwork(module, batches, example, cut.exclude, seed)
        before, dense = layer_states(module, example, prunable.run)
        clock = None
        if cut.target_latency is not None:
            image = example if task.forward is None else None
            clock = DeployedClock.of(copied(module), lambda cut_module: cut_module, image, latency, cut.method)
            dense = dense._replace(ns=clock.dense_ns)
        wanted = None
        if cut.target_effective is not None:
            image = example if task.forward is None else None
            wanted = EffectiveTarget.of(cut.target_effective, module, lambda cut_module: cut_module, image)
        origin = origin_of(original)
        work = _Work(original, batches, example, cut, sparsity, lr, seed, dense, clock, wanted)
        pipeline = work.pipeline(module, curvature)
        module, state = pipeline.run(work, module, CutState())
        done = pipeline.cut(work, module, 0, state)
        module, plan = done.model, done.plan
        after, cost = layer_states(module, example, prunable.run)
        edits = edits_between(original, module, origin.edits)
        layers = summarised(before, after, plan.expected_losses(done.kept))
    if callable(fine_tune):
        fine_tune(take_types(module, original))  # as the caller has set everything
    with isolated(stream_seed(seed, "fine-tuning"), device, dtype=None), progress_bars(progress):
        if not callable(fine_tune) and fine_tune > 0:
            teacher = plain_copy(original) if distilled > 0 else None
            if teacher is not None:
                share_weights(teacher)
            work.fine_tune(module, fine_tune, teacher=teacher, kd_weight=distilled)
        share_weights(take_types(module, original))
        check_finite(module, original)
        batches.check_output(module)
        if wanted is not None and (revived := wanted.shortfall(module)) is not None:
            warn_caller(revived)
    costs = (cost.macs, cost.params, dense.macs, dense.params)
    spec = PrunedSpec(edits, *costs, plan.left_alone, done.state.latency, layers)
    note_origin(module, dataclasses.replace(origin, edits=edits))
    return Pruned(take_modes(module, original), spec)


@dataclass(frozen=True)
class _Work(Cuts[nn.Module], Trainer[nn.Module]):
    """One cut of a module, and the trainings before and after it, in memory."""

    original: nn.Module
    """The caller's, which stays as it is."""
    batches: Batches
    example: Any
    options: CutOptions
    sparsity: SparsityOptions
    lr: float
    seed: int
    dense: Cost
    """Of the original, which shares refer to."""
    clock: NetworkClock | None = None
    wanted: EffectiveTarget | None = None

    def pipeline(self, model: nn.Module, curvature: CurvatureOptions) -> Pipeline[nn.Module]:
        """The trainings before the cut of ``model``, if the method has some; the cut itself follows them."""
        return Pipeline(
            cuts=self,
            phases=phases_of(sparsity_of(self.options.method), cuts=0),
            options=self.options,
            curvature=curvature,
            sparsity=self.sparsity,
            seed=self.seed,
            initial=copy.deepcopy(model.state_dict()),
        )

    def network(self, model: nn.Module, cut: int) -> PlainNetwork:
        """The module on the caller's batches."""
        del cut
        return PlainNetwork(model, self.batches, self.example, self.options.exclude, self.seed)

    def budget(self, cut: int) -> Budget | None:
        """The targets."""
        del cut
        options = self.options
        return Budget.of(options.target_flops, options.target_params, self.dense, options.target_latency)

    def effective(self, cut: int) -> EffectiveTarget | None:
        """The target."""
        del cut
        return self.wanted

    def decide(self, plan: Plan, cut: int, state: CutState) -> tuple[list[int], CutState]:
        """As the allocation says."""
        ratio, target = self.options.prune_ratio or 0.0, self.options.target_latency
        # What was selected before a training goes as it was selected.
        effective = self.wanted if state.removed is None else None
        kept, record = self.allocate(plan, ratio, self.budget(cut), target, effective)
        return kept, dataclasses.replace(state, latency=record)

    def refusal(self, floor: InfeasibleBudget) -> UserError:
        """In flags, which `prune` turns into its arguments."""
        return refusal_of(self.options, floor, self.dense)

    def planned(self, plan: Plan) -> None:
        """A warning where `prune` was called."""
        if (told := notice(plan.left_alone)) is not None:
            warn_caller(told)

    def timed(self, record: Mapping[str, Any]) -> None:
        """A warning where `prune` was called, if the budget of time is missed."""
        if not record["met"]:
            warn_caller(told(record))

    def settle(self, model: nn.Module) -> nn.Module:
        """The first process's cut and weights in all processes, with the statistics of images of all."""
        model = _as_the_first(self.original, model)
        sample = self.network(model, 0).sample(RECALIBRATION_IMAGES, "recalibration")
        recalibrate_by(model, sample, lambda batch: self.batches.task.output(model, batch.images), shared=True)
        return model

    def train(self, model: nn.Module, number: int, state: CutState, drive: Drive | None) -> None:
        """Towards sparsity."""
        self.fine_tune(model, self.sparsity.sparse_epochs, lr=self.sparsity.sparse_lr, drive=drive)

    def fine_tune(self, model: nn.Module, epochs: float, lr: float | None = None, **options: Any) -> None:
        """Train by the task's loss; the other options are those of `finetune`."""
        task, device = self.batches.task, self.batches.device
        common: dict[str, Any] = {"likelihood": task.likelihood, "forward": task.output}
        lr = self.lr if lr is None else lr
        finetune(model, self.batches, epochs=epochs, lr=lr, device=device, **common, **options)


def _as_the_first(model: nn.Module, module: nn.Module) -> nn.Module:
    """The first process's cut of ``model``, in all processes."""
    own = edits_between(model, module, origin_of(model).edits)
    first = json_from_first(lambda: [edit.to_json() for edit in own])
    edits = tuple(map(edit_from_json, first))
    if edits != own:
        module = plain_copy(model)
        apply_edits(module, edits)
    share_weights(module)
    return module
