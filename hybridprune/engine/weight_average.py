"""Averaged weights: a second network that follows the trained one more slowly."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from hybridprune.engine.batchnorm import average_statistics
from hybridprune.models.copies import copied

N = TypeVar("N", bound=nn.Module)


class WeightAverage(Generic[N]):
    """An exponential moving average of the weights and running statistics of a network that is trained in place.

    After each step ``average <- decay average + (1 - decay) value``, from the values at the start; counters are copied.
    The arithmetic is torch's. Its ``AveragedModel`` asks a counter in every step, and statistics are not joined there.
    """

    def __init__(self, source: N, decay: float) -> None:
        assert 0 <= decay < 1, decay
        self.net: N = copied(source).train()
        """The network with the averages as its weights."""
        self._source = source
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's present values, once a step; it waits for no device."""
        # Looked up in every step: a module may give its buffers new tensors.
        pairs = list(zip(_values(self.net), _values(self._source), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._average([average for average, _ in floats], [value for _, value in floats], None)
        for counter, value in pairs:
            if not counter.is_floating_point():
                counter.copy_(value)

    def join(self) -> None:
        """Make the averaged statistics those of all processes; again and again does no harm.

        Averages over steps and over processes are linear, so their order does not matter.
        """
        average_statistics(self.net)

    def state_dict(self) -> dict[str, Any]:
        """The state that a resumed training needs."""
        return self.net.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``."""
        self.net.load_state_dict(state)


def _values(net: nn.Module) -> Iterator[Tensor]:
    return chain(net.parameters(), net.buffers())
