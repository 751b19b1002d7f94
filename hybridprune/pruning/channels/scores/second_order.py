"""Scores and compensations from Kronecker-factored curvature (Wang et al. 2019, "EigenDamage", section 4.1; pure).

All scores are in nats: the rise of the loss by its quadratic model ``1/2 dw^T F dw`` with the layer's Fisher
``F = S G x A x K``. A is shared by the kernel offsets; K is the identity unless the factors have one. Only what is
inverted is damped. Biases do not count in a score; in a compensation they follow the weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hybridprune.curvature import LayerFactors, power
from hybridprune.pruning.channels import ChannelGroup
from hybridprune.pruning.channels.scores.statistics import Statistics, sum_over
from hybridprune.pruning.channels.surgery import Update


def kron_obd(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """``1/2 S G_ii w_i^T (K x A) w_i`` (Wang et al. 2019, section 4.1): the filter's own block of the Fisher.

    w_i is filter i; the other filters stay as they are.
    """

    def scores(layer: str) -> Tensor:
        g = statistics.factors[layer].gradient_factor.double().diag()
        return 0.5 * statistics.factors[layer].positions * g * _input_forms(layer, statistics)

    return sum_over(group, group.of("producer"), scores)


def kron_obs(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """``1/2 S w_i^T (K x A) w_i / [G^-1]_ii`` (ibid.): what remains of it when the other filters make up for the loss.

    It is the minimum of the quadratic form over all changes that make filter i zero, attained by `kron_obs_update`.
    """

    def scores(layer: str) -> Tensor:
        factors = statistics.factors[layer]
        if not factors.gradient_factor.any():
            return factors.gradient_factor.new_zeros(len(factors.gradient_factor))  # no gradient ever came here
        inverse = _inverse(factors.gradient_factor, factors, statistics.regularization)
        return 0.5 * factors.positions * _input_forms(layer, statistics) / inverse.diag()

    return sum_over(group, group.of("producer"), scores)


def c_obd(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """``1/2 S sum_jo w_ijo^2 G_ii A_jj K_oo`` (ibid.): Optimal Brain Damage's score, summed over the filter."""

    def scores(layer: str) -> Tensor:
        factors = statistics.factors[layer]
        weight = statistics.weight(layer)
        g, a, k = (factor.double().diag() for factor in _factors(factors, weight.shape[2]))
        return 0.5 * factors.positions * _weighted_squares(weight, g, a, k)

    return sum_over(group, group.of("producer"), scores)


def c_obs(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """``1/2 S sum_jo w_ijo^2 / ([G^-1]_ii [A^-1]_jj [K^-1]_oo)`` (ibid.): Optimal Brain Surgeon's, likewise summed.

    Each weight is scored as if it went alone and all others made up for it.
    """

    def scores(layer: str) -> Tensor:
        factors = statistics.factors[layer]
        if not factors.gradient_factor.any():
            return factors.gradient_factor.new_zeros(len(factors.gradient_factor))
        weight = statistics.weight(layer)
        g, a, k = (1 / inverse.diag() for inverse in _inverses(factors, weight.shape[2], statistics.regularization))
        return 0.5 * factors.positions * _weighted_squares(weight, g, a, k)

    return sum_over(group, group.of("producer"), scores)


def _factors(factors: LayerFactors, offsets: int) -> tuple[Tensor, Tensor, Tensor]:
    """G, A and K, which is the identity where the offsets count as uncorrelated."""
    offset = factors.offset_factor
    return (
        factors.gradient_factor,
        factors.input_factor,
        torch.eye(offsets, dtype=torch.float64, device=factors.input_factor.device) if offset is None else offset,
    )


def _inverses(factors: LayerFactors, offsets: int, regularization: float) -> tuple[Tensor, Tensor, Tensor]:
    """Damped inverses of G, A and K; the identity is its own."""
    g, a, k = _factors(factors, offsets)
    return (
        _inverse(g, factors, regularization),
        _inverse(a, factors, regularization),
        k if factors.offset_factor is None else _inverse(k, factors, regularization),
    )


def _inverse(factor: Tensor, factors: LayerFactors, regularization: float) -> Tensor:
    """Inverse of one of the layer's m factors, damped as in `pi_damping`."""
    count = 2 if factors.offset_factor is None else 3
    return power(factor, -1.0, regularization ** (1 / count))


def _input_forms(layer: str, statistics: Statistics) -> Tensor:
    """``w_i^T (K x A) w_i`` of each filter, ``[C_out]``."""
    weight = statistics.weight(layer)
    _, a, k = _factors(statistics.factors[layer], weight.shape[2])
    return (torch.einsum("kj,ijp,pq->ikq", a.double(), weight, k.double()) * weight).sum((1, 2))


def _weighted_squares(weight: Tensor, g: Tensor, a: Tensor, k: Tensor) -> Tensor:
    """``sum_jo w_ijo^2 g_i a_j k_o``, ``[C_out]``."""
    return g * torch.einsum("ijo,j,o->i", weight**2, a, k)


def kron_obs_update(statistics: Statistics) -> Update:
    """The compensation of `kron_obs`, exact for any number R of filters of a layer that go together.

    ``dW = -[G^-1]_{:,R} ([G^-1]_{R,R})^-1 W_R`` (Hassibi & Stork 1993, for a block). The reference implementation
    adds up the updates of single filters instead, after which those that go are not zero.
    """

    def change(layer: str, weight: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
        factors = statistics.factors[layer]
        inverse = _inverse(factors.gradient_factor, factors, statistics.regularization)
        mixing = -torch.linalg.solve(inverse[gone][:, gone], inverse[gone]).T
        return torch.einsum("hr,rjo->hjo", mixing, weight[gone]), mixing

    return _updating(statistics, change)


def c_obs_update(statistics: Statistics) -> Update:
    """The compensation of `c_obs`: the sum of what Optimal Brain Surgeon would do for each weight alone.

    ``dW = -G^-1 C (A^-1 x K^-1)`` with ``C_ijo = w_ijo / ([G^-1]_ii [A^-1]_jj [K^-1]_oo)`` in the filters that go, 0
    elsewhere. As the weights of a filter go together, they are made up for more than once: that is the method.
    """

    def change(layer: str, weight: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
        g, a, k = _inverses(statistics.factors[layer], weight.shape[2], statistics.regularization)
        mixing = -g[:, gone] / g.diag()[gone]
        return torch.einsum("hr,rjo,jk,op->hkp", mixing, weight[gone] / (a.diag()[:, None] * k.diag()), a, k), mixing

    return _updating(statistics, change)


Change = Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From a layer, its weight and the r filters that go to the weight's change and how biases mix, ``[C_out, r]``."""


def _updating(statistics: Statistics, change: Change) -> Update:
    @torch.no_grad()
    def update(group: ChannelGroup, removed: Tensor) -> None:
        for member in group.of("producer"):
            if not statistics.factors[member.layer].gradient_factor.any():
                continue
            module = statistics.layers[member.layer]
            weight, bias = module.get_parameter("weight"), module.bias
            gone = member.index[removed].flatten().to(weight.device)
            change_of_weight, mixing = change(member.layer, statistics.weight(member.layer), gone)
            weight += change_of_weight.view_as(weight).to(weight)
            if isinstance(bias, Tensor):
                bias += (mixing @ bias[gone].double()).to(bias)

    return update
