"""First-order Taylor scores, and the pass over images that they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.batch import Batch, at_least_one
from hybridprune.curvature import CROSS_ENTROPY, Likelihood
from hybridprune.errors import RunFailed
from hybridprune.pruning.channels import ChannelGroup, Member
from hybridprune.pruning.channels.scores.statistics import Statistics, sum_over


def taylor_members(group: ChannelGroup) -> tuple[Member, ...]:
    """The members whose outputs count: the group's BatchNorms or, if it has none, the layers that produce it."""
    return group.of("norm") or group.of("producer")


def taylor(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """Squared first-order change of the loss when a channel's gates close (Molchanov et al. 2019, equations 8, 10)."""
    return sum_over(group, taylor_members(group), lambda layer: statistics.taylor[layer])


def collect_taylor(
    forward: Callable[[Any], Any],
    modules: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    likelihood: Likelihood = CROSS_ENTROPY,
) -> dict[str, Tensor]:
    """Mean over batches of the squared derivative of the loss in a gate at each output of each module.

    A gate multiplies an output by z = 1. The derivative of the batch's mean loss in z is
    ``gamma dL/dgamma + beta dL/dbeta`` at a BatchNorm, likewise ``sum w dL/dw + b dL/db`` over the filter at a
    convolution or linear layer. It is squared batch by batch, as by the paper's authors: the batch size matters.

    Args:
        forward: images to what the likelihood takes; the network in eval mode.
        modules: those in `taylor_members`, by name.
        batches: of images ``[B, ...]`` and given targets.
        likelihood: the loss of the given targets.

    Returns:
        ``[outputs]`` by name, in double precision; 0 where no gradient comes. Nothing is left in ``.grad``.

    Raises:
        ValueError: if a module has no weight, or is in training mode, or if there is no batch.
        RunFailed: if the loss is not finite.
    """
    parameters: dict[str, list[Tensor]] = {}  # of frozen BatchNorms buffers
    for name, module in modules.items():
        parameters[name] = [w for w in (module.weight, module.bias) if isinstance(w, Tensor)]
        if module.training or not parameters[name]:
            raise ValueError(f"no Taylor score of {name}: it must have weights and be in eval mode")
    flat = [p for of_module in parameters.values() for p in of_module]
    frozen = [p for p in flat if not p.requires_grad]
    count = 0
    sums = {name: torch.zeros(len(p[0]), dtype=torch.float64) for name, p in parameters.items()}
    for p in frozen:
        p.requires_grad_(True)
    try:
        for count, batch in enumerate(at_least_one(batches, "a Taylor score"), start=1):
            with torch.enable_grad():
                loss = likelihood.loss(forward(batch.images), batch.labels)
                if not bool(loss.detach().isfinite()):
                    raise RunFailed(f"taylor: the loss of batch {count} is not finite; look for NaN in its images")
                if not loss.requires_grad:  # no path leads from it to any weight
                    continue
                gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True))
            for name, of_module in parameters.items():
                products = [(p * next(gradients)).detach().double().flatten(1 if p.ndim > 1 else 0) for p in of_module]
                derivative = torch.stack([x.sum(1) if x.ndim > 1 else x for x in products]).sum(0)
                sums[name] += derivative.cpu() ** 2
    finally:
        for p in frozen:
            p.requires_grad_(False)
    return {name: total / count for name, total in sums.items()}
