"""Two pruning methods of one's own: a score of channels, and a score of directions.

    python main_prune.py --method my_method:MEDIAN --target_flops 0.5

from the folder of this file, after ``main_sp.py``; or from Python, where ``method=`` takes the object itself:

>>> hybridprune.prune(model, loader, method=my_method.PLAIN_SVD, target_flops=0.5)
"""

import torch
from torch import Tensor

from hybridprune.methods import (
    ChannelGroup,
    ChannelMethod,
    Decomposition,
    DirectionMethod,
    LayerFactors,
    SecondMoments,
    Statistics,
    sum_over,
)


def median(group: ChannelGroup, statistics: Statistics) -> Tensor:
    """``sum_j ||w_i - w_j||``, over its layer's mean: filters near the others' median go (He et al. 2019, FPGM)."""

    def scores(layer: str) -> Tensor:
        filters = statistics.weight(layer).flatten(1)  # [C_out, C_in k^2]
        distances = torch.cdist(filters, filters).sum(1)
        return distances / distances.mean().clamp(min=1e-12)

    return sum_over(group, group.of("producer"), scores)


def plain_svd(weight: Tensor, factors: LayerFactors, moments: SecondMoments | None, damping: float) -> Decomposition:
    """Higher-order SVD of ``W [C_out, C_in, k, k]`` as it is: a direction is worth its share of ``||W||^2``."""
    weight = weight.double()
    out_basis = torch.linalg.svd(weight.flatten(1))[0]
    in_basis = torch.linalg.svd(weight.transpose(0, 1).flatten(1))[0]
    core = torch.einsum("op,oikl,iq->pqkl", out_basis, weight, in_basis)
    energy = core.square().sum((2, 3)) / core.square().sum().clamp(min=1e-12)
    return Decomposition(
        out_basis=out_basis,
        core=core,
        in_basis=in_basis,
        out_scale=torch.eye(len(out_basis)).to(out_basis),  # the bases are orthonormal, so nothing is rescaled
        in_scale=torch.eye(len(in_basis)).to(in_basis),
        importance=energy.cpu(),
    )


MEDIAN = ChannelMethod(median, relative=True)
PLAIN_SVD = DirectionMethod(plain_svd, allocation="rate_distortion", moments=lambda corrected: None, in_nats=False)
