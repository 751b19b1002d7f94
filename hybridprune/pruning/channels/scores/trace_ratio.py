"""Scatter of channels' features between and within classes, and the subsets of channels with the best ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.batch import Batch, at_least_one
from hybridprune.curvature import Rows
from hybridprune.curvature.likelihood import IGNORED
from hybridprune.errors import UserError
from hybridprune.hooks import attached
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.channels.scores.statistics import Statistics, sum_over
from hybridprune.pruning.channels.scores.variance import readers

ROUNDING = 1e-12
"""A scatter below this share of the squared features is none: it is a difference of sums."""


def between_share(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """``b_i / sum_j b_j``: the channel's share of its group's scatter between classes, by which widths are chosen.

    b_i adds up over the layers that read the channel. An own choice: it is the share of b that a width of d keeps if
    the d largest stay.
    """
    between, _ = _scatters(group, statistics)
    return between / between.sum().clamp(min=torch.finfo(between.dtype).tiny)


def best_ratio(group: ChannelGroup, statistics: Statistics, size: int) -> Tensor:
    """The channels ``[size]``, ascending, with the largest ``sum b_i / sum w_i`` (Hu et al. 2021, CATRO)."""
    return best_subset(*_scatters(group, statistics), size)


def best_subset(between: Tensor, within: Tensor, size: int) -> Tensor:
    """The subset I of so many of n that maximises ``sum_I b_i / sum_I w_i``, ascending.

    It iterates ``I <- the largest of b_i - lambda w_i`` with lambda the ratio of the I before (Dinkelbach 1967). The
    ratio rises in every step until it is the largest of all subsets: at the maximum lambda, and only there, no subset
    has ``sum_I (b_i - lambda w_i) > 0``. Subsets of different sizes need not be nested.

    Args:
        between: b ``[n]``, not negative.
        within: w ``[n]``, not negative.
        size: from 1 to n.
    """
    assert between.shape == within.shape and between.ndim == 1, "one b and one w for each channel"
    best = between.topk(size).indices
    ratio = _ratio(between, within, best)
    while ratio < math.inf:
        better = (between - ratio * within).topk(size).indices
        risen = _ratio(between, within, better)
        if risen <= ratio:
            break
        best, ratio = better, risen
    return best.sort().values


def _ratio(between: Tensor, within: Tensor, subset: Tensor) -> float:
    b, w = float(between[subset].sum()), float(within[subset].sum())
    return b / w if w > 0 else math.inf if b > 0 else 0.0


def _scatters(group: ChannelGroup, statistics: Statistics) -> tuple[Tensor, Tensor]:
    """b and w of the group's channels, ``[channels]`` each, summed over the layers that read them."""
    between, within = (
        sum_over(group, readers(group), lambda layer, place=place: statistics.scatter[layer][place]) for place in (0, 1)
    )
    return between, within


@torch.no_grad()
def collect_scatter(
    forward: Callable[[Any], Any],
    modules: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    rows: Mapping[str, Rows] | None = None,
) -> dict[str, Tensor]:
    """Scatter of the inputs of each layer between and within classes.

    With f_n the mean over positions of an input channel in image n, m_k its mean over the n_k images of class k and m
    that over all images: ``b = sum_k n_k (m_k - m)^2`` and ``w = sum_n (f_n - m_k(n))^2``.

    Args:
        forward: images to anything; the network in eval mode, which runs every layer on every image.
        modules: ``nn.Conv2d`` and ``nn.Linear`` layers by name; each run of one in a pass counts as more images.
        batches: of images and class ids ``[B]``; images of class -100 do not count.
        rows: where the images are in the layers' activations; by default each has one row.

    Returns:
        ``[2, inputs]`` by name, b and w, in double precision; 0 of a layer that never ran.

    Raises:
        UserError: if the targets are not one class id for each image.
        ValueError: if there is no batch.
    """
    rows = rows or {}
    found = {name: _Classes(_inputs(module)) for name, module in modules.items()}
    labels = torch.empty(0, dtype=torch.int64)

    def observe(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = rows.get(name, Rows()).images_first(args[0])
            assert x is not None and len(x) == len(labels), f"the rows of {name} are not those of so many images"
            features = x.movedim(-1 if isinstance(module, nn.Linear) else 2, 1).flatten(2).mean(2)
            found[name].add(features.double().cpu(), labels)

        return hook

    handles = [module.register_forward_pre_hook(observe(name)) for name, module in modules.items()]
    with attached(handles):
        for batch in at_least_one(batches, "a scatter"):
            labels = _class_ids(batch)
            forward(batch.images)
    return {name: each.scatter() for name, each in found.items()}


class _Classes:
    """Sums over the images of each class, from which scatters follow."""

    def __init__(self, channels: int) -> None:
        self.counts = torch.zeros(0, dtype=torch.float64)
        self.sums = torch.zeros(0, channels, dtype=torch.float64)
        self.squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Take images with features ``[B, C]`` of classes ``[B]``."""
        features, labels = features[labels != IGNORED], labels[labels != IGNORED]
        if not len(labels):
            return
        more = max(0, int(labels.max()) + 1 - len(self.counts))
        self.counts, self.sums = F.pad(self.counts, (0, more)), F.pad(self.sums, (0, 0, 0, more))
        self.counts += labels.bincount(minlength=len(self.counts))
        self.sums.index_add_(0, labels, features)
        self.squares += features.square().sum(0)

    def scatter(self) -> Tensor:
        """b and w, ``[2, C]``."""
        seen = self.counts > 0
        of_classes = (self.sums[seen].square() / self.counts[seen, None]).sum(0)
        between = of_classes - self.sums.sum(0).square() / self.counts.sum().clamp(min=1)
        found = torch.stack([between, self.squares - of_classes])
        return found.where(found > ROUNDING * self.squares, 0.0)


def _class_ids(batch: Batch) -> Tensor:
    labels = batch.labels
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        raise UserError("--method trace-ratio: needs one class id for each image; use another method, e.g. saliency")
    return labels.long().cpu()


def _inputs(module: nn.Module) -> int:
    return module.get_parameter("weight").shape[1]
