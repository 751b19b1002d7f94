"""BatchNorm with bounded scales and without a shift (Suteu & Guo 2022, section 3.1)."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from hybridprune.models.replace import replace_module

TOP = 0.95
"""The importance of a layer's strongest channel where the scales of a BatchNorm are too large for a sigmoid."""
LEAST = 1e-12
"""Importances are at least this far from 0, and about one rounding error of fp32 from 1: logits stay finite."""


class SigmoidBatchNorm2d(nn.Module):
    """``y = sigmoid(gamma) x_hat`` on ``[B, C, H, W]``: a channel's importance lies in (0, 1), and there is no shift.

    The normalisation is a BatchNorm of its own, so that what looks for BatchNorms (recalibration, averages over
    processes, synchronised statistics) finds it. Where layers are removed or folded, `concluded` comes first.
    """

    def __init__(self, norm: nn.BatchNorm2d, gamma: Tensor) -> None:
        """The statistics of ``norm`` with the scales ``sigmoid(gamma [C])``; ``norm`` is left as it is."""
        super().__init__()
        assert gamma.shape == (norm.num_features,), (gamma.shape, norm.num_features)
        self.norm = _like(norm, gamma, affine=False)
        self.gamma = nn.Parameter(gamma.detach().clone())
        self.train(norm.training)

    @property
    def importance(self) -> Tensor:
        """``sigmoid(gamma) [C]``."""
        return self.gamma.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        normalised = self.norm(x)
        return normalised * self.importance.to(normalised.dtype).view(-1, 1, 1)


def bounded(norm: nn.BatchNorm2d, generator: torch.Generator) -> SigmoidBatchNorm2d:
    """The bounded form of a BatchNorm that has scales: its shift is lost, and so are the signs of its scales.

    A BatchNorm as torch initialises it (scales 1, shifts 0) knows nothing of its channels: ``gamma ~ N(0, 1)``, drawn
    on the CPU, as published. Otherwise ``sigmoid(gamma) = |scale|`` exactly or, where a scale is above `TOP`, the
    layer's scales over a common factor, which the next BatchNorm takes out again.
    """
    assert norm.affine
    scale, shift = norm.weight.detach(), norm.bias.detach()
    if bool((scale == 1).all() and (shift == 0).all()):
        return SigmoidBatchNorm2d(norm, torch.randn(scale.shape, generator=generator).to(scale))
    importance = scale.double().abs()
    if importance.max() > 1:
        importance = importance * (TOP / importance.max())
    return SigmoidBatchNorm2d(norm, importance.clamp(LEAST, 1 - 2**-24).logit().to(scale))


def concluded(bounded_norm: SigmoidBatchNorm2d) -> nn.BatchNorm2d:
    """The BatchNorm that computes the same: scales ``sigmoid(gamma)`` and shifts 0, which training may change."""
    norm = _like(bounded_norm.norm, bounded_norm.gamma, affine=True)
    with torch.no_grad():
        norm.weight.copy_(bounded_norm.importance)
    return norm


def bound(model: nn.Module, names: Collection[str], generator: torch.Generator) -> None:
    """Put the BatchNorms called ``names`` into their bounded form (`bounded`), in place."""
    found = {name: model.get_submodule(name) for name in names}
    _exchange(model, {norm: bounded(norm, generator) for norm in found.values() if isinstance(norm, nn.BatchNorm2d)})


def conclude(model: nn.Module) -> None:
    """Put every `SigmoidBatchNorm2d` of ``model`` back into a plain BatchNorm (`concluded`), in place.

    The function stays the same to rounding. Training that follows has a shift again, which starts at 0.
    """
    _exchange(model, {m: concluded(m) for m in model.modules() if isinstance(m, SigmoidBatchNorm2d)})


def _exchange(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules into the places of some, under all of their names."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module in new:
            replace_module(model, name, new[module])


def _like(norm: nn.BatchNorm2d, kind: Tensor, affine: bool) -> nn.BatchNorm2d:
    """A BatchNorm of the same statistics and of the type of ``kind``, with or without fresh scales and shifts."""
    new = nn.BatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, affine=affine, track_running_stats=norm.track_running_stats
    ).to(kind)
    new.load_state_dict(dict(norm.named_buffers()), strict=False)
    return new.train(norm.training)
