"""L1 on the scales of BatchNorms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hybridprune.pruning.sparse_training.protocol import Target


class ScalePressure:
    """``weight x sign(gamma)`` on selected entries of some BatchNorms: the subgradient of ``weight x sum |gamma|``."""

    def __init__(self, scales: Sequence[tuple[nn.Parameter, Tensor | None]], weight: float) -> None:
        """Pairs of a scale ``gamma [C]`` and the numbers of its entries that are pushed; None: all of them."""
        self._scales = [(gamma, None if places is None else places.to(gamma.device)) for gamma, places in scales]
        self._weight = weight

    @torch.no_grad()
    def add_gradients(self, done: float) -> None:
        """Add ``weight x sign(gamma)`` to the gradients of the selected entries, in every step alike."""
        del done
        for gamma, places in self._scales:
            if gamma.grad is None:
                gamma.grad = torch.zeros_like(gamma)
            if places is None:
                gamma.grad.add_(gamma.sign(), alpha=self._weight)
            else:
                gamma.grad[places] += self._weight * gamma[places].sign()

    def state_dict(self) -> dict[str, Any]:
        """An empty state: the pressure has no memory."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """An empty state, which there is nothing to load of."""
        del state


def all_scales(model: nn.Module) -> list[tuple[nn.Parameter, None]]:
    """The scales of all BatchNorms, whole."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    return [(norm.weight, None) for norm in norms if norm.affine]


def doomed_scales(target: Target) -> list[tuple[nn.Parameter, Tensor]]:
    """The scales of the channels that were selected to go: each BatchNorm's, and the numbers of its entries."""
    found = []
    for group in target.groups:
        channels = torch.tensor(target.removed.get(group.name, ()), dtype=torch.int64)
        for member in group.of("norm"):
            norm = target.model.get_submodule(member.layer)
            assert isinstance(norm, nn.BatchNorm2d)
            if norm.affine:
                found.append((norm.weight, member.index[channels].flatten()))
    return found
