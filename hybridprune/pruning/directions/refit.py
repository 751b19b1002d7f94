"""Least-squares refit of the cores on real activations, layer by layer behind the cut (no labels, no gradients).

A layer is cut for the inputs it had; what it gets afterwards comes from layers that were cut as well. Each core in turn
is set to the least-squares solution that maps its present inputs to the outputs of the uncut network, so errors do not
add up over the depth (as in He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section 3.1,
there after a selection of channels).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.curvature.geometry import geometry_of
from hybridprune.engine.batchnorm import batch_statistics
from hybridprune.engine.modes import kept_modes
from hybridprune.models.factored import FactoredConv2d, FactoredLayer, FactoredLinear
from hybridprune.nested import some_images
from hybridprune.precision import full_precision
from hybridprune.progress_bar import Steps
from hybridprune.pruning.prunable import Run

RIDGE = 1e-3
"""Pull towards the core as cut, relative to the mean second moment of its inputs."""

ROWS_PER_INPUT = 10
"""A core with fewer observations than that for each of its coefficients stays as cut: it would learn the images."""
COLUMN_BYTES = 2**28
"""What unfolded inputs may take, beyond those of a single image."""
METRIC_DAMPING = 1e-6
"""Share of an output metric's mean eigenvalue that is added to all of them."""


@torch.no_grad()
@full_precision()
def refit(
    model: nn.Module,
    reference: nn.Module,
    names: Sequence[str],
    batches: Iterable[Batch],
    run: Run,
    metrics: Mapping[str, Tensor],
) -> None:
    """Refit the cores of the factored layers ``names`` of ``model`` to ``reference``, in place and in forward order.

    Both run in eval mode, but means are left to the BatchNorm layers behind, which are recalibrated afterwards; until
    then those of ``model`` use the batch's (`batch_statistics`). ``metrics`` are the output metrics G of ``[C_out,
    C_out]`` by name; a layer without one, or with 0, has the identity. The ``batches`` are gone through once
    for every layer, and not kept.
    """
    if not names:
        return
    with kept_modes(model), kept_modes(reference):
        model.eval()
        reference.eval()
        example = some_images(next(iter(batches)).images, [0])
        for name in Steps(_forward_order(reference, names, example, run), "refitting", "layer"):
            layer = model.get_submodule(name)
            assert isinstance(layer, FactoredLayer)
            regression = _Regression()
            with batch_statistics(model):
                for batch in batches:
                    x, y = _tap(model, name, batch.images, run)[0], _tap(reference, name, batch.images, run)[1]
                    x, y = (each.to(layer.core.weight.dtype) for each in (x, y))
                    chunk = max(1, COLUMN_BYTES // _column_bytes(layer, x, y))
                    for some_x, some_y in zip(x.split(chunk), y.split(chunk), strict=True):
                        regression.add(_inputs(layer, some_x), _outputs(layer, some_y))
                    del x, y
            if regression.count >= ROWS_PER_INPUT * layer.core.weight[0].numel():
                _solve(layer, regression, metrics.get(name))


class _Regression:
    """First and second moments of inputs u ``[D, M]`` and targets y ``[C_out, M]``, summed over batches."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor | float] = [0.0, 0.0, 0.0, 0.0]

    def add(self, u: Tensor, y: Tensor) -> None:
        """Count one batch."""
        assert u.shape[1] == y.shape[1]
        new = ((u @ u.T).double(), (y @ u.T).double(), u.sum(1, dtype=torch.float64), y.sum(1, dtype=torch.float64))
        self.sums = [total + value for total, value in zip(self.sums, new, strict=True)]
        self.count += u.shape[1]

    def moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Covariance of u, covariance of y with u, mean of u and mean of y."""
        uu, yu, u, y = (torch.as_tensor(total) / self.count for total in self.sums)
        return uu - torch.outer(u, u), yu - torch.outer(y, u), u, y


def _solve(layer: FactoredLayer, regression: _Regression, metric: Tensor | None) -> None:
    """Set the core, and the bias where the layer has one, to the solution."""
    uu, yu, mean_u, mean_y = regression.moments()
    rotation = None if isinstance(layer.rotate_out, nn.Identity) else layer.rotate_out.weight.flatten(1).double()
    if rotation is not None:
        # The coordinates of y whose rotation is nearest to it, in the metric.
        weighted = rotation.T if metric is None else rotation.T @ _damped(metric.double())
        yu = torch.linalg.solve(weighted @ rotation, weighted @ yu)
    core = layer.core.weight.flatten(1).double()
    ridge = RIDGE * uu.diagonal().mean()
    if ridge > 0:  # else nothing is known of the core: its inputs are constant
        damped = uu + ridge * torch.eye(len(uu), dtype=uu.dtype, device=uu.device)
        core = torch.linalg.solve(damped, (yu + ridge * core).T).T
        layer.core.weight.copy_(core.view_as(layer.core.weight))
    bias = layer.core.bias if rotation is None else layer.rotate_out.bias
    if isinstance(bias, Tensor):
        bias.copy_(mean_y - (core @ mean_u if rotation is None else rotation @ core @ mean_u))


def _damped(metric: Tensor) -> Tensor:
    """The metric, which may not see all outputs, made invertible; the identity where it sees none."""
    mean = metric.diagonal().mean()
    identity = torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
    return metric + METRIC_DAMPING * mean * identity if mean > 0 else identity


def _column_bytes(layer: FactoredLayer, x: Tensor, y: Tensor) -> int:
    """What `_inputs` and `_outputs` take of the first row of x and y: unfolded, then laid out as columns."""
    positions = y[0].numel() // y.shape[-1 if isinstance(layer, FactoredLinear) else 1]
    return 2 * x.itemsize * (positions * layer.core.weight[0].numel() + x[0].numel() + y[0].numel())


def _inputs(layer: FactoredLayer, x: Tensor) -> Tensor:
    """What the core multiplies, as columns ``[D, M]``."""
    if not isinstance(layer, FactoredConv2d):
        return layer.rotate_in(x).flatten(0, -2).T
    core = layer.core
    x = layer.rotate_in(x[:, :, :: layer.subsample[0], :: layer.subsample[1]])
    geometry = geometry_of(core)
    columns = F.unfold(x, geometry.kernel_size, geometry.dilation, geometry.padding, geometry.stride)
    return columns.transpose(0, 1).flatten(1)


def _outputs(layer: FactoredLayer, y: Tensor) -> Tensor:
    """A layer's output as columns ``[C_out, M]``."""
    return y.transpose(0, 1).flatten(1) if isinstance(layer, FactoredConv2d) else y.flatten(0, -2).T


def _forward_order(model: nn.Module, names: Sequence[str], images: Any, run: Run) -> list[str]:
    """The layers in the order in which they run, which need not be that in which the model registers them."""
    order: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, y, name=name: order.append(name))
        for name in names
    ]
    try:
        run(model, images)
    finally:
        for handle in handles:
            handle.remove()
    assert sorted(order) == sorted(names), "every layer runs once"
    return order


class _Reached(Exception):
    """The layer has run; what follows is not needed."""


def _tap(model: nn.Module, name: str, images: Any, run: Run) -> tuple[Tensor, Tensor]:
    """Input and output of a layer."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        seen.extend((args[0], y))
        raise _Reached

    handle = model.get_submodule(name).register_forward_hook(stop)
    try:
        run(model, images)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0], seen[1]
