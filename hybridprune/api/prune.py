# pyright: strict, reportUnnecessaryIsInstance=false
"""Static pruning of any module of the user's own."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hybridprune.ambient import isolated
from hybridprune.api.first_look import Batches, Loader, Task, device_of, look
from hybridprune.api.prunable import PlainNetwork
from hybridprune.api.pruned import Pruned, PrunedSpec
from hybridprune.api.summary import layer_states, summarised
from hybridprune.config import (
    CurvatureOptions,
    CutOptions,
    OptimOptions,
    PruneOptions,
    RunOptions,
    SparsityOptions,
    checked,
    checked_value,
)
from hybridprune.curvature import likelihood_of
from hybridprune.curvature.likelihood import UserLoss
from hybridprune.engine.batchnorm import recalibrate_by
from hybridprune.engine.finetune import finetune, length, trainable
from hybridprune.engine.initialise import initialise
from hybridprune.engine.modes import take_modes
from hybridprune.engine.parallel import share_weights
from hybridprune.engine.plain import checkpointing, plain_copy, take_types, unwrapped
from hybridprune.errors import RunFailed, UserError
from hybridprune.models.edits import Edit, apply_edits, edit_from_json, edits_between
from hybridprune.models.origin import note_origin, origin_of
from hybridprune.precision import full_precision
from hybridprune.processes import json_from_first
from hybridprune.progress_bar import progress_bars
from hybridprune.pruning.budget.space import Budget, Cost, InfeasibleBudget
from hybridprune.pruning.left_alone import notice
from hybridprune.pruning.make_plan import make_plan, sparse_target, sparsity_of
from hybridprune.pruning.method import Method
from hybridprune.pruning.methods import find
from hybridprune.pruning.plan import ChannelPlan, Plan
from hybridprune.pruning.sparse_training.protocol import Removal, SparseTraining
from hybridprune.store.seeds import stream_seed

RECALIBRATION_IMAGES = 4096
MOST_EPOCHS = 1_000_000
"""More is a slip of the pen."""


def prune(
    model: nn.Module,
    train_loader: Loader,
    *,
    target_flops: float | None = None,
    target_params: float | None = None,
    method: str | Method = "fisher-tucker",
    loss: str | Callable[[Any, Any], Tensor] = "cross_entropy",
    forward: Callable[[nn.Module, Any], Any] | None = None,
    fine_tune: float | Callable[[nn.Module], object] = 0.0,
    lr: float = 0.02,
    kd_weight: float = 0.0,
    cut: CutOptions | None = None,
    curvature: CurvatureOptions | None = None,
    sparsity: SparsityOptions | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Pruned:
    """A pruned copy of any network with ``nn.Conv2d`` or ``nn.Linear`` layers; ``model`` itself is not changed.

    Direction pruning is local to a layer, so shortcuts, concatenations and functional calls do not matter; grouped
    convolutions, layers that run several times, layers that no gradient reaches and layers matching ``cut.exclude`` are
    left alone. The rest of the options are those of stage 2.

    Args:
        model: the network, on the device where all is to happen. A compiled or ``DataParallel`` (or distributed) one is
            unwrapped, and comes back so; half precision is measured in float32 and comes back as it was.
        train_loader: batches, on any device; it is gone through several times.
        target_flops: share of the FLOPs to keep if <= 1, else FLOPs (2 x MACs) of one image.
        target_params: the same of the parameters.
        method: the name of a method (`hybridprune.methods.names`), ``module:Name`` of your own, or a method itself.
        loss: of the network's outputs, for the curvature and for fine-tuning: ``"cross_entropy"`` (class logits
            ``[B, K]`` or, for every position, ``[B, K, ...]``), ``"bce"`` (yes or no, one logit for each label) or
            ``"mse"`` (numbers), each as torch's function of that name takes it, with the true Fisher by sampled
            targets; or a function of (output, batch) that returns the mean over the batch's images (0-d), with the
            empirical Fisher of the given targets. ``curvature.fisher_type="exp"`` takes the given targets always.
        forward: a function of (model, batch) that gives the output, called with whatever ``train_loader`` gives, on the
            model's device, while the model is in eval mode, and in training mode when it is trained. By default a batch
            is a pair of inputs and targets, and the output is ``model(inputs)``.
        fine_tune: epochs (a fraction is a part of one) of SGD at ``lr`` after the cut, with ``kd_weight`` of the loss
            distilled from ``model``; or your own training, which gets the pruned module.
        sparsity: of a method that trains towards sparsity before it cuts; these trainings, too, are SGD at ``lr``.
        seed: of the sampled targets, of new weights, and of what else is drawn from torch's own generators (dropout, a
            loader that shuffles by them); afterwards these go on as before.
        progress: whether bars show, on a terminal, how far the measurements and trainings have come.

    In an initialised process group all processes have to call it together, each with a loader of its own or the same:
    all get the first one's cut and weights.

    Raises:
        UserError: if an argument or an option is not what it may be, the loader, the network and the loss do not fit
            together, the budget lies below the reachable floor, or nothing can be pruned.
        RunFailed: if something that is computed is not finite.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: is a {type(model).__name__}; give a torch.nn.Module")
    cut = checked(cut, "cut", CutOptions)
    own = {"method": method, "target_flops": target_flops, "target_params": target_params}
    cut = checked(dataclasses.replace(cut, **own), "cut", CutOptions, own)
    find(cut.method, "method")
    curvature = checked(curvature, "curvature", CurvatureOptions)
    sparsity = checked(sparsity, "sparsity", SparsityOptions)
    seed = checked_value(RunOptions, "seed", seed, "seed")
    lr = checked_value(OptimOptions, "lr", lr, "lr")
    kd_weight = checked_value(PruneOptions, "kd_weight", kd_weight, "kd_weight")
    task = Task(likelihood_of(loss), forward)
    _check_training(task, fine_tune, kd_weight)
    original = unwrapped(model)
    device = device_of(original)
    with isolated(stream_seed(seed, "prune"), device, dtype=None), checkpointing(False), progress_bars(progress):
        module = plain_copy(original)
        share_weights(module)
        batches, example = look(module, train_loader, task)
        if sparsity_of(cut.method).trainings or (not callable(fine_tune) and fine_tune > 0):
            length(batches)  # refused now, not after the cut
            trainable(module)
        network = PlainNetwork(module, batches, example, cut.exclude, seed)
        dense, before = network.cost, layer_states(module, example, network.run)
        work = _Work(network, cut, curvature, sparsity, dense, batches, lr)
        removed = work.train_sparse()
        plan = work.make_plan(removed)
        if (told := notice(plan.left_alone)) is not None:
            warnings.warn(told, stacklevel=2)
        with full_precision():
            kept = work.allocate(plan)
            plan.apply(kept)
        if cut.cut_weights == "scratch":
            initialise(module, seed, "cut")
        origin = origin_of(original)
        module, edits = _as_the_first(original, module, origin.edits)
        sample = network.sample(RECALIBRATION_IMAGES, "recalibration")
        recalibrate_by(module, sample, lambda pair: task.output(module, pair[0]), shared=True)
        cost = network.measure(module)
        layers = summarised(before, layer_states(module, example, network.run), plan.expected_losses(kept))
    if callable(fine_tune):
        fine_tune(take_types(module, original))  # as the caller has set everything
    with isolated(stream_seed(seed, "fine-tuning"), device, dtype=None), progress_bars(progress):
        if not callable(fine_tune) and fine_tune > 0:
            teacher = plain_copy(original) if kd_weight > 0 else None
            work.fine_tune(module, fine_tune, teacher=teacher, kd_weight=kd_weight)
        share_weights(take_types(module, original))
        _check_finite(module, original)
        batches.check_output(module)
    spec = PrunedSpec(edits, cost.macs, cost.params, dense.macs, dense.params, plan.left_alone, layers)
    note_origin(module, dataclasses.replace(origin, edits=edits))
    return Pruned(take_modes(module, original), spec)


@dataclass(frozen=True)
class _Work:
    """What leads to the cut of one module."""

    network: PlainNetwork
    cut: CutOptions
    curvature: CurvatureOptions
    sparsity: SparsityOptions
    dense: Cost
    batches: Batches
    lr: float

    @property
    def budget(self) -> Budget | None:
        """What the cut has to meet."""
        return Budget.of(self.cut.target_flops, self.cut.target_params, self.dense)

    def make_plan(self, removed: Removal | None = None) -> Plan:
        """What would be cut."""
        with self._refused_budget():
            return make_plan(self.network, self.cut, self.curvature, self.sparsity, self.budget, removed)

    def allocate(self, plan: Plan) -> list[int]:
        """How many units each set keeps; UserError if the budget cannot be reached."""
        with self._refused_budget():
            return plan.allocate(self.cut.prune_ratio, self.budget)

    @contextmanager
    def _refused_budget(self) -> Generator[None]:
        """Tell the user what can be reached."""
        try:
            yield
        except InfeasibleBudget as floor:
            wanted = f"target_flops {self.cut.target_flops}, target_params {self.cut.target_params}"
            raise UserError(f"{wanted}: {floor.of(self.dense)}") from floor

    def train_sparse(self) -> Removal | None:
        """The method's trainings before the cut, and the channels that it selected in between, if it did."""
        method, model = sparsity_of(self.cut.method), self.network.model
        initial = copy.deepcopy(model.state_dict())
        removed = None
        for number, training in enumerate(method.trainings):
            if training is method.after:
                plan = self.make_plan()
                assert isinstance(plan, ChannelPlan)  # `sparse_target` refuses other methods
                removed = plan.removed(self.allocate(plan))
            if training.start == "parent":
                model.load_state_dict(initial)
            if number == 0 and training.starts_fresh(self.sparsity):
                initialise(model, self.network.seed, "sparse")
            self._train(training, removed or {})
            if method.conclude is not None:
                method.conclude(model)
        return removed

    def _train(self, training: SparseTraining, removed: Removal) -> None:
        with self._refused_budget():
            target = sparse_target(self.network, self.cut, self.budget, removed)
        drive = training.prepare(target, self.sparsity)
        self.fine_tune(self.network.model, self.sparsity.sparse_epochs, drive=drive)

    def fine_tune(self, model: nn.Module, epochs: float, **options: Any) -> None:
        """Train by the task's loss; the other options are those of `finetune`."""
        task, device = self.batches.task, self.batches.device
        common: dict[str, Any] = {"likelihood": task.likelihood, "forward": task.output}
        finetune(model, self.batches, epochs=epochs, lr=self.lr, device=device, **common, **options)


def _check_training(task: Task, fine_tune: object, kd_weight: float) -> None:
    """UserError for a training that could not be run, before anything else is."""
    epochs = isinstance(fine_tune, int | float) and not isinstance(fine_tune, bool) and 0 <= fine_tune <= MOST_EPOCHS
    if not callable(fine_tune) and not epochs:
        raise UserError(
            f"fine_tune {fine_tune!r}: give a number of epochs in [0, {MOST_EPOCHS:,}], or a function of the pruned "
            "module"
        )
    if kd_weight and isinstance(task.likelihood, UserLoss):
        raise UserError("kd_weight: a function as loss says nothing of the distance between two outputs; give 0")


def _as_the_first(model: nn.Module, module: nn.Module, history: Sequence[Edit]) -> tuple[nn.Module, tuple[Edit, ...]]:
    """The first process's cut of ``model``, in all processes, and the edits that it consists of."""
    own = edits_between(model, module, history)
    first = json_from_first(lambda: [edit.to_json() for edit in own])
    edits = tuple(map(edit_from_json, first))
    if edits != own:
        module = plain_copy(model)
        apply_edits(module, edits)
    share_weights(module)
    return module, edits


def _check_finite(module: nn.Module, model: nn.Module) -> None:
    """RunFailed if a number of ``module`` is not finite where the ``model`` had none of that kind."""
    before = {name for name, value in model.state_dict().items() if not _finite(value)}
    for name, value in module.state_dict().items():
        if name not in before and not _finite(value):
            raise RunFailed(
                f"{name} of the pruned network is not finite; look for NaN in the images, or fine-tune at a lower lr"
            )


def _finite(value: Any) -> bool:
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
