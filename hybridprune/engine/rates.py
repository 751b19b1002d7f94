"""Learning rates of separable layers, whose factors would move the weight further than a dense layer's step does."""

from __future__ import annotations

import torch
from torch import nn

from hybridprune.models.factored import FactoredConv2d, form


@torch.no_grad()
def lr_factors(net: nn.Module, prefix: str = "") -> dict[str, float]:
    """The learning rates of the weights of separable layers over the common one, by name of the parameter.

    A step of gradient descent on the factors of ``W = sum_r o_r x c_r x i_r`` (outputs, kernel offsets, inputs) moves
    ``W`` by the learning rate times ``(K_o + K_c + K_i) dL/dW``, to first order, where ``K_o`` is the identity on
    outputs times ``sum_r c_r c_r' x i_r i_r'``, and so on; of a dense layer K is the identity. The factor is 1 over the
    sum of the three largest eigenvalues, at most 1: the weight moves no further than a dense one would. Each is found
    of a Gram matrix ``[R, R]``, as that of ``(C' C) * (I' I)``. Without it fine-tuning diverges at rates that suit all
    other layers.
    """
    found: dict[str, float] = {}
    for name, layer in net.named_modules(prefix=prefix):
        if isinstance(layer, FactoredConv2d) and form(layer).separable:
            parts = {side: layer.get_submodule(side) for side in ("rotate_out", "core", "rotate_in")}
            outputs, offsets, inputs = (part.get_parameter("weight").double().flatten(1) for part in parts.values())
            grams = outputs.T @ outputs, offsets @ offsets.T, inputs @ inputs.T
            pairs = (grams[1] * grams[2], grams[0] * grams[2], grams[0] * grams[1])
            largest = sum(float(torch.linalg.eigvalsh(pair)[-1]) for pair in pairs)
            factor = 1 / max(largest, 1.0)
            found |= {f"{name}.{side}.weight" if name else f"{side}.weight": factor for side in parts}
    return found
