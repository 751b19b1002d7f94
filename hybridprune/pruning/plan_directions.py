"""Plans of directions: the layers of a network, decomposed and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.errors import UserError
from hybridprune.progress_bar import Steps
from hybridprune.pruning.budget.space import Budget
from hybridprune.pruning.calibrate import calibrated
from hybridprune.pruning.clock import NetworkClock
from hybridprune.pruning.directions.decomposition import Decomposition
from hybridprune.pruning.directions.layers import PrunableLayer, leaves_in_place, survey
from hybridprune.pruning.directions.separation import SEPARABLE
from hybridprune.pruning.directions.space import FormPrice, direction_space
from hybridprune.pruning.left_alone import NEVER, READ
from hybridprune.pruning.measure import exact_traces, measure_factors, measure_moments, once
from hybridprune.pruning.measured import refuse_nothing_left, unmeasured_layers
from hybridprune.pruning.method import DirectionMethod
from hybridprune.pruning.method_results import checked_decomposition
from hybridprune.pruning.plan import DirectionPlan
from hybridprune.pruning.plan_inner_channels import with_inner_channels
from hybridprune.pruning.prunable import PrunableNetwork
from hybridprune.pruning.trial import read_without_call, replaceable


@dataclass(frozen=True)
class MeasuredDirections:
    """Measurements that plans of one network need, whatever their budgets."""

    decompositions: Mapping[str, Decomposition]
    """Of each measured layer, by name."""
    metrics: Mapping[str, Tensor]
    """Gradient factors ``[C_out, C_out]`` of these layers."""
    unmeasured: Mapping[str, str]
    """Layers that nothing was measured of, each with the reason."""


def plan_directions(
    network: PrunableNetwork,
    method: DirectionMethod,
    allocation: str,
    options: CutOptions,
    curvature: CurvatureOptions,
    budget: Budget | None,
    clock: NetworkClock | None,
) -> DirectionPlan:
    """Score all directions of the network; UserError if no layer is left to prune.

    ``budget`` is what is to be met, if not a ratio of the directions goes. With a ``clock`` forms are chosen by time,
    as whole networks have it.
    """
    found = survey(network.model, lambda: network.run(network.model, network.example), network.exclude)
    layers, failed = replaceable(network, found.layers)
    idle = [name for name, reason in found.left_alone.items() if reason == NEVER]
    read = read_without_call(network.model, network.run, network.example, idle)
    left_alone = {**found.left_alone, **failed, **dict.fromkeys(read, READ)}
    if not layers:
        raise UserError(
            "--exclude: no layer is left to prune; the network needs plain convolutions or linear layers that match "
            f"none of {', '.join(network.exclude) or 'no pattern'}"
        )
    measured = once(network, "directions", lambda: _measured(network, layers, method, options, curvature))
    layers = [layer for layer in layers if layer.name not in measured.unmeasured]
    if not layers:
        refuse_nothing_left(options.method, measured.unmeasured)
    space = direction_space(
        layers,
        measured.decompositions,
        network.cost,
        limit=options.prune_ratio_limit,
        normalize=options.normalize,
        allow_increase=options.allow_increase,
        multiple=options.rank_multiple,
        # A number of components is no number of directions, of which a ratio could be taken.
        separable=SEPARABLE[options.separable]
        if method.separates and allocation == "rate_distortion" and budget is not None
        else 0,
        times=None if clock is None else clock.directions(network, [layer.name for layer in layers]),
        price=FormPrice.of_budget(budget),
    )

    plan = DirectionPlan(
        network=network,
        allocation=allocation,
        left_alone={**left_alone, **measured.unmeasured},
        in_nats=method.in_nats and not options.normalize,
        directions=space,
        layers=layers,
        decompositions=measured.decompositions,
        hooi_sweeps=options.hooi_sweeps if options.decomp_method == "tucker" else 0,
        refit_images=options.refit_images,
        refit_network=options.refit == "network",
        # The metric is that of the whole layer's output, which a layer cut before has in other coordinates.
        metrics={x.name: measured.metrics[x.name] for x in layers if x.rotate_out is None},
    )
    if clock is None:
        return plan
    if allocation == "rate_distortion" and plan.in_nats:
        plan = with_inner_channels(plan, options, clock)
    return calibrated(plan, clock)


def _measured(
    network: PrunableNetwork,
    layers: Sequence[PrunableLayer],
    method: DirectionMethod,
    options: CutOptions,
    curvature: CurvatureOptions,
) -> MeasuredDirections:
    """Measure the layers, and decompose those that something was measured of."""
    leaves = {layer.name: layer.leaf for layer in layers}
    with leaves_in_place(network.model, layers):
        needed = method.moments(curvature.correct_eigenvalues)
        factors, missing = measure_factors(network, leaves, curvature, traced=needed == "trace")
        plain, means = factors, None
        if curvature.use_bias:
            means = {name: layer.input_mean for name, layer in factors.items()}
            factors = {name: layer.centred() for name, layer in factors.items()}
        moments, unseen = exact_traces(factors), {}
        if needed == "entries":
            moments, unseen = measure_moments(network, leaves, factors, means, curvature)
    unmeasured = {**missing, **unmeasured_layers(plain, moments), **unseen}
    layers = [layer for layer in layers if layer.name not in unmeasured]
    decompositions = {
        x.name: checked_decomposition(
            method.decompose(x.weight, factors[x.name], moments.get(x.name), curvature.regularization),
            options.method,
            x.name,
            x.weight,
        )
        for x in Steps(layers, "decomposing", "layer")
    }
    metrics = {layer.name: factors[layer.name].gradient_factor for layer in layers}
    return MeasuredDirections(decompositions, metrics, unmeasured)
