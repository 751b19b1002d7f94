"""Compensation: a refitted layer makes up for a changed addend, and the norm behind it for the lost variance."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybridprune.pruning.directions.joints import Joint

DEAD = 1e-3
"""A norm's channel with a scale below this share of the largest passes nothing on, and cannot make up for anything."""


@dataclass
class Compensation:
    """One layer's norm in both networks, if there is one, and the gap of its addend so far."""

    ours: _BatchNorm | None
    theirs: _BatchNorm | None
    left: Tensor | None = None
    """The channels of theirs that ours has left; None: all of them."""
    gaps: list[Tensor] = field(default_factory=list)
    """Sums over images and positions, of each channel, batch by batch."""
    count: int = 0

    @staticmethod
    def of(model: nn.Module, reference: nn.Module, joint: Joint, left: Tensor | None = None) -> Compensation:
        """The compensation for a layer with this joint, of whose outputs these are ``left``."""
        if joint.norm is None:
            return Compensation(None, None)
        ours, theirs = model.get_submodule(joint.norm), reference.get_submodule(joint.norm)
        assert isinstance(ours, _BatchNorm) and isinstance(theirs, _BatchNorm)
        return Compensation(ours, theirs, left)

    def target(self, y: Tensor, gap: Tensor) -> Tensor:
        """The output ``y [B, C, ...]`` that the layer should have had, so that the sum is right.

        ``gap`` is the uncut network's addend less the cut one's; the layer's output reaches the sum times the norm's
        ``gamma / sqrt(var + eps)``.
        """
        if self.theirs is None:
            return y + gap
        axes = [axis for axis in range(gap.ndim) if axis != 1]
        self.gaps.append(gap.sum(axes, dtype=torch.float64))
        self.count += gap.numel() // gap.shape[1]
        scale = _scale(self.theirs)
        alive = scale.abs() > DEAD * scale.abs().max()
        inverse = torch.where(alive, 1 / torch.where(alive, scale, 1.0), 0.0)
        return y + gap * inverse.to(gap).view(1, -1, *(1 for _ in axes[1:]))

    def settle(self, variance: Tensor) -> None:
        """Let the norm give what it would give with the uncut network's variance, and the mean of the gap as well.

        ``variance [C]`` is what the refitted output has. The least-squares solution has less than its target; a norm
        that divides by it would blow up what is wrong as well as what is right.
        """
        if self.ours is None or self.theirs is None or self.ours.weight is None or self.theirs.running_var is None:
            return
        eps, wanted = self.theirs.eps, self.theirs.running_var.double()
        wanted = wanted if self.left is None else wanted[self.left.to(wanted.device)]
        assert variance.shape == wanted.shape, (variance.shape, wanted.shape)
        shrunk = ((variance + eps) / (wanted + eps)).sqrt()
        self.ours.weight.mul_(shrunk.to(self.ours.weight))
        if self.gaps:
            self.ours.bias.add_((torch.stack(self.gaps).sum(0) / self.count).to(self.ours.bias))


def _scale(norm: _BatchNorm) -> Tensor:
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt()
    return scale if norm.weight is None else scale * norm.weight.detach()
