"""Sums and weights that processes with a share of every batch each agree on; with one process, nothing is done.

Gradients are averaged after the backward pass, all in one message. That is the arithmetic of DistributedDataParallel,
which can only prepare its averaging in its own ``forward``: rollouts have none, they drive the network step by step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hybridprune.processes import count


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of all ``parameters`` by their means over the processes.

    A missing one counts as 0; where all processes lack it, it stays missing: an optimiser must not decay its parameter.
    """
    if count() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        return
    has = [parameter.grad is not None for parameter in trained]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    anywhere = torch.tensor(has, dtype=trained[0].dtype, device=trained[0].device)
    average([*gradients, anywhere])
    for parameter, gradient, some in zip(trained, gradients, anywhere.tolist(), strict=True):
        parameter.grad = gradient if some else None


def average(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one type by their means over the processes; all pass the same shapes in the same order."""
    if count() > 1 and tensors:
        flat = torch.cat([tensor.flatten() for tensor in tensors]) / count()
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def batch_mean(mean: Tensor, weight: float) -> Tensor:
    """The mean over a whole batch, from that over this process's share of it (`Batch.weight`).

    It is for what is not linear in it: the derivative is that of the share's own mean, so the average of the
    processes' gradients is the gradient of one process that sees the whole batch.
    """
    return mean if count() == 1 else _BatchMean.apply(mean, weight)  # type: ignore[no-any-return]


class _BatchMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, mean: Tensor, weight: float) -> Tensor:
        whole = mean * weight
        average([whole])
        return whole

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def share_weights(net: nn.Module) -> None:
    """Give every process the first one's parameters and buffers of the same network, in place."""
    if count() > 1:
        for tensor in net.state_dict().values():
            content = tensor.contiguous()
            dist.broadcast(content, 0)
            tensor.copy_(content)


def gather(part: Tensor, start: int, whole: int) -> Tensor:
    """All of ``[whole, ...]``, of which this process has the rows from ``start`` on."""
    if count() == 1:
        return part
    rows = part.new_zeros(whole, *part.shape[1:])
    rows[start : start + len(part)] = part
    if rows.numel():  # without gates there are no decisions
        dist.all_reduce(rows)
    return rows
