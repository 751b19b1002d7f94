"""The pressure on the masks of nuspm: a budget of MACs, and the nuclear norms of the filters that are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.engine.parallel import average
from hybridprune.pruning.budget.space import Space
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.methods.nuspm.budget import mask_macs, settle
from hybridprune.pruning.methods.nuspm.masks import ChannelMask
from hybridprune.pruning.methods.nuspm.nuclear import nuclear_gap
from hybridprune.pruning.sparse_training.masked_reading import unmasked_weight
from hybridprune.pruning.sparse_training.width_macs import WidthMacs

GMACS_OF_RESNET50 = 3.73
"""The published weight of the MACs is one of squared GMACs of this network; ours is of shares of any network's.

They are 3.727 without the projections and the classifier (4.089 with them), which the authors do not count. A share
here counts them all: a tenth too many weighs as much as 0.373 GMACs too many do there.
"""


@dataclass(frozen=True)
class Filters:
    """A convolution and the masks of its outputs."""

    layer: nn.Conv2d
    masks: Sequence[tuple[ChannelMask, Tensor]]
    """Each with the outputs ``[channels, m]`` that go with its channels"""

    def kept(self) -> Tensor:
        """``[C_out]``, bool: which outputs no mask takes away."""
        kept = torch.ones(self.layer.out_channels, dtype=torch.bool, device=unmasked_weight(self.layer).device)
        for mask, index in self.masks:
            kept[index] = mask.kept[:, None].expand_as(index)
        return kept


def masked_filters(model: nn.Module, groups: Sequence[ChannelGroup], masks: Mapping[str, ChannelMask]) -> list[Filters]:
    """The convolutions whose outputs are in ``groups``, with the groups' masks by name."""
    found: dict[str, list[tuple[ChannelMask, Tensor]]] = {}
    for group in groups:
        for member in group.of("producer", "depthwise"):
            index = member.index.to(masks[group.name].scalars.device)
            found.setdefault(member.layer, []).append((masks[group.name], index))
    layers = {name: model.get_submodule(name) for name in found}
    return [Filters(layer, found[name]) for name, layer in layers.items() if isinstance(layer, nn.Conv2d)]


class MaskPressure:
    """Adds the gradients of two penalties to the masks', and freezes the masks after a share of the training.

    ``alpha_mac 3.73^2 (MACs / MACs of the whole - target)^2``, where a layer's input width is a constant, and
    ``alpha_nuc`` x the mean of ``nuclear_gap`` over the convolutions that have masks, to whose filters it gives no
    gradient. When the masks freeze, they are made to meet the budget should the loss have missed it (see ``settle``).
    From then on no optimiser changes a bit of them.
    """

    def __init__(
        self,
        masks: Sequence[ChannelMask],
        filters: Sequence[Filters],
        space: Space,
        target_macs: float,
        *,
        alpha_mac: float,
        alpha_nuc: float,
        nuclear_interval: int,
        freeze_at: float,
    ) -> None:
        """``masks`` are those of the sets of ``space``; ``nuclear_interval`` steps lie between two decompositions."""
        assert len(masks) == len(space.sets)
        self._masks, self._filters, self._space, self._target = masks, filters, space, target_macs
        self._macs = WidthMacs.of(space, masks[0].scalars.device)
        self._whole = space.cost(space.everything()).macs
        self._alpha_mac, self._alpha_nuc = alpha_mac * GMACS_OF_RESNET50**2, alpha_nuc
        self._interval, self._freeze_at = nuclear_interval, freeze_at
        self._step, self._frozen, self._moved = 0, False, 0
        self._nuclear: list[Tensor] = []

    def add_gradients(self, done: float) -> None:
        """Add to the masks' gradients; none is left once they are frozen."""
        if done >= self._freeze_at:
            if not self._frozen:
                self._moved = settle(self._masks, self._space, self._target)
                self._frozen = True
            for mask in self._masks:
                # Without a gradient, an optimiser passes a parameter over: no momentum, no decay.
                mask.scalars.grad = None
            return
        if self._step % self._interval == 0 or not self._nuclear:
            self._nuclear = self._nuclear_gradients()
        self._step += 1
        for mask, macs, nuclear in zip(self._masks, self._mac_gradients(), self._nuclear, strict=True):
            scalars = mask.scalars
            added = (macs + nuclear * mask.kept).to(scalars.dtype)
            scalars.grad = added if scalars.grad is None else scalars.grad.add_(added)

    def _mac_gradients(self) -> Sequence[Tensor]:
        """For each mask, the gradient with respect to any of its channels (0-d)."""
        counts = torch.stack([mask.kept.sum() for mask in self._masks]).double().requires_grad_()
        with torch.enable_grad():
            # A layer without channels keeps one, so its first channel costs nothing.
            widths = torch.where(counts > 0, counts, 1.0)
            excess = (self._macs(widths) - self._target) / self._whole
            (gradient,) = torch.autograd.grad(self._alpha_mac * excess.square(), counts)
        return gradient.unbind()

    @torch.no_grad()
    def _nuclear_gradients(self) -> list[Tensor]:
        """For each mask ``[channels]``."""
        gradients = {mask: torch.zeros_like(mask.scalars, dtype=torch.float64) for mask in self._masks}
        for filters in self._filters:
            _, rows = nuclear_gap(unmasked_weight(filters.layer), filters.kept())
            for mask, index in filters.masks:
                gradients[mask] += rows[index].sum(1)
        found = [gradient * (self._alpha_nuc / len(self._filters)) for gradient in gradients.values()]
        average(found)  # should processes have rounded differently
        return found

    def metrics(self) -> dict[str, float]:
        """MACs of the masks as a share of the budget, and how many masks the budget has moved when they froze."""
        return {"masks_of_budget": mask_macs(self._masks, self._space) / self._target, "masks_moved": self._moved}

    def state_dict(self) -> dict[str, Any]:
        """The step, whether the masks are frozen, and the gradients of the norms, which few steps compute anew."""
        nuclear = [gradient.cpu() for gradient in self._nuclear]
        return {"step": self._step, "frozen": self._frozen, "moved": self._moved, "nuclear": nuclear}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a ``state_dict``; the masks themselves are parameters of the network."""
        self._step, self._frozen, self._moved = state["step"], state["frozen"], state["moved"]
        self._nuclear = [g.to(self._masks[0].scalars.device) for g in state["nuclear"]]
