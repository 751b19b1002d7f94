"""Kronecker factors and exact second moments of the weights' gradients, collected over batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.curvature.gradients import GRADIENT_BYTES, bytes_per_image, portions, sum_squared_weight_gradients
from hybridprune.curvature.layer import FactorSums, LayerFactors
from hybridprune.curvature.likelihood import CROSS_ENTROPY, Likelihood
from hybridprune.curvature.passes import Forward, Seen, passes
from hybridprune.curvature.rows import Rows
from hybridprune.errors import UserError
from hybridprune.precision import full_precision
from hybridprune.processes import total

Bases = Mapping[str, tuple[Tensor, Tensor, Tensor | None]]
"""Columns ``(q_out [C_out, r_out], q_in [C_in, r_in], q_offset [k^2, k^2] or None)`` by layer name."""

ONE_EACH: Mapping[str, Rows] = {}
"""Every image has one row of every layer's activations."""


@dataclass(frozen=True)
class SecondMoments:
    """Second moments of one layer's per-image weight gradients dW.

    Attributes:
        trace: mean over images of ``||dW||_F^2``, of dW in the bases if they are incomplete (rectangular).
        entries: mean over images of ``(Q_out^T dW Q_in)^2``, in the weight's shape; with a basis of offsets, its
            eigen-index takes the place of the flattened kernel offset. None if only the trace was measured.
    """

    trace: float
    entries: Tensor | None


@full_precision()
def collect_factors(
    forward: Forward,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    *,
    fisher_type: str,
    moving_average: float,
    seed: int,
    sua: bool = True,
    use_full_cov_a: bool = False,
    shared: bool = False,
    likelihood: Likelihood = CROSS_ENTROPY,
    rows: Mapping[str, Rows] = ONE_EACH,
    offset_images: int | None = None,
    traced_images: int = 0,
) -> dict[str, LayerFactors]:
    """Return the Kronecker factors of the mean loss's Fisher (Grosse & Martens 2016), and its exact traces with them.

    A layer in which some batch has rows that are not those of its images (a number that is no multiple of ``rows``, or
    more than there are images) has none: it is not in what is returned.

    Args:
        forward: maps images to what the likelihood takes, the network in eval mode, gate decisions constant.
        layers: the ``nn.Conv2d`` and ``nn.Linear`` modules to observe, by name.
        batches: of images ``[B, C, H, W]`` (or what else ``forward`` takes, see `images_in`) and targets.
        fisher_type: ``"true"`` samples targets from the network's own distribution where the likelihood has one,
            ``"exp"`` takes the given ones.
        moving_average: 0 for the mean over all images, or the decay per batch of a bias-corrected average.
        seed: of the sampled labels, >= 0.
        sua: spatially uncorrelated activations: channel factors only. False adds K, per kernel offset.
        use_full_cov_a: K and A from the nearest Kronecker product of the input's full covariance, of which a layer
            keeps ``(C_in k^2)^2`` numbers; otherwise each from its own moments. Of no account with ``sua``.
        shared: whether the processes of the run take the batches in turn; all return the factors over all batches.
        likelihood: the loss of an output, and how its targets are sampled.
        rows: where the images are in the activations of each layer, by name; by default each has one row.
        offset_images: how many of the first images K is from, if from its own moments, rounded up to whole batches;
            None: all. It has few entries, and each image many positions and channels. Of a layer that none of them
            runs through, K is from the first batch that does.
        traced_images: how many of the first images the traces of the exact second moments are means over, rounded up
            to whole batches; 0: no traces.

    Raises:
        UserError: if ``fisher_type`` or ``moving_average`` is none of these.
        RunFailed: if an output or a loss is not finite.
        ValueError: if there is no batch, or a layer has no rule, runs twice in one forward pass, or is followed by
            an in-place change of its input.
    """
    if not 0 <= moving_average < 1:
        raise UserError(f"moving_average is {moving_average}: choose 0 (plain mean) or a decay below 1")
    traced = traced_images > 0
    sums = {name: FactorSums.zeros_for(layer, sua, use_full_cov_a, traced) for name, layer in layers.items()}
    before = 0

    def add(name: str, seen: Seen | None) -> None:
        sums[name].add(seen, offset_images is None or before < offset_images, before < traced_images)

    for batch in passes(
        forward,
        layers,
        batches,
        add,
        fisher_type=fisher_type,
        seed=seed,
        shared=shared,
        likelihood=likelihood,
        rows=rows,
    ):
        for layer in sums.values():
            if batch.here:
                layer.count(batch.images, before < traced_images)
            if moving_average:
                # sums and weights decay alike: their ratio is free of the start-up bias and of the last decay
                layer.decay(moving_average)
        before += batch.images
    if shared:
        for layer in sums.values():
            total(layer.tensors())
    return {name: layer.factors() for name, layer in sums.items() if not layer.misfits.item()}


@full_precision()
def collect_second_moments(
    forward: Forward,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    *,
    bases: Bases,
    fisher_type: str,
    seed: int,
    means: Mapping[str, Tensor] | None = None,
    shared: bool = False,
    likelihood: Likelihood = CROSS_ENTROPY,
    rows: Mapping[str, Rows] = ONE_EACH,
    memory: int = GRADIENT_BYTES,
) -> dict[str, SecondMoments]:
    """Return exact second moments of the per-image weight gradients, entry by entry in given bases.

    In the eigenbases of the Kronecker factors: the corrected eigenvalues of EKFAC (George et al. 2018).

    Args:
        bases: orthonormal columns for every layer.
        means: ``[C_in]`` of every layer, subtracted from its input at every position and offset, padding included:
            the gradients are then those given a bias that absorbs the mean. None: not centred.
        memory: bytes that the gradients of one layer may take, beyond those of a single image.

    The other arguments, and what is raised, are those of `collect_factors`. Of a layer with rows that are not those of
    a batch's images, all moments are NaN.
    """
    sums: dict[str, Tensor] = {}
    for name, layer in layers.items():
        weight, (q_out, q_in, _) = layer.get_parameter("weight").detach(), bases[name]
        sums[name] = weight.new_zeros(q_out.shape[1], q_in.shape[1], *weight.shape[2:])

    def add(name: str, seen: Seen | None) -> None:
        if seen is None:
            sums[name].fill_(torch.nan)
            return
        q_out, q_in, q_offset = bases[name]
        mean = None if means is None else means[name].to(seen.x) @ q_in.to(seen.x)
        each = bytes_per_image(seen.x, seen.g, seen.geometry, seen.frames, q_offset is not None)
        for x, g in portions(seen.x, seen.g, seen.frames, each, memory):
            x, g = _rotate(x, q_in), _rotate(g, q_out)
            squares = sum_squared_weight_gradients(x, g, seen.geometry, seen.batch_size, seen.frames, mean, q_offset)
            sums[name] += squares.view_as(sums[name])

    images = torch.zeros((), dtype=torch.float64, device=next((squares.device for squares in sums.values()), None))
    for batch in passes(
        forward,
        layers,
        batches,
        add,
        fisher_type=fisher_type,
        seed=seed,
        shared=shared,
        likelihood=likelihood,
        rows=rows,
    ):
        images += batch.images * batch.here
    if shared:
        total([images, *sums.values()])
    return {
        name: SecondMoments(
            trace=squares.sum(dtype=torch.float64).item() / images.item(),
            entries=(squares / images).to(squares),
        )
        for name, squares in sums.items()
    }


def _rotate(maps: Tensor, basis: Tensor) -> Tensor:
    """Return the feature maps ``[B, C, H, W]`` in the coordinates of an orthonormal basis ``[C, r]``."""
    assert len(basis) == maps.shape[1]
    return (maps.permute(0, 2, 3, 1) @ basis.to(maps)).permute(0, 3, 1, 2)
