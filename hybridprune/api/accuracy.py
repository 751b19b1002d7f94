# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUnnecessaryIsInstance=false
"""Accuracy: the share of a loader's images that a network classifies as they are labelled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.ambient import isolated
from hybridprune.api.first_look import Task, device_of
from hybridprune.api.input_scale import first_norm
from hybridprune.config import argument_names
from hybridprune.curvature.likelihood import IGNORED, CrossEntropy
from hybridprune.engine.plain import in_single, plain_copy, unwrapped
from hybridprune.errors import UserError
from hybridprune.models.held import AnyNetwork, network_of
from hybridprune.models.routed import RoutedNetwork
from hybridprune.nested import on_device
from hybridprune.precision import full_precision


@argument_names()
def accuracy(
    model: AnyNetwork, loader: Iterable[Any], *, forward: Callable[[nn.Module, Any], Any] | None = None
) -> float:
    """The share, from 0 to 1, of a loader's images that a network gives the class of their label.

    The network runs in eval mode and in single precision; ``model`` itself is not changed. A gated network skips the
    blocks that its gates close, and a cascade stops where its gates say so. An image whose logits are not numbers
    counts as wrong.

    Args:
        model: any classifier: a module, or what `prune`, `deploy` or `load` returns.
        loader: batches of images ``[B, C, H, W]`` and class ids ``[B]``, on any device, gone through once. Class ids
            ``[B, H, W]`` of logits ``[B, K, H, W]`` count position by position, but for those that are -100.
        forward: a function of (model, batch) that gives the logits; by default they are ``model(batch[0])``. The second
            item of a batch is its class ids in any case.

    Raises:
        UserError: if there are no batches, or the model and a batch, which is named by its number, do not fit together.
    """
    network = network_of(model)
    if not isinstance(network, nn.Module):
        raise UserError(
            f"model: is a {type(model).__name__}; give a torch.nn.Module, or what prune, deploy or load returns"
        )
    plain = plain_copy(unwrapped(network)).eval()
    device = device_of(plain)
    if forward is None and isinstance(plain, RoutedNetwork):
        forward = _routed_logits
    right = counted = 0
    with isolated(dtype=None), full_precision(), torch.no_grad(), first_norm(plain) as norm:
        for number, batch in enumerate(loader, start=1):
            try:
                logits, labels = _answers(Task(CrossEntropy(), forward), plain, batch, device)
                norm.check_scale()
            except UserError as error:
                raise UserError(f"batch {number}: {error}") from error
            known = labels != IGNORED
            found = (logits.argmax(1) == labels) & ~logits.isnan().any(1)
            right, counted = right + int(found[known].sum()), counted + int(known.sum())
    if not counted:
        raise UserError("the loader gives no labelled images; give one that is not empty, however often it is used")
    return right / counted


def _answers(task: Task, model: nn.Module, batch: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Logits ``[B, K, ...]`` and class ids ``[B, ...]`` of a batch; UserError if they do not fit."""
    if task.forward is not None and not (isinstance(batch, list | tuple) and len(batch) > 1):
        raise UserError(f"is a {type(batch).__name__}; give tuples whose second item is the class ids")
    inputs, targets = (in_single(on_device(part, device)) for part in task.split(batch))
    logits = task.output(model, inputs)
    if isinstance(logits, Tensor) and (logits.dim() < 2 or logits.shape[1] < 2):
        raise UserError(f"the output {list(logits.shape)} has no logit for each class; give a classifier")
    task.likelihood.check(logits.shape if isinstance(logits, Tensor) else None, targets)
    return logits, targets.reshape(len(logits), *logits.shape[2:])


def _routed_logits(model: nn.Module, batch: Any) -> Tensor:
    """As a run's network is used: closed blocks are skipped."""
    return model(batch[0], mode="executed").logits
