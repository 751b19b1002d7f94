"""torch-pruning as a peer: its own pruner and its own importances, global, in one shot, at a budget of FLOPs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.measure.cost import count_module

IMPORTANCES = {
    "taylor": "GroupTaylorImportance",
    "group-l2": "GroupMagnitudeImportance",
    "bn-scale": "BNScaleImportance",
}
STEPS = 14
"""Bisections of the pruning ratio: finer than one channel."""


def torch_pruned(
    net: nn.Module, importance: str, target: float, example: Tensor, pairs: Iterable[tuple[Tensor, Tensor]]
) -> nn.Module:
    """A copy of ``net`` from which torch-pruning has removed channels, at most ``target`` of its MACs left.

    ``pairs`` are the images and labels whose gradients the Taylor importance takes; others do not look at them. The
    classifier keeps its outputs. Raises ValueError if no ratio meets the target.
    """
    gradients = _gradients(net, pairs) if importance == "taylor" else {}
    dense = count_module(net, example)[0]

    def at(ratio: float) -> nn.Module:
        return _pruned(net, importance, ratio, example, gradients)

    found = largest(at, lambda pruned: count_module(pruned, example)[0] <= target * dense)
    if found is None:
        raise ValueError(f"torch-pruning, {importance}: no pruning ratio leaves {target} of the FLOPs")
    return found


def largest(at: Callable[[float], nn.Module], meets: Callable[[nn.Module], bool]) -> nn.Module | None:
    """The network at the smallest pruning ratio, up to the bisection, that ``meets`` the budget; None without one."""
    low, high, best = 0.0, 1.0, None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        pruned = at(ratio)
        if meets(pruned):
            high, best = ratio, pruned
        else:
            low = ratio
    return best


def _pruned(net: nn.Module, importance: str, ratio: float, example: Tensor, gradients: dict[str, Tensor]) -> nn.Module:
    import torch_pruning as tp

    pruned = copy.deepcopy(net)
    for name, parameter in pruned.named_parameters():
        parameter.requires_grad_(True)
        parameter.grad = gradients[name].clone() if name in gradients else None
    last = [module for module in pruned.modules() if isinstance(module, nn.Linear)][-1]
    kind: Any = getattr(tp.importance, IMPORTANCES[importance])
    pruner = tp.pruner.BasePruner(
        pruned, example, importance=kind(), global_pruning=True, pruning_ratio=ratio, ignored_layers=[last]
    )
    pruner.step()
    for parameter in pruned.parameters():
        parameter.grad = None
    return pruned


def _gradients(net: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Of the summed cross-entropy, BatchNorm in eval mode."""
    net = copy.deepcopy(net).eval().requires_grad_(True)
    with torch.enable_grad():
        for images, labels in pairs:
            F.cross_entropy(net(images), labels, reduction="sum").backward()
    return {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}
