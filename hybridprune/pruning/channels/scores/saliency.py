"""Saliency of channels for the loss of the whole task, and the pass over images for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.batch import Batch, at_least_one
from hybridprune.curvature import CROSS_ENTROPY, Likelihood, Rows
from hybridprune.errors import RunFailed
from hybridprune.hooks import attached
from hybridprune.nested import images_in
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.channels.group import outputs_of
from hybridprune.pruning.channels.scores.statistics import Statistics, sum_over
from hybridprune.pruning.channels.scores.taylor import taylor_members


def saliency(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """Mean over images of ``|sum over positions of A dL/dA|`` (after Choi & Tian 2023), summed over the group's layers.

    A is the output of the group's BatchNorms or, if it has none, of the layers that produce it. A ReLU behind it makes
    no difference: where it lets A through, ``A dL/dA`` is that of its own output, and elsewhere both are 0.
    """
    return sum_over(group, taylor_members(group), lambda layer: statistics.saliency[layer])


def collect_saliency(
    forward: Callable[[Any], Any],
    modules: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    likelihood: Likelihood = CROSS_ENTROPY,
    rows: Mapping[str, Rows] | None = None,
) -> dict[str, Tensor]:
    """Mean over images n of ``|sum over positions of A dL_n/dA|`` at each output of each module.

    A gate z = 1 multiplies an image's output channel; the sum is ``dL_n/dz``. Gates stand behind the module, so
    whatever overwrites its output in place does no harm. A module that runs several times in a pass has one gate.

    Args:
        forward: images to what the likelihood takes; the network in eval mode.
        modules: those in `taylor_members`, by name.
        batches: of B images and given targets.
        likelihood: the loss L of the given targets, a mean over the batch's images, ``L = mean_n L_n``.
        rows: where the images are in the modules' activations; by default each has one row.

    Returns:
        ``[outputs]`` by name, in double precision; 0 where no gradient comes. Nothing is left in ``.grad``.

    Raises:
        ValueError: if there is no batch.
        RunFailed: if the loss is not finite.
    """
    rows = rows or {}
    gates: dict[str, list[Tensor]] = {name: [] for name in modules}

    def gated(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            shape = output.shape if isinstance(module, nn.Linear) else (*output.shape[:2], 1, 1)
            gates[name].append(torch.ones(shape, dtype=output.dtype, device=output.device, requires_grad=True))
            return output * gates[name][-1]

        return hook

    sums: dict[str, Tensor] = {}
    images = 0
    handles = [module.register_forward_hook(gated(name)) for name, module in modules.items()]
    with attached(handles):
        for number, batch in enumerate(at_least_one(batches, "a saliency"), start=1):
            for found in gates.values():
                found.clear()
            size = images_in(batch.images)
            assert size is not None, "a batch without images"
            images += size
            with torch.enable_grad():
                loss = likelihood.loss(forward(batch.images), batch.labels)
            if not bool(loss.detach().isfinite()):
                raise RunFailed(f"saliency: the loss of batch {number} is not finite; look for NaN in its images")
            flat = [gate for found in gates.values() for gate in found]
            if not loss.requires_grad or not flat:
                continue
            gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True))
            for name, found in gates.items():
                passes = [_by_image(next(gradients), modules[name], rows.get(name, Rows())) for _ in found]
                if passes:
                    derivatives = size * torch.stack(passes).sum(0)  # of each image's own loss
                    sums[name] = sums.get(name, 0.0) + derivatives.abs().sum(0).double().cpu()
    zeros = {name: torch.zeros(outputs_of(module), dtype=torch.float64) for name, module in modules.items()}
    return {name: sums[name] / images if name in sums else zeros[name] for name in modules}


def _by_image(gradients: Tensor, module: nn.Module, rows: Rows) -> Tensor:
    """``[images, outputs]`` from the derivatives in a pass's gates, channels second or, of a linear layer, last."""
    found = rows.images_first(gradients)
    assert found is not None, f"the rows of {module} are not those of so many images"
    channel = -1 if isinstance(module, nn.Linear) else 2
    return found.movedim(channel, 1).flatten(2).sum(2)
