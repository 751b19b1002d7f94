"""Static pruning of any module of the user's own."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridprune.config import CurvatureOptions, CutOptions, SparsityOptions
from hybridprune.curvature import Shard
from hybridprune.data import Batch
from hybridprune.engine.batchnorm import recalibrate
from hybridprune.engine.finetune import finetune
from hybridprune.engine.initialise import initialise
from hybridprune.engine.modes import take_modes
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module
from hybridprune.models.edits import edits_between
from hybridprune.pruned import Pruned, PrunedSpec
from hybridprune.pruning.left_alone import notice
from hybridprune.pruning.proposal import Proposal
from hybridprune.pruning.propose import propose, sparse_target, sparsity_of
from hybridprune.pruning.space import Budget, Cost, InfeasibleBudget
from hybridprune.pruning.sparsity import Removal, SparseTraining
from hybridprune.pruning.subject import Subject

Loader = Iterable[tuple[Tensor, Tensor]]
"""Batches of images and class ids; gone through several times."""

RECALIBRATION_IMAGES = 4096


def prune(
    model: nn.Module,
    train_loader: Loader,
    *,
    target_flops: float | None = None,
    target_params: float | None = None,
    method: str = "fisher-tucker",
    fine_tune: float | Callable[[nn.Module], object] = 0.0,
    lr: float = 0.02,
    kd_weight: float = 0.0,
    cut: CutOptions | None = None,
    curvature: CurvatureOptions | None = None,
    sparsity: SparsityOptions | None = None,
    seed: int = 0,
) -> Pruned:
    """A pruned copy of any classifier with ``nn.Conv2d`` or ``nn.Linear`` layers; ``model`` itself is not changed.

    Direction pruning is local to a layer, so shortcuts, concatenations and functional calls do not matter; grouped
    convolutions, layers that run several times and layers matching ``cut.exclude`` are left alone. The rest of the
    options are those of stage 2.

    Args:
        model: images ``[B, ...]`` to logits ``[B, classes]``, on the device where all is to happen.
        train_loader: batches of images and class ids, on any device; it is gone through several times.
        target_flops: share of the FLOPs to keep if <= 1, else FLOPs (2 x MACs) of one image.
        target_params: the same of the parameters.
        method: a method of ``config.json``.
        fine_tune: epochs (a fraction is a part of one) of SGD at ``lr`` after the cut, with ``kd_weight`` of the loss
            distilled from ``model``; or your own training, which gets the pruned module.
        sparsity: of a method that trains towards sparsity before it cuts; these trainings, too, are SGD at ``lr``.
        seed: of the sampled labels, and of new weights.

    Raises:
        UserError: if the budget lies below the reachable floor, or nothing can be pruned.
    """
    cut = dataclasses.replace(
        cut or CutOptions(), method=method, target_flops=target_flops, target_params=target_params
    )
    module = copy.deepcopy(model)
    example = next(iter(train_loader))[0][:1].to(_device(model))
    dense = Cost(*count_module(model, example))
    subject = Subject(
        model=module,
        logits=module,
        run=lambda net, images: net(images),
        example=example,
        exclude=cut.exclude,
        sample=lambda images, purpose: _Sample(train_loader, images, _device(model)),
        cost=dense,
        counts=lambda name: True,
        channels={},
        seed=seed,
        shard=Shard.current(),
    )
    work = _Work(subject, cut, curvature or CurvatureOptions(), sparsity or SparsityOptions(), dense, train_loader, lr)
    removed = work.train_sparse()
    proposal = work.propose(removed)
    if (told := notice(proposal.left_alone)) is not None:
        warnings.warn(told, stacklevel=2)
    proposal.apply(work.allocate(proposal))
    if cut.cut_weights == "scratch":
        initialise(module, seed, "cut")
    recalibrate(module, _Batches(subject.sample(RECALIBRATION_IMAGES, "recalibration")))
    if callable(fine_tune):
        fine_tune(module)
    elif fine_tune > 0:
        teacher = model if kd_weight > 0 else None
        finetune(
            module,
            train_loader,
            epochs=fine_tune,
            lr=lr,
            device=_device(model),
            teacher=teacher,
            kd_weight=kd_weight,
        )
    cost = Cost(*count_module(module, example))
    edits = edits_between(model, module)
    spec = PrunedSpec(edits, cost.macs, cost.params, dense.macs, dense.params, proposal.left_alone)
    return Pruned(take_modes(module, model), spec)


@dataclass(frozen=True)
class _Work:
    """What leads to the cut of one module."""

    subject: Subject
    cut: CutOptions
    curvature: CurvatureOptions
    sparsity: SparsityOptions
    dense: Cost
    loader: Loader
    lr: float

    @property
    def budget(self) -> Budget | None:
        """What the cut has to meet."""
        return Budget.of(self.cut.target_flops, self.cut.target_params, self.dense)

    def propose(self, removed: Removal | None = None) -> Proposal:
        """What would be cut."""
        with self._refused_budget():
            return propose(self.subject, self.cut, self.curvature, self.sparsity, self.budget, removed)

    def allocate(self, proposal: Proposal) -> list[int]:
        """How many units each set keeps; UserError if the budget cannot be reached."""
        with self._refused_budget():
            return proposal.allocate(self.cut.prune_ratio, self.budget)

    @contextmanager
    def _refused_budget(self) -> Iterator[None]:
        """Tell the user what can be reached."""
        try:
            yield
        except InfeasibleBudget as floor:
            wanted = f"target_flops {self.cut.target_flops}, target_params {self.cut.target_params}"
            raise UserError(f"{wanted}: {floor.of(self.dense)}") from floor

    def train_sparse(self) -> Removal | None:
        """The method's trainings before the cut, and the channels that it selected in between, if it did."""
        method, model = sparsity_of(self.cut.method), self.subject.model
        initial = copy.deepcopy(model.state_dict())
        removed = None
        for number, training in enumerate(method.trainings):
            if training is method.after:
                proposal = self.propose()
                removed = proposal.removed(self.allocate(proposal))
            if training.start == "parent":
                model.load_state_dict(initial)
            if number == 0 and training.starts_fresh(self.sparsity):
                initialise(model, self.subject.seed, "sparse")
            self._train(training, removed or {})
            if method.conclude is not None:
                method.conclude(model)
        return removed

    def _train(self, training: SparseTraining, removed: Removal) -> None:
        with self._refused_budget():
            target = sparse_target(self.subject, self.cut, self.budget, removed)
        drive = training.prepare(target, self.sparsity)
        model, device = self.subject.model, _device(self.subject.model)
        finetune(model, self.loader, epochs=self.sparsity.sparse_epochs, lr=self.lr, device=device, drive=drive)


@dataclass(frozen=True)
class _Sample:
    """The first images of a loader."""

    loader: Loader
    images: int
    device: torch.device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        left = self.images
        for images, labels in self.loader:
            if left <= 0:
                return
            yield images[:left].to(self.device), labels[:left].to(self.device)
            left -= len(images)


@dataclass(frozen=True)
class _Batches:
    pairs: Loader

    def __iter__(self) -> Iterator[Batch]:
        return (Batch(images, labels, labels) for images, labels in self.pairs)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
