"""The weights of factored layers: put together from factors, and multiplied out again."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hybridprune.models.factored import FactoredLayer, FactoredLinear, Ranks, factored

Layer = TypeVar("Layer", bound=nn.Module)


def outline(layer: FactoredLayer, device: str | torch.device | None = None) -> nn.Conv2d | nn.Linear:
    """The dense layer of the same geometry, its weights left uninitialised, on ``device`` (None: that of ``layer``).

    On the meta device making it draws no random numbers.
    """
    weight = layer.core.weight
    options: dict[str, Any] = {"device": weight.device if device is None else device, "dtype": weight.dtype}
    options["bias"] = layer.bias is not None
    if isinstance(layer, FactoredLinear):
        return nn.Linear(*layer.channels, **options)
    geometry = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    return nn.Conv2d(*layer.channels, **geometry, **options)


@torch.no_grad()
def dense_form(layer: FactoredLayer) -> nn.Conv2d | nn.Linear:
    """The dense layer that computes the same, up to rounding."""
    dense = outline(layer, "meta").to_empty(device=layer.core.weight.device)
    dense.weight.copy_(layer.product(torch.float64))
    return _with_bias(dense, dense, layer.bias).train(layer.training)


@torch.no_grad()
def fill(layer: FactoredLayer, rotate_out: Tensor | None, core: Tensor, rotate_in: Tensor | None) -> None:
    """Set a factored layer's weights: ``[C_out, r_out]``, ``[r_out, r_in, kh, kw]``, ``[r_in, C_in]``; None: absent.

    The core of a separable one is ``[R, 1, kh, kw]``.
    """
    assert layer.core.weight.shape[:2] == core.shape[:2]
    layer.core.weight.copy_(core.reshape(layer.core.weight.shape))
    for rotation, values in ((layer.rotate_out, rotate_out), (layer.rotate_in, rotate_in)):
        if isinstance(rotation, nn.Identity):
            assert values is None
        else:
            weight = rotation.get_parameter("weight")
            assert values is not None and weight.shape[:2] == values.shape
            weight.copy_(values.reshape(weight.shape))


@torch.no_grad()
def build_layer(
    outline: nn.Conv2d | nn.Linear,
    ranks: Ranks,
    factors: tuple[Tensor | None, Tensor, Tensor | None],
    bias: Tensor | None,
) -> nn.Conv2d | nn.Linear | FactoredLayer:
    """The layer ``W = Q_out . core . Q_in`` in the form ``ranks``.

    ``factors`` are ``Q_out [C_out, r_out]``, ``core [r_out, r_in, kh, kw]`` (linear: ``[r_out, r_in]``, or with two
    axes of 1 behind) and ``Q_in [r_in, C_in]``; None where ``W`` has no such factor. A rotation that the form leaves
    out is multiplied into the core. ``outline`` is a dense layer of the geometry of ``W`` on the meta device, so that
    no random numbers are drawn. The layer is on the device of ``core``, with its ``bias [C_out]``, if there is one.
    The factors of a separable form, ``[C_out, R]``, ``[R, 1, kh, kw]`` and ``[R, C_in]``, are left as they are.
    """
    rotate_out, core, rotate_in = factors
    keep_in, keep_out = ranks.rank_in is not None, ranks.rank_out is not None
    assert not ranks.separable or core.shape[1] == 1
    if rotate_in is not None and not keep_in:
        core = torch.einsum("rs...,si->ri...", core, rotate_in)
    if rotate_out is not None and not keep_out:
        core = torch.einsum("or,ri...->oi...", rotate_out, core)
    if not (keep_in or keep_out):
        outline.to_empty(device=core.device).weight.copy_(core.reshape(outline.weight.shape))
        return _with_bias(outline, outline, bias)
    built = factored(outline, *ranks).to_empty(device=core.device)
    fill(built, rotate_out if keep_out else None, core, rotate_in if keep_in else None)
    last = built.rotate_out if keep_out else built.core
    return _with_bias(built, last, bias)


def _with_bias(layer: Layer, last: nn.Module, bias: Tensor | None) -> Layer:
    """``layer``, whose ``last`` part has the values ``bias``."""
    if bias is not None:
        last.get_parameter("bias").copy_(bias)
    return layer
