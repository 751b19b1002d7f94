"""Gates that start from the best fixed subset of blocks for a budget, undecided about the blocks at its edge.

Left to itself a gate first has to find out which blocks matter to all images, and an epoch goes by before it can ask
which matter to this one. The first question needs no gradient: it is a greedy search.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hybridprune.data import Batch, EvalBatches, TrainBatches
from hybridprune.engine.evaluate import evaluate
from hybridprune.engine.modes import kept_modes
from hybridprune.engine.parallel import average_gradients, batch_mean
from hybridprune.measure.cost import NetworkCost
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.rollout import rollout

SURE = 3.0
"""Largest logit (either sign) of a gate that starts from a subset: a probability of 0.95."""
LESSONS, LEARNING_RATE = 100, 0.01


@dataclass(frozen=True)
class Subset:
    """Blocks that every image executes, and what each block is worth."""

    route: Tensor
    """``[N]`` in {0, 1}"""
    worth: Tensor
    """``[N]``: loss that the block saves, in nats per MAC, when it was dropped or, where it is kept, now"""

    @property
    def price(self) -> float:
        """The worth between the least of what is kept and the most of what is dropped; 0 if that is no price."""
        kept, dropped = self.worth[self.route > 0], self.worth[self.route == 0]
        return max(0.0, float(kept.min() + dropped.max()) / 2) if len(kept) and len(dropped) else 0.0

    def logits(self) -> Tensor:
        """``[N]``: of the subset's sign, and smaller the nearer a block's worth is to the price."""
        side = 2 * self.route - 1
        price = self.price
        if price == 0:  # blocks that are worth less than nothing tell no scale
            return SURE * side
        sure = (SURE * (self.worth / price - 1).abs()).clamp(max=SURE).to(side.dtype)
        return side * sure


def best_subset(net: GatedNetwork, cost: NetworkCost, batches: EvalBatches, budget: float) -> Subset:
    """The blocks that fit into ``budget`` MACs, gates not counted: the cheapest to lose go, one by one.

    Cheap is what adds the least loss per MAC on ``batches``. Dropped blocks that still fit come back at the end, the
    most useful per MAC first. ``budget`` must leave room for what is always executed.
    """
    assert budget >= cost.fixed_macs, (budget, cost.fixed_macs)
    blocks = torch.tensor(cost.block_macs, dtype=torch.float64)
    route, worth = torch.ones(net.num_gates), torch.full((net.num_gates,), math.inf, dtype=torch.float64)

    @cache  # a step's best subset is where the next one starts
    def loss(kept: tuple[float, ...]) -> float:
        return evaluate(net, batches, "executed", torch.tensor(kept).expand(batches.num_images, -1)).loss

    def measure(changed: list[int]) -> None:
        """The worth of these blocks where the others are as they are."""
        now = loss(tuple(route.tolist()))
        for block in changed:
            other = route.clone()
            other[block] = 1 - route[block]
            difference = loss(tuple(other.tolist())) - now
            worth[block] = difference * (2 * float(route[block]) - 1) / cost.block_macs[block]

    def spent() -> float:
        return cost.fixed_macs + float(blocks @ route.double())

    while spent() > budget:
        kept = route.nonzero().flatten().tolist()
        measure(kept)
        route[min(kept, key=lambda block: float(worth[block]))] = 0
    while fitting := [b for b in range(len(route)) if not route[b] and cost.block_macs[b] <= budget - spent()]:
        measure(fitting)
        route[max(fitting, key=lambda block: float(worth[block]))] = 1
    measure(route.nonzero().flatten().tolist())
    return Subset(route, worth)


def lessons(batches: TrainBatches) -> Iterator[Batch]:
    """The training batches from which gates learn a subset."""
    epochs = (batches.epoch(epoch) for epoch in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(epochs), LESSONS)


def teach(net: GatedNetwork, cost: NetworkCost, logits: Tensor, batches: Iterable[Batch]) -> float:
    """Train the gates alone to give these logits ``[N]`` for any image; returns the last batch's mean squared error."""
    route = (logits > 0).float()
    optimizer = torch.optim.Adam(net.gate.parameters(), lr=LEARNING_RATE)
    error = torch.zeros(())
    with kept_modes(net):
        net.eval()
        for batch in batches:
            target = logits.to(batch.images.device).expand(len(batch.labels), -1)
            episode = rollout(
                net,
                cost,
                batch.images,
                batch.labels,
                lambda gate, logit, _: route[gate].to(logit).expand_as(logit),
                backbone_grad=False,
            )
            own = (episode.gate_logits - target).square().mean()
            optimizer.zero_grad(set_to_none=True)
            (own * batch.weight).backward()
            average_gradients(net.gate.parameters())
            optimizer.step()
            error = batch_mean(own.detach(), batch.weight)
    return float(error)


def start_from_subset(
    net: GatedNetwork, cost: NetworkCost, budget: float, search: EvalBatches, training: TrainBatches
) -> Subset:
    """Let the gates of ``net`` start from the best subset for ``budget`` MACs, gates counted."""
    subset = best_subset(net, cost, search, budget - sum(cost.gate_macs))
    teach(net, cost, subset.logits(), lessons(training))
    return subset
