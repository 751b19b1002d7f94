"""L2 that grows on filters until they are gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.pruning.sparse_training.protocol import Target

PUBLISHED_GROWTH = 1e-4
GROWN_AFTER = 2 / 3
"""By this share of a training the ceiling is reached in any case: what is left of it is for the network to settle."""


@dataclass(frozen=True)
class Filters:
    """Filters of one layer that are pushed."""

    weight: nn.Parameter
    """``[C_out, ...]``"""
    pushed: Tensor
    """``[n]``: the numbers of those that are pushed"""


@dataclass(frozen=True)
class L2Growth:
    """The growth of lambda in the penalty ``lambda / 2 |w|^2``, in steps of the optimiser."""

    ceiling: float
    interval: int = 10
    """Steps from one rise to the next; the first one is at the first step."""
    rise: float | None = None
    """None: 1e-4, or more where a training is so short that it would not be at the ceiling after two thirds."""
    ratio: float = 1000.0
    """A layer's lambda stops growing once its other filters' weights are this many times the pushed ones."""

    def wanted(self, rises: int, done: float) -> float:
        """lambda after so many rises, when the share ``done`` of the training is over."""
        if self.rise is not None:
            return min(self.ceiling, self.rise * rises)
        return min(self.ceiling, max(PUBLISHED_GROWTH * rises, self.ceiling * done / GROWN_AFTER))


class GrowingL2:
    """Adds ``lambda w`` on the pushed filters of each layer, with a lambda for each layer that never falls.

    The schedule is that of Wang et al. 2021 (GReg). Everything stays on the device: no step waits for it.
    """

    def __init__(self, layers: Sequence[Filters], growth: L2Growth) -> None:
        """Layers without pushed filters are left out."""
        self._layers = [
            Filters(layer.weight, layer.pushed.to(layer.weight.device)) for layer in layers if len(layer.pushed)
        ]
        self._others = [_others(layer) for layer in self._layers]
        self._growth = growth
        self._steps = 0
        # In double precision: 10,000 rises of 1e-4 are 1.
        self._lambdas = [torch.zeros((), dtype=torch.float64, device=layer.weight.device) for layer in self._layers]

    @property
    def lambdas(self) -> Tensor:
        """``[layers]``: the weights of the penalties in the last step."""
        return torch.stack(self._lambdas).cpu() if self._lambdas else torch.zeros(0, dtype=torch.float64)

    @torch.no_grad()
    def add_gradients(self, done: float) -> None:
        """Grow if it is time, and add the penalty's gradient."""
        if self._steps % self._growth.interval == 0:
            wanted = self._growth.wanted(self._steps // self._growth.interval + 1, done)
            self._grow(wanted)
        self._steps += 1
        for layer, weight in zip(self._layers, self._lambdas, strict=True):
            if layer.weight.grad is None:
                layer.weight.grad = torch.zeros_like(layer.weight)
            layer.weight.grad[layer.pushed] += weight * layer.weight[layer.pushed]

    def _grow(self, wanted: float) -> None:
        for layer, others, weight in zip(self._layers, self._others, self._lambdas, strict=True):
            if len(others) == 0:
                weight.fill_(wanted)
                continue
            gone, kept = (layer.weight[places].abs().mean() for places in (layer.pushed, others))
            weight.copy_(torch.where(kept >= self._growth.ratio * gone, weight, weight.clamp(min=wanted)))

    def state_dict(self) -> dict[str, Any]:
        """The steps taken and the weights of the penalties."""
        return {"steps": self._steps, "lambdas": self.lambdas}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self._steps = state["steps"]
        for weight, saved in zip(self._lambdas, state["lambdas"], strict=True):
            weight.copy_(saved)


def _others(layer: Filters) -> Tensor:
    rest = torch.ones(len(layer.weight), dtype=torch.bool, device=layer.pushed.device)
    rest[layer.pushed] = False
    return rest.nonzero().flatten()


def all_filters(target: Target) -> list[Filters]:
    """The filters of all channels that may go."""
    return _filters(target, {group.name: range(group.channels) for group in target.groups})


def doomed_filters(target: Target) -> list[Filters]:
    """The filters of the channels that were selected to go; those of depthwise convolutions, too."""
    return _filters(target, target.removed)


def _filters(target: Target, channels: Mapping[str, Sequence[int]]) -> list[Filters]:
    found = []
    for group in target.groups:
        chosen = torch.tensor([*channels.get(group.name, ())], dtype=torch.int64)
        for member in group.of("producer", "depthwise"):
            weight = target.model.get_submodule(member.layer).get_parameter("weight")
            found.append(Filters(weight, member.index[chosen].flatten()))
    return found
