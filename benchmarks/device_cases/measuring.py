"""Curvature: factors, exact second moments and what a method makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.device_cases.case import Case, Values, batches, numbers, plain, resnet
from hybridprune.curvature import collect_factors, collect_second_moments, eigenbasis
from hybridprune.data import Batch
from hybridprune.engine.batchnorm import recalibrate
from hybridprune.measure.cost import count_module
from hybridprune.measure.effective import count_weights, effective_sparsity
from hybridprune.models.skipnet import GatedNetwork


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith("gate.")
    }


def factors(device: torch.device, gated: bool = False, **options: Any) -> Values:
    """The factors of all layers, of a network that routes its images or of one without gates."""
    net: nn.Module = resnet(device) if gated else plain(device)
    found = collect_factors(
        (lambda x: net(x, mode="executed").logits) if isinstance(net, GatedNetwork) else net,
        _layers(net),
        [Batch(images.to(device), labels.to(device)) for images, labels in batches()],
        **{"fisher_type": "true", "moving_average": 0.0, "seed": 1, **options},
    )
    fields = {name: {key: x for key, x in vars(each).items() if key != "trace"} for name, each in found.items()}
    return numbers(**fields)


def traces(device: torch.device, centred: bool = False) -> Values:
    """The factors of all layers with the traces of some images, and without the inputs' means."""
    net = plain(device)
    data = [Batch(images.to(device), labels.to(device)) for images, labels in batches()]
    found = collect_factors(
        net, _layers(net), data, fisher_type="true", moving_average=0.0, seed=1, traced_images=len(data[0].images)
    )
    layers = {name: each.centred() if centred else each for name, each in found.items()}
    return numbers(traces={name: each.trace.value for name, each in layers.items() if each.trace})


def moments(device: torch.device, centred: bool = False, sua: bool = True) -> Values:
    """The second moments of all layers, entry by entry."""
    net = plain(device)
    layers, data = _layers(net), [Batch(images.to(device), labels.to(device)) for images, labels in batches()]
    measured = collect_factors(net, layers, data, fisher_type="exp", moving_average=0.0, seed=1, sua=sua)
    found = {name: eigenbasis(f.input_factor, f.gradient_factor, f.offset_factor) for name, f in measured.items()}
    moments = collect_second_moments(
        net,
        layers,
        data,
        bases={name: (basis.q_out, basis.q_in, basis.q_offset) for name, basis in found.items()},
        fisher_type="true",
        seed=1,
        means={name: f.input_mean for name, f in measured.items()} if centred else None,
    )
    # Eigenvectors have no sign, and equal eigenvalues none of their own: sums over entries do not depend on them.
    return numbers(**{name: {"trace": each.trace} for name, each in moments.items()})


def recalibration(device: torch.device) -> Values:
    """New statistics of BatchNorms, as routed and with all blocks executed."""
    net, other = resnet(device), resnet(device)
    data = [Batch(images.to(device), labels.to(device)) for images, labels in batches()]
    recalibrate(net, data)
    recalibrate(other, data, always_on=True)
    return numbers(
        routed={name: value for name, value in net.named_buffers() if "running" in name},
        always_on={name: value for name, value in other.named_buffers() if "running" in name},
    )


def sparsity(device: torch.device) -> Values:
    """Live weights and cost of a network, some of whose weights are 0."""
    net = plain(device)
    with torch.no_grad():
        for layer in _layers(net).values():
            weight = layer.get_parameter("weight")
            weight[0] = 0
    example = torch.zeros(1, 3, 8, 8, device=device)
    macs, params = count_module(net, example)
    return numbers(macs=macs, params=params, sparsity=effective_sparsity(net, example, count_weights(net)))


CASES: Mapping[str, Case] = {
    "factors": factors,
    "factors, routed": partial(factors, gated=True),
    "factors, offsets": partial(factors, sua=False),
    "factors, full covariance": partial(factors, sua=False, use_full_cov_a=True),
    "factors, moving average of given labels": partial(factors, moving_average=0.9, fisher_type="exp"),
    "factors, traces": traces,
    "factors, centred traces": partial(traces, centred=True),
    "moments, entries": moments,
    "moments, entries, centred": partial(moments, centred=True),
    "moments, entries, offsets, centred": partial(moments, centred=True, sua=False),
    "recalibration": recalibration,
    "effective sparsity": sparsity,
}
