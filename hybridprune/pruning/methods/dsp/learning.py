"""Differentiable group learning: filters and their groups in turns, step by step (Park et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.engine.pressure import Step
from hybridprune.pruning.methods.dsp.regulariser import gradient, hard_shares, penalty, soft_shares
from hybridprune.store.seeds import generator

TEMPERATURE = 0.5
ASSIGNMENT_LR = 1e-3
"""Of Adam."""


@dataclass(frozen=True)
class GroupedLayer:
    """A convolution whose filters are grouped."""

    weight: nn.Parameter
    """``[O, I, kh, kw]``"""
    logits: Tensor
    """``[G, O]``"""
    scale: float
    """``kappa`` of its regulariser."""

    @property
    def filters(self) -> Tensor:
        """The weight ``[O, I, K]``, in float32 at least."""
        weight = self.weight.detach().flatten(2)
        return weight if weight.dtype == torch.float64 else weight.float()

    @torch.no_grad()
    def push(self, shares: Tensor, rate: float) -> None:
        """``W <- W - rate kappa dR/dW``, in place."""
        pull = gradient(self.filters, shares).view(self.weight.shape)
        self.weight.sub_((rate * self.scale * pull).to(self.weight.dtype))


class GroupLearning:
    """The push of ``lambda kappa R`` on each layer's weights, and the learning of its groups.

    After each step of the task, with ``c = lambda lr (t + 1) / T`` and shares p drawn from the logits:

        look ahead     W' = W - c dR/dW(W, p), and one task step from there: W''
        assignment     Adam on the logits, down dR/dp(W'', p) + v . d2R/dWdp(W, p)
                       with v = W'' - c dR/dW(W'', p) - W', what the step after the push moves
        push           from W again, with each filter in the group of its largest logit: W - c dR/dW(W, one-hot)

    ``v`` stands for minus the derivative of what that step minimises, so the sum is the derivative by p of
    ``lr loss + c R`` at W', over c.
    """

    def __init__(self, layers: Sequence[GroupedLayer], weight: float, seed: int) -> None:
        """``weight`` is lambda; draws depend on the seed and the step only."""
        self._layers, self._weight, self._seed, self._steps = layers, weight, seed, 0
        # They share memory with the layers' buffers, which are saved with the network.
        self._logits = [layer.logits.detach().requires_grad_() for layer in layers]
        self._adam = torch.optim.Adam(self._logits, lr=ASSIGNMENT_LR)

    def add_gradients(self, done: float) -> None:
        """Add nothing: the push follows the step."""
        del done

    def after_step(self, step: Step) -> None:
        """Learn the groups, then push the weights."""
        rate = self._weight * step.lr * step.done
        soft = [soft_shares(logits, uniform, TEMPERATURE) for logits, uniform in self._draws()]
        before = [layer.weight.detach().clone() for layer in self._layers]
        own = [layer.filters.clone() for layer in self._layers]
        self._push(soft, rate)
        pushed = [layer.filters.clone() for layer in self._layers]
        with step.trial():
            moved = [layer.filters.clone() for layer in self._layers]
        with torch.no_grad():
            for layer, weight in zip(self._layers, before, strict=True):
                layer.weight.copy_(weight)
        self._adam.zero_grad()
        for layer, shares, w, w1, w2 in zip(self._layers, soft, own, pushed, moved, strict=True):
            assignment_loss(shares, w, w1, w2, rate * layer.scale).backward()
        self._adam.step()
        self._push([hard_shares(logits.argmax(0), len(logits)) for logits in self._logits], rate)
        self._steps += 1

    def _draws(self) -> list[tuple[Tensor, Tensor]]:
        source = generator(self._seed, "filter groups", self._steps)
        return [(each, torch.rand(each.shape, generator=source).to(each.device)) for each in self._logits]

    def _push(self, shares: Sequence[Tensor], rate: float) -> None:
        for layer, p in zip(self._layers, shares, strict=True):
            layer.push(p.detach(), rate)

    def metrics(self) -> dict[str, float]:
        """The mean number of groups that a layer's filters are in."""
        used = [int(logits.argmax(0).unique().numel()) for logits in self._logits]
        return {"groups_used": sum(used) / len(used)}

    def state_dict(self) -> dict[str, Any]:
        """Adam's moments and the steps; the logits themselves are buffers of the network."""
        return {"steps": self._steps, "adam": self._adam.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self._steps = state["steps"]
        self._adam.load_state_dict(state["adam"])


def assignment_loss(shares: Tensor, own: Tensor, pushed: Tensor, moved: Tensor, rate: float) -> Tensor:
    """The loss that the assignment descends, 0-d and differentiable in the shares ``[G, O]``, see `GroupLearning`.

    Args:
        own: ``W [O, I, K]``
        pushed: ``W'``
        moved: ``W''``
        rate: ``c kappa``
    """
    v = moved - rate * gradient(moved, shares.detach()) - pushed
    return penalty(moved, shares) + (v * gradient(own, shares)).sum()
