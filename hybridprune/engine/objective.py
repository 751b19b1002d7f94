"""Objectives: losses that a training step minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.config import GatingOptions, LossOptions
from hybridprune.curvature import Likelihood
from hybridprune.data import Batch
from hybridprune.engine.distill import Distillation
from hybridprune.engine.draws import Draws
from hybridprune.errors import UserError
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.gates import Decide, logistic, soft, straight_through
from hybridprune.models.routed import Routed

Pass = Callable[..., Routed]
"""A pass through a gated network: it takes what `GatedNetwork.forward` takes."""


NO_GRADIENT = "fine-tuning: no gradient of the loss reaches the model; mend the network or the loss"


class Objective(Protocol):
    """A differentiable loss, and what is worth logging beside it."""

    def __call__(self, forward: Pass, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (0-d) of passes through the network (perhaps compiled) and detached 0-d means to log.

        ``forward`` brings the precision of its passes along; an objective is called outside of autocast. Means are fp32
        or more.

        ``passes``: how many passes over the training images lie behind, the part of the present one included.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """State that must survive a resume."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        ...


def avoidable_share(decisions: Tensor, block_shares: Tensor) -> Tensor:
    """Mean over images of ``sum_j w_j a_j`` (0-d), from decisions ``[B, N]`` and the blocks' shares ``[N]``.

    Not a matrix product, which some settings round to fewer bits.
    """
    assert decisions.shape[1:] == block_shares.shape, (decisions.shape, block_shares.shape)
    return (decisions.float() * block_shares).sum(1).mean()


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy + ``rate_penalty`` x the mean over images of ``sum_j w_j a_j`` (SkipNet, section 3.3).

    ``w_j`` is a block's avoidable share of the backbone's FLOPs. With ``distillation``, part of the cross-entropy
    gives way to the teacher. The cross-entropy that is logged is that with the labels themselves, never smoothed.
    """

    block_shares: Tensor
    """``w [N]``"""
    rate_penalty: float
    distillation: Distillation | None = None
    decide: Decide = straight_through
    """Gives the decisions from the gates' logits."""
    gate_noise: float = 0.0
    """Scale of logistic noise on these logits: the network must not rely on saturated gates."""
    draws: Draws | None = None
    """What the noise is made of, ``N`` numbers an image."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes (Szegedy et al. 2016, section 7)."""

    def __post_init__(self) -> None:
        assert self.gate_noise == 0 or self.draws is not None

    @staticmethod
    def of(
        cost: NetworkCost,
        rate_penalty: float,
        device: torch.device,
        distillation: Distillation | None = None,
        gating: GatingOptions | None = None,
        draws: Draws | None = None,
        loss: LossOptions | None = None,
    ) -> Supervised:
        """The objective for a network of this cost."""
        gating, loss = gating or GatingOptions(), loss or LossOptions()
        shares = torch.tensor(cost.block_shares, device=device)
        decide = {"hard": straight_through, "soft": soft}[gating.gating]
        return Supervised(shares, rate_penalty, distillation, decide, gating.gate_noise, draws, loss.label_smoothing)

    def __call__(self, forward: Pass, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
        if self.gate_noise > 0 and self.draws is not None:
            noise = self.gate_noise * logistic(self.draws(int(passes), batch.ids))
            routed = forward(batch.images, decide=self.decide, noise=noise)
        else:
            routed = forward(batch.images, decide=self.decide)
        logits = routed.logits.float()
        cross_entropy = loss = F.cross_entropy(logits, batch.labels)
        if self.label_smoothing:
            loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        rate = avoidable_share(routed.decisions, self.block_shares)
        accuracy = (routed.logits.argmax(1) == batch.labels).float().mean()
        metrics = {"cross_entropy": cross_entropy, "accuracy": accuracy, "rate": routed.mean_rate}
        if self.distillation is not None:
            loss, metrics["distillation"] = self.distillation(batch.images, routed.logits, loss)
        loss = loss + self.rate_penalty * rate
        return loss, {name: value.detach() for name, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state


@dataclass(frozen=True)
class LikelihoodLoss:
    """The loss of a network's outputs by a likelihood, part of which may give way to a teacher."""

    likelihood: Likelihood
    distillation: Distillation | None = None

    def __call__(self, forward: Callable[..., Any], batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
        del passes
        output = forward(batch.images)
        loss = self.likelihood.loss(output, batch.labels)
        if self.distillation is not None:
            loss, _ = self.distillation(batch.images, output, loss)
        if not loss.requires_grad:
            raise UserError(NO_GRADIENT)
        return loss, {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state
