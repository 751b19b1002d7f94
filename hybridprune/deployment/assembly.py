"""Whole networks by the clock: in how large pieces they run, and whether the forms of the layers pay together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridprune.deployment.actions import choose_actions
from hybridprune.deployment.batch_splitting import ALL, SMALLEST, in_pieces, piece_sizes
from hybridprune.deployment.choice import Choice
from hybridprune.deployment.fold import fold_inputs
from hybridprune.deployment.harden import Harden, fix_certain, fix_dear
from hybridprune.deployment.layer_variants import DENSE, apply_forms, choose_forms, dense_forms
from hybridprune.deployment.network import DeployedNetwork
from hybridprune.errors import RunFailed
from hybridprune.measure.latency import Stopwatch
from hybridprune.models.routed import RoutedNetwork
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.precision import full_precision

TOLERANCE = 1e-3
"""How far rounding may change logits, relative to the largest; in half precision it is `tolerance`."""
BY_LAYER = "layer by layer"
"""The name of the network in which each layer has the form that is fastest by itself."""


class AssemblyCandidate(NamedTuple):
    """A deployed network and what was chosen for it."""

    module: nn.Module
    folded_inputs: Mapping[str, str]
    forms: Mapping[str, Choice]
    blocks: Mapping[str, Choice]
    fixed: Mapping[str, str]


@dataclass(frozen=True)
class Assembly:
    """Candidates from one network, which stays as it is; they have copies of its weights."""

    folded: nn.Module
    """With what could be folded into the layers before; a `GatedNetwork` where there are gates."""
    images: Tensor
    """The example, ``[B, 3, H, W]``."""
    logits: Tensor
    """Those of the trained network, of the example, by `exact_logits`."""
    harden: Harden | None
    rates: Sequence[float]
    """By which decisions are certain; without ``harden`` they are not read."""
    time: Stopwatch

    def assemble(self, forms: Mapping[str, str]) -> tuple[nn.Module, dict[str, str], dict[str, str]]:
        """The network in these forms, what was folded into layers behind, and the decisions that are fixed.

        RunFailed if it computes another function.
        """
        module = copy.deepcopy(self.folded)
        apply_forms(module, forms)
        # Now, since a shift before a rotation keeps it from being multiplied into a core that pads.
        folded_inputs = fold_inputs(module, lambda: all_of(module, self.images[:1]))
        difference = relative_difference(self.logits, exact_logits(module, self.images))
        if not difference <= tolerance(self.logits):  # nor if it is not a number
            raise RunFailed(
                f"deploying: folding changes the logits by {difference:.1e} (relative); this network can't be deployed"
            )
        if not isinstance(module, GatedNetwork):
            return module, folded_inputs, {}
        net = DeployedNetwork(module)
        fixed = {} if self.harden is None else fix_certain(net, self.rates, self.harden, self.images[:1])
        return net, folded_inputs, fixed

    def choose_piece(self, module: nn.Module, rates: Sequence[float]) -> tuple[int | None, Choice | None]:
        """The fastest number of images for ``module`` to run at a time; None: all, without a choice if need be."""
        sizes = piece_sizes(len(self.images))
        if len(sizes) == 1 or not self._separable():
            return None, None
        arms = {name: as_it_runs(in_pieces(module, size), self.images, rates) for name, size in sizes.items()}
        choice = Choice.fastest(self.time(arms), before=ALL)
        return sizes[choice.chosen], choice

    def fastest(self, rates: Sequence[float], piece: int | None) -> tuple[AssemblyCandidate, Choice | None]:
        """The network in the forms and actions of the least times, or the one of dense layers, if that is faster.

        Without a choice if they are the same.
        """
        rate_of = {f"backbone.blocks.{i}": rate for i, rate in enumerate(rates, start=1)}
        forms = choose_forms(
            self.folded,
            lambda: all_of(self.folded, self.images[:piece]),
            lambda name: rate_of.get(".".join(name.split(".")[:3]), 1.0),
            self.time,
        )
        dense = dense_forms(forms)
        candidates = {BY_LAYER: self._finished(forms, rates, piece)}
        if dense == forms:
            return candidates[BY_LAYER], None
        candidates[DENSE] = self._finished(dense, rates, piece)
        arms = {name: as_it_runs(each.module, self.images, rates) for name, each in candidates.items()}
        choice = Choice.fastest(self.time(arms), before=BY_LAYER)
        return candidates[choice.chosen], choice

    def _finished(self, forms: Mapping[str, Choice], rates: Sequence[float], piece: int | None) -> AssemblyCandidate:
        module, folded_inputs, fixed = self.assemble({name: choice.chosen for name, choice in forms.items()})
        blocks: dict[str, Choice] = {}
        if isinstance(module, DeployedNetwork):
            or_run = self.harden is not None and self.harden.unprofitable
            blocks = choose_actions(module, self.images[:piece], rates, self.time, or_run)
            if self.harden is not None:
                fixed |= fix_dear(module, blocks, self.harden, self.images[:1])
        return AssemblyCandidate(in_pieces(module, piece), folded_inputs, forms, blocks, fixed)

    def _separable(self) -> bool:
        """Whether an image's logits do not depend on the images beside it."""
        parts = torch.cat([exact_logits(self.folded, each) for each in self.images.split(SMALLEST)])
        return parts.shape == self.logits.shape and relative_difference(self.logits, parts) <= tolerance(parts)


def all_of(module: nn.Module, images: Tensor) -> Tensor:
    """Run every layer, gates and all blocks or members included: logits.

    A module that changes its input in place gets a copy.
    """
    if isinstance(module, RoutedNetwork):
        return module(images, torch.ones(len(images), module.num_gates, device=images.device), "masked").logits
    return module(images.clone(memory_format=torch.preserve_format))


def exact_logits(module: nn.Module, images: Tensor) -> Tensor:
    """`all_of` for comparing: without TF32, to which cuDNN rounds by default, and which is as far off as a mistake."""
    with full_precision():
        return all_of(module, images)


def as_it_runs(module: nn.Module, images: Tensor, rates: Sequence[float]) -> Callable[[], object]:
    """One call of a whole network; gates are asked, but blocks are executed at ``rates``, not as they say."""
    if not isinstance(module, DeployedNetwork):
        return partial(module, images.clone(memory_format=torch.preserve_format))
    return partial(module.route, images, spread(rates, len(images)).to(images.device))


def spread(rates: Sequence[float], batch: int) -> Tensor:
    """Decisions ``[batch, N]`` at these rates, spread evenly over images and, for a single one, over blocks."""
    rate = torch.tensor(rates, dtype=torch.float64)
    offset = torch.arange(len(rates), dtype=torch.float64) * (5**0.5 - 1) / 2 % 1
    passed = torch.floor(torch.arange(batch + 1, dtype=torch.float64).unsqueeze(1) * rate + offset)
    return passed.diff(dim=0).float()


def tolerance(logits: Tensor) -> float:
    """The difference that rounding may make to logits of this type, relative to the largest."""
    return max(TOLERANCE, 4 * torch.finfo(logits.dtype).eps)


def relative_difference(before: Tensor, after: Tensor) -> float:
    """The largest difference of a logit, relative to the largest logit."""
    return float((after - before).abs().max() / before.abs().max().clamp_min(torch.finfo(before.dtype).tiny))
