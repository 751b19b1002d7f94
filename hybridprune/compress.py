"""Static pruning of any module of the user's own, and putting the result back together elsewhere."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.curvature import Shard
from hybridprune.data import Batch
from hybridprune.engine.batchnorm import recalibrate
from hybridprune.engine.finetune import finetune
from hybridprune.errors import UserError
from hybridprune.measure.cost import count_module
from hybridprune.models.edits import Edit, apply_edits, edit_from_json, edits_between
from hybridprune.pruning.propose import propose
from hybridprune.pruning.space import Budget, Cost, InfeasibleBudget
from hybridprune.pruning.subject import Subject
from hybridprune.store.files import write_json
from hybridprune.store.run_folder import load_weights, save_weights

Loader = Iterable[tuple[Tensor, Tensor]]
"""Batches of images and class ids; gone through several times."""

RECALIBRATION_IMAGES = 4096


@dataclass(frozen=True)
class PrunedSpec:
    """What ``prune`` did to a module: enough to do it again to a fresh instance, and what it saved."""

    edits: tuple[Edit, ...]
    macs: int
    """Of one image."""
    params: int
    dense_macs: int
    dense_params: int

    def to_json(self) -> dict[str, object]:
        """A plain dictionary."""
        numbers = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "edits"}
        return {"edits": [edit.to_json() for edit in self.edits], **numbers}

    @staticmethod
    def read(path: Path) -> PrunedSpec:
        """The specification that ``save`` wrote; UserError if it is missing or broken."""
        try:
            record = json.loads(path.read_text())
            return PrunedSpec(tuple(map(edit_from_json, record.pop("edits"))), **record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a pruned module's specification ({error}); save it again") from error


class Pruned(NamedTuple):
    """A pruned copy of a module and what was done to it."""

    module: nn.Module
    spec: PrunedSpec


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
        seed: of the sampled labels.

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
    proposal = propose(subject, cut, curvature or CurvatureOptions())
    try:
        kept = proposal.allocate(cut.prune_ratio, Budget.of(target_flops, target_params, dense))
    except InfeasibleBudget as floor:
        raise UserError(f"target_flops {target_flops}, target_params {target_params}: {floor.of(dense)}") from floor
    proposal.apply(kept)
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
    spec = PrunedSpec(edits_between(model, module), cost.macs, cost.params, dense.macs, dense.params)
    return Pruned(module.train(model.training), spec)


def save(pruned: Pruned, folder: str | Path) -> None:
    """Write ``spec.json`` and ``model.safetensors`` of a pruned module into ``folder``, atomically."""
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    save_weights(pruned.module, path / "model.safetensors")
    write_json(path / "spec.json", pruned.spec.to_json())


def restore(source: PrunedSpec | str | Path, into: nn.Module) -> nn.Module:
    """Give ``into``, a fresh instance of the unpruned module, the pruned architecture in place, and return it.

    From a folder of ``save`` it also gets the weights, loaded strictly. Raises UserError if they do not fit.
    """
    spec = source if isinstance(source, PrunedSpec) else PrunedSpec.read(Path(source) / "spec.json")
    try:
        apply_edits(into, spec.edits)
    except ValueError as error:
        raise UserError(f"{source}: belongs to another kind of module ({error})") from error
    if not isinstance(source, PrunedSpec):
        load_weights(into, Path(source) / "model.safetensors")
    return into


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
