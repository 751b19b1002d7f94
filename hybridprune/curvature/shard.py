"""The share of a pass over batches that one of several processes works on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Shard:
    """Every process sees the same batches and works on those whose number is ``rank`` modulo ``world``.

    Raises:
        ValueError: if the rank is not in ``[0, world)``.
    """

    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ValueError(f"no process {self.rank} among {self.world}")

    @classmethod
    def current(cls) -> Shard:
        """Return this process's place in the default process group; alone if none is initialised."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())

    def owns(self, number: int) -> bool:
        """Whether this process works on the batch of that global number."""
        return number % self.world == self.rank

    def all_reduce(self, sums: Iterable[Tensor]) -> None:
        """Add up the processes' sums in place; all processes pass the same shapes in the same order."""
        if self.world > 1:
            for each in sums:
                dist.all_reduce(each)


ALONE = Shard()
"""The only process there is."""
