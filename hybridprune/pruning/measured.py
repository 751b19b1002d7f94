"""Measured layers and groups, told from unmeasured ones: nothing measured does not mean that it costs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

import torch
from torch import Tensor

from hybridprune.curvature import LayerFactors, SecondMoments
from hybridprune.errors import UserError
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.channels.scores import Need, Statistics
from hybridprune.pruning.left_alone import ALIKE, CONSTANT, NO_GRADIENT, NO_INPUT, NOT_FINITE, UNREAD
from hybridprune.pruning.measure_channels import measured_members


def unmeasured_layers(factors: Mapping[str, LayerFactors], moments: Mapping[str, SecondMoments]) -> dict[str, str]:
    """The layers whose statistics are 0 or not finite, each with the reason."""
    found = {name: _reason(layer, moments.get(name)) for name, layer in factors.items()}
    return {name: reason for name, reason in found.items() if reason is not None}


def unmeasured_groups(groups: Sequence[ChannelGroup], statistics: Statistics, needs: Need | None) -> dict[str, str]:
    """The groups of which no layer has statistics other than 0, or one has none or none that are finite.

    Where the score ``needs`` no more than the weights, there are none.
    """
    missing = statistics.missing
    found: dict[str, str] = {}
    for group in groups:
        if needs is None:
            continue
        layers = dict.fromkeys(member.layer for member in measured_members(group, needs))
        reasons = [missing.get(name) or _reason_in(statistics, name, needs) for name in layers] or [UNREAD]
        unknown = [r for r in reasons if r is not None and (r == NOT_FINITE or r in missing.values())]
        if unknown:
            found[group.name] = unknown[0]
        elif (first := reasons[0]) is not None and None not in reasons:
            found[group.name] = first
    return found


def refuse_nothing_left(method: object, left_alone: Mapping[str, str]) -> None:
    """UserError where nothing that could be cut has been measured."""
    reasons = sorted(set(left_alone.values()))
    names = ", ".join(list(left_alone)[:3]) + (", ..." if len(left_alone) > 3 else "")
    raise UserError(
        f"--method {method}: of all that could be cut nothing was measured ({names}: {'; '.join(reasons)}); give a "
        "network whose loss depends on its layers, other images, or a method that reads the weights alone, like l1"
    )


def _reason(factors: LayerFactors, moments: SecondMoments | None) -> str | None:
    a, g = factors.input_factor, factors.gradient_factor
    if not (bool(a.isfinite().all()) and bool(g.isfinite().all()) and (moments is None or isfinite(moments.trace))):
        return NOT_FINITE
    if _lost(g):  # nor, where it never ran, did any image
        return NO_GRADIENT
    if _lost(a):
        return NO_INPUT
    return NO_GRADIENT if moments is not None and moments.trace == 0 else None


def _lost(factor: Tensor) -> bool:
    """Whether a factor is 0, or has lost its digits on the way there: then it is not even positive semi-definite.

    Numbers that matter beside the largest one, down to the precision, have to be normal ones.
    """
    numbers = torch.finfo(factor.dtype)
    return bool(factor.abs().max() < numbers.tiny / numbers.eps)


def _reason_in(statistics: Statistics, layer: str, needs: Need) -> str | None:
    if needs == "factors":
        return _reason(statistics.factors[layer], None)
    found: Tensor = getattr(statistics, needs)[layer]
    if not bool(found.isfinite().all()):
        return NOT_FINITE
    if needs == "scatter":
        return None if bool(found[0].any()) else ALIKE
    return None if bool(found.any()) else CONSTANT if needs == "variance" else NO_GRADIENT
