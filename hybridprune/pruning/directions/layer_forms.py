"""Cost of a convolution in each of its forms, and the cheapest one (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hybridprune.models.factored import Ranks


@dataclass(frozen=True)
class ConvShape:
    """The sizes on which a convolution's cost depends; positions are pixels of one image."""

    in_channels: int
    out_channels: int
    kernel_area: int
    in_positions: int
    """Where the input rotation runs; a strided 1x1 subsamples first, so there it equals ``out_positions``."""
    out_positions: int
    bias: bool

    def macs(self, ranks: Ranks) -> int:
        """MACs of one image, rotations included."""
        core_in, core_out = self._core(ranks)
        total = self.out_positions * self._kernels(ranks) * self.kernel_area
        if ranks.rank_in is not None:
            total += self.in_positions * self.in_channels * core_in
        if ranks.rank_out is not None:
            total += self.out_positions * core_out * self.out_channels
        return total

    def params(self, ranks: Ranks) -> int:
        """Parameters, rotations included."""
        core_in, core_out = self._core(ranks)
        total = self._kernels(ranks) * self.kernel_area + (self.out_channels if self.bias else 0)
        if ranks.rank_in is not None:
            total += self.in_channels * core_in
        if ranks.rank_out is not None:
            total += core_out * self.out_channels
        return total

    def _core(self, ranks: Ranks) -> tuple[int, int]:
        return (
            self.in_channels if ranks.rank_in is None else ranks.rank_in,
            self.out_channels if ranks.rank_out is None else ranks.rank_out,
        )

    def _kernels(self, ranks: Ranks) -> int:
        """How many kernels the core has: one for each pair of its channels, or for each if it is depthwise."""
        core_in, core_out = self._core(ranks)
        return core_in if ranks.separable else core_in * core_out

    def cheapest(
        self, kept: Ranks, max_params: int | None, price: Callable[[Ranks], float] | None = None
    ) -> Ranks | None:
        """The Tucker form that is cheapest, keeps at least ``kept`` and has at most ``max_params`` parameters, if any.

        The ``price`` of a form is by default its MACs. Every side may be absorbed into the core, which then keeps all
        of its directions; among equals the form with fewer rotations wins, then the one without a rotation of the
        input.
        """
        price = price or self.macs
        allowed = [r for r in _forms(kept) if max_params is None or self.params(r) <= max_params]
        return min(allowed, key=lambda r: (price(r), (r.rank_in is not None) + (r.rank_out is not None)), default=None)


def _forms(kept: Ranks) -> Iterator[Ranks]:
    for rank_in in (None, kept.rank_in):
        for rank_out in (None, kept.rank_out):
            yield Ranks(rank_in, rank_out)
