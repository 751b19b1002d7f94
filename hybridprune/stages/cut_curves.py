"""Tensorboard's curves over the cuts of stage 2: what each has left of every layer, and how fast the network is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hybridprune.engine.modes import kept_modes
from hybridprune.measure.latency import stopwatch
from hybridprune.models.skipnet import GatedNetwork

ROUNDS = 5
"""Of timing; their median is the point."""


def cut_points(net: GatedNetwork, unpruned: GatedNetwork, images: Tensor) -> dict[str, float]:
    """The points of one cut, by the names of their curves.

    ``params/LAYER`` and ``ratio/LAYER`` are the parameters of a layer of the backbone, factored or not, and their share
    of those that it has in ``unpruned``; ``cut/params`` and ``cut/ratio`` are the backbone's. ``cut/inference_ms`` is
    what the backbone takes for the batch ``images [B, 3, H, W]`` with all of its blocks executed, a median.
    """
    now, before = _params(net.backbone), _params(unpruned.backbone)
    points = {"cut/params": now, "cut/ratio": now / before, "cut/inference_ms": _inference_ms(net.backbone, images)}
    for name, layer in unpruned.backbone.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            left = _params(net.backbone.get_submodule(name))
            points |= {f"params/{name}": left, f"ratio/{name}": left / _params(layer)}
    return points


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def _inference_ms(backbone: nn.Module, images: Tensor) -> float:
    with kept_modes(backbone):
        backbone.eval()
        timed = stopwatch(images.device, ROUNDS, warm_up=1)({"inference": lambda: backbone(images)})
    return timed["inference"].median_ms
