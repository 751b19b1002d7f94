"""Shares of the variance of layers' outputs that each of their inputs brings, and the pass over images for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.batch import Batch, at_least_one
from hybridprune.hooks import attached
from hybridprune.pruning.channels import ChannelGroup, Member
from hybridprune.pruning.channels.scores.statistics import Statistics, sum_over

UNFOLDED_BYTES = 2**28
"""What unfolded images may take at once."""


def readers(group: ChannelGroup) -> tuple[Member, ...]:
    """The convolutions and linear layers that read the group's channels."""
    return group.of("consumer")


def global_variance(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """``sum_o Var(W_oi * x_i) / sum_o Var(y_o)`` of each channel i, summed over the layers that read it.

    An own reading of Khetan & Karnin 2020 (PruneNet): the variance that the channel alone brings to the outputs, as a
    share of all of it. What it shares with other channels (covariance) does not count.
    """
    return sum_over(group, readers(group), lambda layer: statistics.variance[layer])


@torch.no_grad()
def collect_variance(
    forward: Callable[[Any], Any], modules: Mapping[str, nn.Module], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """``sum_o Var(W_oi * x_i) / sum_o Var(y_o)`` of each input i of each layer.

    The variance is over images and output positions. ``W_oi * x_i`` is what input i adds to output o; its variance is
    ``w_oi' C_i w_oi`` with the covariance ``C_i [k^2, k^2]`` of what the kernel's offsets read of the input.

    Args:
        forward: images to anything; the network in eval mode.
        modules: ungrouped ``nn.Conv2d`` and ``nn.Linear`` layers by name; one may run several times in a pass.
        batches: of images.

    Returns:
        ``[inputs]`` by name, in double precision; 0 where the outputs do not vary, or the layer never ran.

    Raises:
        ValueError: if there is no batch.
    """
    read = {name: _Covariance() for name in modules}
    given = {name: _Covariance() for name in modules}

    def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            chunk = max(1, UNFOLDED_BYTES // max(1, args[0][:1].numel() * args[0].itemsize * _offsets(module)))
            for x in args[0].split(chunk):
                read[name].add(_patches(module, x))
            given[name].add(_samples(module, output).unsqueeze(1))

        return hook

    handles = [module.register_forward_hook(observe(name)) for name, module in modules.items()]
    with attached(handles):
        for batch in at_least_one(batches, "a variance"):
            forward(batch.images)
    return {name: _shares(module, read[name], given[name]) for name, module in modules.items()}


def _shares(module: nn.Module, read: _Covariance, given: _Covariance) -> Tensor:
    weight = module.get_parameter("weight").detach().double().cpu()
    weight = weight.reshape(*weight.shape[:2], -1)  # [C_out, C_in, k^2], of a linear layer with k = 1
    if not read.count:
        return weight.new_zeros(weight.shape[1])
    own = torch.einsum("oik,ikl,oil->i", weight, read.covariance, weight)
    whole = given.covariance.sum()
    return own / whole if whole > 0 else torch.zeros_like(own)


@dataclass
class _Covariance:
    """Covariance ``[C, k, k]`` of samples ``[C, k, n]`` that come in batches (Chan et al. 1979), in double."""

    count: int = 0
    mean: Tensor | float = 0.0
    scatter: Tensor | float = 0.0

    def add(self, samples: Tensor) -> None:
        """Take n more samples of all channels."""
        n = samples.shape[2]
        if not n:
            return
        samples = samples.double()
        mean = samples.mean(2)
        centred = samples - mean.unsqueeze(2)
        apart = mean.cpu() - self.mean
        between = apart.unsqueeze(2) * apart.unsqueeze(1) * (self.count * n / (self.count + n))
        self.scatter = self.scatter + (centred @ centred.mT).cpu() + between
        self.count += n
        self.mean = self.mean + apart * (n / self.count)

    @property
    def covariance(self) -> Tensor:
        """Of all samples together, divided by their number."""
        assert isinstance(self.scatter, Tensor)
        return self.scatter / self.count


def _samples(module: nn.Module, activations: Tensor) -> Tensor:
    """``[C, n]`` of activations ``[B, C, H, W]``, or of a linear layer's ``[..., C]``."""
    return activations.movedim(-1 if isinstance(module, nn.Linear) else 1, 0).flatten(1)


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    """``[C, k^2, n]``: what each kernel offset reads of each channel, at all output positions of all images."""
    if not isinstance(module, nn.Conv2d):
        return _samples(module, x).unsqueeze(1)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    unfolded = F.unfold(padded, module.kernel_size, dilation=module.dilation, stride=module.stride)
    return unfolded.unflatten(1, (x.shape[1], -1)).movedim(0, 2).flatten(2)


def _offsets(module: nn.Module) -> int:
    return module.get_parameter("weight")[0, 0].numel()
