"""Re-estimating BatchNorm statistics after weights or decisions have changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from hybridprune.data import Batch, EvalBatches
from hybridprune.engine.modes import always_on as without_gates
from hybridprune.engine.modes import kept_modes
from hybridprune.engine.parallel import average
from hybridprune.precision import full_precision
from hybridprune.processes import total

T = TypeVar("T")

FEW = 4
"""A norm that fewer images of a batch reach is not normalised by that batch alone."""


@dataclass(frozen=True)
class Moments:
    """Moments of all values that a BatchNorm has seen of each channel, in double precision."""

    count: int
    """Values of a channel."""
    mean: Tensor
    """``[C]``"""
    squares: Tensor
    """``[C]``, the summed squared deviations from the mean."""
    batches: int = 1

    @staticmethod
    def none(like: Tensor) -> Moments:
        """Moments of nothing, for channels as in ``like [C]``."""
        zeros = torch.zeros_like(like, dtype=torch.float64)
        return Moments(0, zeros, zeros, 0)

    @staticmethod
    def of(x: Tensor) -> Moments:
        """The moments of a batch ``[B, C, ...]``, over all axes but the second."""
        count = x.numel() // x.shape[1]
        values = [axis for axis in range(x.ndim) if axis != 1]
        variance, mean = torch.var_mean(x.float() if x.dtype.itemsize < 4 else x, values, correction=0)
        return Moments(count, mean.double(), variance.double() * count)

    def __add__(self, other: Moments) -> Moments:
        """The moments of the values of both: whatever the batches, those of one pass over all.

        With ``d = m_2 - m_1`` and ``n = n_1 + n_2`` the mean is ``m_1 + d n_2 / n``, the squares are
        ``s_1 + s_2 + d^2 n_1 n_2 / n`` (Chan, Golub & LeVeque 1983).
        """
        assert self.mean.shape == other.mean.shape
        count, shift = self.count + other.count, other.mean - self.mean
        share = other.count / max(count, 1)
        squares = self.squares + other.squares + shift**2 * (self.count * share)
        return Moments(count, self.mean + shift * share, squares, self.batches + other.batches)

    def of_all_processes(self) -> Moments:
        """The moments of the values of all processes, in each of them.

        They add up their ``n``, ``n m`` and ``s + n m^2``; the squares are the last less ``n m^2`` of the whole.
        """
        counts = torch.full_like(self.mean, self.count)
        sums = [counts, self.mean * self.count, self.squares + self.mean**2 * self.count]
        total(sums)
        mean = sums[1] / sums[0].clamp(min=1)
        return Moments(round(float(sums[0][0])), mean, (sums[2] - mean**2 * sums[0]).clamp(min=0), self.batches)

    def write(self, norm: _BatchNorm) -> None:
        """Make them the statistics of ``norm``, the variance unbiased; of fewer than two values there is none."""
        if self.count > 1 and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(self.mean)
            norm.running_var.copy_(self.squares / (self.count - 1))


def recalibrate(net: nn.Module, batches: Iterable[Batch], always_on: bool = False) -> None:
    """Replace the running statistics by those of all images together, as seen with all other modules in eval mode.

    A gated network is routed by its gates or, ``always_on``, executes every block. Processes that share the batches
    (`EvalBatches`) end with the statistics of the images of all of them.
    """
    shared = isinstance(batches, EvalBatches) and batches.share.processes > 1
    forward = without_gates(net) if always_on else net
    recalibrate_by(net, batches, lambda batch: forward(batch.images), shared)


@torch.no_grad()
@full_precision()
def recalibrate_by(net: nn.Module, batches: Iterable[T], run: Callable[[T], object], shared: bool = False) -> None:
    """Replace the running statistics of the BatchNorms of ``net`` by those of all images that reach them.

    The mean and the unbiased variance of all values of a channel, whatever the sizes of the batches. Meanwhile every
    norm normalises by the statistics of the batch (`batch_statistics`), so the batches have to be drawn at random:
    then what a norm sees is as in the finished network up to the batches' own deviations. A norm that nothing
    reaches, or only one value a channel, keeps its statistics; one without running statistics is left alone.

    Args:
        run: passes a batch through ``net``, which is in eval mode.
        shared: whether each process runs batches of its own, of which the statistics are joined.
    """
    with kept_modes(net), batch_statistics(net) as seen:
        net.eval()
        for batch in batches:
            run(batch)
    for norm, moments in seen.items():
        whole = moments.of_all_processes() if shared else moments
        whole.write(norm)
        if whole.count > 1 and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.fill_(whole.batches)


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[Mapping[_BatchNorm, Moments]]:
    """Inside, the BatchNorms of ``net``, in eval mode, normalise by the statistics of the batch; yield what they see.

    Where fewer than `FEW` images arrive, by those of all that has arrived so far: a single image has no statistics,
    and a block that a gate skips for most images sees few at a time. Their running statistics are restored on leaving.
    """
    norms = _with_statistics(net)
    seen = {norm: Moments.none(norm.running_mean) for norm in norms if norm.running_mean is not None}

    def enter(norm: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        assert isinstance(norm, _BatchNorm)
        x = args[0] if args else kwargs["input"]
        # its own pass over the batch is faster than one for the statistics; SyncBatchNorm's would wait for others
        norm.training = len(x) >= FEW and not isinstance(norm, nn.SyncBatchNorm)
        if not norm.training and x.numel():
            alone = Moments.of(x)
            seen[norm] += alone
            (alone if len(x) >= FEW else seen[norm]).write(norm)

    def leave(norm: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        assert isinstance(norm, _BatchNorm)
        if norm.training and norm.running_mean is not None and norm.running_var is not None:
            count = y.numel() // y.shape[1]
            seen[norm] += Moments(count, norm.running_mean.double(), norm.running_var.double() * (count - 1))
        norm.training = False

    with _restored(norms, momentum=1.0) as hooks:  # the running statistics are the last batch's
        hooks += [norm.register_forward_pre_hook(enter, with_kwargs=True) for norm in norms]
        hooks += [norm.register_forward_hook(leave) for norm in norms]
        yield seen


@contextmanager
def normalised_by_batch(net: nn.Module) -> Iterator[None]:
    """Inside, the BatchNorms of ``net``, in eval mode, normalise by the statistics of each batch, and keep their own.

    By their own where fewer than `FEW` images arrive. Unlike `batch_statistics` it takes no note of what arrives.
    """
    norms = _with_statistics(net)

    def enter(norm: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        assert isinstance(norm, _BatchNorm)
        x = args[0] if args else kwargs["input"]
        mixed = len(x) >= FEW
        norm.training = mixed and not isinstance(norm, nn.SyncBatchNorm)
        if mixed and not norm.training:
            Moments.of(x).write(norm)

    with _restored(norms, momentum=0.0) as hooks:
        hooks += [norm.register_forward_pre_hook(enter, with_kwargs=True) for norm in norms]
        yield


def _with_statistics(net: nn.Module) -> list[_BatchNorm]:
    return [m for m in net.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@contextmanager
def _restored(norms: Sequence[_BatchNorm], momentum: float) -> Iterator[list[RemovableHandle]]:
    """Inside, norms in eval mode have a momentum; then mode, momentum and statistics are as before, and hooks gone."""
    momenta = [norm.momentum for norm in norms]
    before = [[buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms]
    hooks: list[RemovableHandle] = []
    try:
        for norm in norms:
            norm.momentum = momentum
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()
        for norm, own, buffers in zip(norms, momenta, before, strict=True):
            norm.momentum, norm.training = own, False
            for buffer, value in zip(norm.buffers(recurse=False), buffers, strict=True):
                buffer.copy_(value)


def average_statistics(net: nn.Module) -> None:
    """Replace the running statistics of the norms in training mode by their means over the processes.

    Each process normalises by its own share of a batch; running averages are linear in what they average, so it does
    not matter when they are joined.
    """
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm) and module.training]
    average([stat for norm in norms for stat in (norm.running_mean, norm.running_var) if stat is not None])


@contextmanager
def synchronised(net: nn.Module) -> Iterator[None]:
    """Inside, the norms of ``net`` take their statistics from the whole batch of all processes, on GPUs only.

    Parameters and statistics stay the same tensors.
    """
    before = [
        (module, name, child)
        for module in net.modules()
        for name, child in module.named_children()
        if isinstance(child, _BatchNorm)
    ]
    try:
        for module, name, child in before:
            setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
        yield
    finally:
        for module, name, child in before:
            child.training = getattr(module, name).training
            setattr(module, name, child)
