"""Separable layers of as many components as processors compute at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from hybridprune.models.factored import FactoredConv2d, form


@torch.no_grad()
def pad_components(model: nn.Module, multiple: int) -> None:
    """Fill up the components of every separable layer of ``model`` with zeros to a ``multiple``, in place.

    The layer computes the same. Libraries that keep channels in blocks (ONNX Runtime's NCHWc layout: of 8 or 16) have a
    fast depthwise convolution for whole blocks only, and a slow one for all other numbers.
    """
    for layer in model.modules():
        if isinstance(layer, FactoredConv2d) and form(layer).separable:
            more = -layer.core.out_channels % multiple
            parts = layer.rotate_in, layer.core, layer.rotate_out
            for part, rows, columns in zip(parts, (more, more, 0), (0, 0, more), strict=True):
                assert isinstance(part, nn.Conv2d)
                _extend(part, rows, columns)
            layer.core.in_channels = layer.core.groups = layer.core.out_channels


def _extend(conv: nn.Conv2d, rows: int, columns: int) -> None:
    """Zeros behind the output and input channels of a convolution's weight."""
    conv.weight = nn.Parameter(F.pad(conv.weight, (0, 0, 0, 0, 0, columns, 0, rows)), conv.weight.requires_grad)
    if conv.bias is not None:
        conv.bias = nn.Parameter(F.pad(conv.bias, (0, rows)), conv.bias.requires_grad)
    conv.out_channels += rows
    conv.in_channels += columns
