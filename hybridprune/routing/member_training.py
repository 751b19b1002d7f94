"""Members of a cascade learn for what they will keep and get, from a policy that stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hybridprune.data import Batch
from hybridprune.engine.objective import Pass
from hybridprune.engine.parallel import batch_mean
from hybridprune.models.cascade import Cascade
from hybridprune.routing.member_loss import member_losses, stop_weights, weighted_loss

Own = Callable[[Tensor], Tensor]
"""Images to the members' own logits, ``[K, B, classes]``."""


@dataclass(frozen=True)
class MemberTraining:
    """The loss of all members (`weighted_loss`), by the gates and the answers of the cascade as it was.

    The teacher is the mean of the calibrated logits of all members as they were: an ensemble knows more than each.
    """

    policy: Cascade
    """The cascade before the training, its gates fitted, in eval mode."""
    learn_from: Own
    """Of the members that learn, perhaps compiled."""
    teach: Own
    """Of the members as they were."""
    kd_shares: Tensor
    """``[K]``"""
    temperature: float
    floor: float

    def __call__(self, forward: Pass, batch: Batch, passes: float) -> tuple[Tensor, dict[str, Tensor]]:
        del forward, passes
        with torch.no_grad():
            own = self.teach(batch.images)
            answers = self.policy.answers(own)
            gates = [self.policy.gate(k, answer, None)[0] for k, answer in enumerate(answers[:-1])]
            weights = stop_weights(torch.stack(gates, 1), self.floor)
            mean_weights = batch_mean(weights.mean(0), batch.weight)
            taught = (own / self.policy.temperatures.view(-1, 1, 1)).mean(0)
        logits = self.learn_from(batch.images)
        losses = member_losses(logits, batch.labels, taught, self.kd_shares, self.temperature)
        loss = weighted_loss(losses, weights, mean_weights)
        return loss, {"accuracy": (logits.detach().argmax(2) == batch.labels).float().mean()}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        del state
