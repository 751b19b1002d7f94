"""The groups of a layer's filters while they are learnt: logits beside the weights, until the layer is cut."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LOGITS = "group_logits"


def attach_logits(layer: nn.Module, groups: int, filters: int) -> Tensor:
    """Give a layer logits ``[groups, filters]`` of 0, a buffer that is saved with its weights; returns them."""
    weight = layer.get_parameter("weight")
    layer.register_buffer(LOGITS, torch.zeros(groups, filters, device=weight.device))
    return layer.get_buffer(LOGITS)


def group_of(layer: nn.Module, filters: int) -> Tensor:
    """The group ``[filters]`` of each filter, int64: the one of its largest logit; of a layer without logits one."""
    logits = layer._buffers.get(LOGITS)
    return torch.zeros(filters, dtype=torch.int64) if logits is None else logits.argmax(0).cpu()


def detach_logits(model: nn.Module) -> None:
    """Make the layers plain again, in place."""
    for module in model.modules():
        module._buffers.pop(LOGITS, None)
