"""Stopping in a cascade: a policy's expected return from a table of what every choice would have earned.

A cascade of K members has K ways to treat an image: to stop behind the first, the second, ... the last. The answers of
all members to M images say what each would have earned, so nothing has to be sampled: the expected return is a finite
sum, and its gradient is that of REINFORCE (Williams 1992) without noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridprune.measure.cost import NetworkCost
from hybridprune.models.confidence import ConfidenceGate
from hybridprune.routing.price import Price

Reward = Literal["accuracy", "cross_entropy"]
"""What an answer earns: 1 if it is right, or minus its cross-entropy in nats."""
STEPS, LEARNING_RATE = 400, 0.05
FIRST_PRICE: Mapping[Reward, float] = {"accuracy": 0.2, "cross_entropy": 1.0}
PRICE_STEP = 0.05


def stop_macs(cost: NetworkCost) -> Tensor:
    """MACs of an image that stops behind each of the K members, gates that were asked included, ``[K]`` float64."""
    after_first = torch.tensor([0, *cost.block_macs], dtype=torch.float64).cumsum(0)
    return cost.start_macs + sum(cost.gate_macs) + after_first


def stop_log_probs(gate_logits: Tensor) -> Tensor:
    """Logarithms of the probability to stop behind each member, ``[M, K]``, from logits of going on, ``[M, K - 1]``.

    Going on behind member j has the probability sigmoid(l_j)::

        log P(k) = sum_{j < k} log sigmoid(l_j) + log sigmoid(-l_k),     the last term 0 for the last member
    """
    surely = gate_logits.new_zeros(len(gate_logits), 1)
    reached = torch.cat([surely, F.logsigmoid(gate_logits).cumsum(1)], 1)
    return reached + torch.cat([F.logsigmoid(-gate_logits), surely], 1)


@dataclass(frozen=True)
class StoppingTable:
    """The outcome of stopping behind each of K members, for M images."""

    answers: Tensor
    """Logits ``[K, M, classes]``, members' temperatures included"""
    labels: Tensor
    """``[M]``"""
    macs: Tensor
    """``[K]``, float64, rising"""

    @cached_property
    def cross_entropy(self) -> Tensor:
        """The cross-entropy in nats, ``[M, K]``."""
        return torch.stack([F.cross_entropy(each, self.labels, reduction="none") for each in self.answers], 1)

    @cached_property
    def correct(self) -> Tensor:
        """Whether the answer is the label, bool ``[M, K]``."""
        return (self.answers.argmax(2) == self.labels).T

    @property
    def shares(self) -> Tensor:
        """``f [K]``: the MACs as shares of those of all members."""
        return self.macs / self.macs[-1]

    def gate_logits(self, gate: ConfidenceGate) -> Tensor:
        """Each gate's logits of going on, ``[M, K - 1]``, whether an image comes as far or not."""
        return torch.stack([gate(i, answer, None)[0] for i, answer in enumerate(self.answers[:-1])], 1)

    def stops(self, gate_logits: Tensor, threshold: float = 0.0) -> Tensor:
        """The member behind which each image stops, ``[M]``, where images go on above the threshold."""
        return (gate_logits > threshold).long().cumprod(1).sum(1)

    def mean_macs(self, stops: Tensor) -> float:
        """Mean MACs of images that stop there."""
        return float(self.macs[stops].mean())


def expected_return(
    table: StoppingTable, gate_logits: Tensor, price: Tensor | float, reward: Reward = "cross_entropy"
) -> Tensor:
    """``mean over images of sum_k P(k) (r_k - price f_k)`` (0-d), exact and differentiable in the gates."""
    earned = -table.cross_entropy if reward == "cross_entropy" else table.correct.to(table.answers.dtype)
    earned = earned - price * table.shares.to(earned.dtype)
    return (stop_log_probs(gate_logits).exp() * earned).sum(1).mean()


def train_gates(
    gate: ConfidenceGate, table: StoppingTable, target_macs: float, reward: Reward = "accuracy", steps: int = STEPS
) -> float:
    """Train the gates on all images of the table at once; the price of FLOPs rises and falls to ``target_macs``.

    Returns the price at the end, what all members' FLOPs cost in the reward's unit.
    """
    read = torch.stack([gate.read(answer) for answer in table.answers[:-1]], 1)
    mean, scale = read.mean(0), read.std(0).clamp(min=1e-6)
    inputs = (read - mean) / scale  # of one size, so that one rate serves all weights
    layers = gate.scores()
    weight = (torch.cat([layer.weight.detach() for layer in layers]) * scale).requires_grad_()
    bias = torch.cat([layer(m).detach() for layer, m in zip(layers, mean, strict=True)]).requires_grad_()
    price = Price(FIRST_PRICE[reward], target_macs / float(table.macs[-1]), PRICE_STEP, inputs.device)
    optimizer = torch.optim.Adam([weight, bias], lr=LEARNING_RATE)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for _ in range(steps):
        logits = (inputs * weight).sum(2) + bias
        loss = -expected_return(table, logits, price.value.to(logits.dtype), reward)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        rate.step()
        price.spend(table.shares[table.stops(logits.detach())].mean())
    with torch.no_grad():
        for layer, w, b, m, s in zip(layers, weight, bias, mean, scale, strict=True):
            layer.weight.copy_(w / s)
            layer.bias.copy_(b - (w / s * m).sum())
    return float(price.value)


def threshold_at(table: StoppingTable, gate_logits: Tensor, target_macs: float) -> float:
    """The threshold on the gates' logits whose mean MACs on the table are nearest to ``target_macs``."""
    limits, reached = rates_by_threshold(gate_logits)
    return float(limits[nearest(mean_macs_at(reached, table.macs), target_macs)])


def rates_by_threshold(gate_logits: Tensor) -> tuple[Tensor, Tensor]:
    """All thresholds that differ, rising ``[L]``, and the share of images that get past each gate ``[K - 1, L]``.

    From M images' logits ``[M, K - 1]``. Thresholds lie midway between two logits, so that noise of arithmetic flips no
    decision. An image gets past gate k at a threshold t where the least of its logits up to k is above t.
    """
    values = gate_logits.flatten().unique()  # rising
    limits = torch.cat([values[:1] - 1, (values[:-1] + values[1:]) / 2, values[-1:] + 1])
    least = gate_logits.cummin(1).values.T.contiguous().sort(1).values
    stopped = torch.searchsorted(least, limits.expand(len(least), -1).contiguous(), right=True)
    return limits, 1 - stopped.double() / len(gate_logits)


def mean_macs_at(reached: Tensor, macs: Tensor) -> Tensor:
    """Mean MACs of an image ``[..., L]``, falling, of the rates ``[K - 1, L]`` (`rates_by_threshold`).

    ``macs [..., K]`` are of an image that stops behind each member.
    """
    return macs[..., :1] + macs.diff(dim=-1) @ reached


def nearest(cost: Tensor, target_macs: Tensor | float) -> Tensor:
    """The index of the cost nearest to the target, ``[...]`` of falling costs ``[..., L]`` and a target for each."""
    target = torch.as_tensor(target_macs, dtype=cost.dtype).unsqueeze(-1)
    low = ((cost > target).sum(-1, keepdim=True) - 1).clamp(0, cost.shape[-1] - 2)
    pair = torch.cat([low, low + 1], -1)
    return (low + (cost.gather(-1, pair) - target).abs().argmin(-1, keepdim=True)).squeeze(-1)
