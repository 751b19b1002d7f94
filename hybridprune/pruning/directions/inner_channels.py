"""The channels between two layers, which may go in the place of directions of both (pure).

Where both layers stay as they are but for fewer channels between them, nothing has to be started that was not there
before, as a rotation has. By FLOPs that never pays, by a clock it may. What is lost is known in the quadratic model of
the reading layer: it makes up for the channels as well as it can (optimal brain surgeon: Hassibi & Stork 1993).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridprune.pruning.budget.space import Cost, UnitSet
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.channels.space import ChannelCell
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.directions.space import Choices

SPANNED = 1e-12
"""A row with less of its squared norm outside of a span is in it, but for rounding."""
STEPS = 512
"""In which all channels of a layer go."""


@dataclass(frozen=True)
class Removal:
    """A layer's input channels in the order in which they go, and what is lost."""

    order: Tensor
    """``[C_in]``, the first to go first"""
    losses: Tensor
    """``[C_in]``, in double precision: the expected rise of the loss (nats) when the first 0, 1, ... are gone"""


def removal(decomposition: Decomposition) -> Removal:
    """The order in which a layer's input channels go, always the one that costs least next to those before it.

    With the weight in whitened coordinates ``T``, the rows ``m_j`` of the scaled input basis, and ``J`` what goes, the
    loss is ``|T P_J|^2`` times the scale of the scores, ``P_J`` the projection onto the span of the ``m_j``. Each step
    takes what the others have in that span, so all together take ``O(C_in^3)``. Of more than `STEPS` channels, several
    go in a step.
    """
    weight = decomposition.weighted.double().cpu()  # as plans are: the same everywhere
    unfolded = weight.transpose(0, 1).flatten(1)
    energy = unfolded @ unfolded.T
    energy = energy * float(decomposition.importance.sum()) / float(energy.trace().clamp(min=1e-300))
    outside = _rows(decomposition).cpu()
    channels, whole = len(outside), outside.square().sum(1)
    seen = outside @ energy
    gone = torch.zeros(channels, dtype=torch.bool)
    order: list[Tensor] = []
    lost: list[Tensor] = []
    while not bool(gone.all()):
        norms = outside.square().sum(1)
        free = norms > SPANNED * whole
        costs = torch.where(free, (seen * outside).sum(1).clamp(min=0) / torch.where(free, norms, 1.0), 0.0)
        cheapest = torch.where(gone, torch.inf, costs).argsort(stable=True)
        taken = cheapest[: min(math.ceil(channels / STEPS), int((~gone).sum()))]
        basis, upper = torch.linalg.qr(outside[taken].T)
        basis = basis * (upper.diagonal().square() > SPANNED * whole[taken])
        order.append(taken)
        lost.append(((energy @ basis) * basis).sum(0).clamp(min=0))
        gone[taken] = True
        along = outside @ basis
        outside = outside - along @ basis.T
        seen = seen - along @ (basis.T @ energy)
    losses = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cat(lost).cumsum(0)])
    return Removal(torch.cat(order), losses[:-1])


def without_inputs(decomposition: Decomposition, gone: Tensor) -> Tensor:
    """The layer's weight ``[C_out, C_in, kh, kw]`` with zeros for the inputs ``gone [r]``, the others at their best.

    It is the nearest such weight in the metric of the directions, ``C (1 - P_J) M^T`` with the coordinates ``C``.
    """
    rows = _rows(decomposition)
    basis = torch.linalg.qr(rows[gone].T).Q
    core = decomposition.core.double()
    core = core - torch.einsum("orkl,rj,sj->oskl", core, basis, basis)
    left = (decomposition.out_basis @ decomposition.out_scale).double()
    weight = torch.einsum("po,oskl,is->pikl", left, core, rows)
    weight[:, gone] = 0.0  # but for rounding it is
    return weight.to(decomposition.core.dtype)


def _rows(decomposition: Decomposition) -> Tensor:
    return decomposition.in_basis.double() @ decomposition.in_scale.double()


def ends(group: ChannelGroup) -> tuple[str, str]:
    """The names of the one layer that makes the channels of a group, and of the one that reads them."""
    (producer,), (consumer,) = group.of("producer"), group.of("consumer")
    return producer.layer, consumer.layer


@dataclass(frozen=True, eq=False)
class InnerCell:
    """The channels between two layers: what the network costs less without some of them.

    They go where both layers keep all of their directions, and only there.
    """

    group: ChannelGroup
    """One producer, one consumer, and what lies between them."""
    sets: tuple[int, ...]
    """Its own set."""
    pair: tuple[int, int]
    """The places among the cells of the space of both layers' directions."""
    cells: Sequence[ChannelCell]
    """Of all layers of the group."""
    units: UnitSet
    removal: Removal
    multiple: int = 1
    """The channels that stay are a multiple of it, or all."""
    gain: float = 1.0
    """Of a nanosecond that the layers' times say is saved, so much is."""

    @property
    def consumer(self) -> str:
        """The name of the layer that reads the channels."""
        return ends(self.group)[1]

    @property
    def producer(self) -> str:
        """The name of the layer that makes them."""
        return ends(self.group)[0]

    def gone(self, kept: int) -> Tensor:
        """The channels that go when so many stay, ascending."""
        return self.removal.order[: self.group.channels - kept].sort().values

    def stay(self, gone: int) -> Tensor:
        """The channels that stay when so many go, ascending."""
        return self.removal.order[gone:].sort().values

    def loss(self, gone: int) -> float:
        """The expected rise of the loss when so many channels go."""
        return float(self.removal.losses[gone])

    def cost(self, kept: tuple[int, ...]) -> Cost:
        """The cost with so many channels less that with all of them: 0 or less."""
        found = Cost(0, 0)
        for cell in self.cells:
            found = found.plus(cell.cost(kept)).minus(cell.cost(cell.full))
        return found._replace(ns=round(self.gain * found.ns))

    def relaxed_macs(self, kept: tuple[int, ...]) -> float:
        """MACs of `cost`: every removal counts."""
        return self.cost(kept).macs

    def choices(self) -> Choices:
        """All numbers of channels that may stay, the first of them all."""
        channels = self.group.channels
        numbers = [n for n in range(channels - 1, self.units.least - 1, -1) if n % self.multiple == 0]
        kept = torch.tensor([channels, *numbers])
        macs, params, ns = torch.tensor([self.cost((int(n),)) for n in kept]).T
        nothing = torch.zeros_like(kept)
        return Choices(kept, nothing, macs, params, self.removal.losses[channels - kept], nothing, ns)
