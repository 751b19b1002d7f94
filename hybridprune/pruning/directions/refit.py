"""Least-squares refit of the cores on real activations, layer by layer behind the cut (no labels, no gradients).

A layer is cut for the inputs it had; what it gets afterwards comes from layers that were cut as well. Each core in turn
is set to the least-squares solution that maps its present inputs to the outputs of the uncut network, so errors do not
add up over the depth (as in He et al. 2017, "Channel Pruning for Accelerating Very Deep Neural Networks", section 3.1,
there after a selection of channels).

``whole`` refits the network and not its cut layers alone. Layers behind the first cut one that stayed as they were are
fitted to the inputs that they get now. Where an output is added to another tensor, of which the cut network has its own
version, the target makes up for the difference (ibid., section 3.3). A BatchNorm takes its share: what is fitted has a
smaller variance than its target, so the norm's scale shrinks by as much, instead of blowing errors up. Where nothing
behind a layer absorbs the mean, neither a bias nor a norm, moments are not centred.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.curvature.factors import gram
from hybridprune.curvature.geometry import geometry_of
from hybridprune.engine.batchnorm import FEW, normalised_by_batch
from hybridprune.engine.modes import kept_modes
from hybridprune.hooks import attached
from hybridprune.models.factored import FactoredConv2d, FactoredLayer, form
from hybridprune.nested import images_in, joined, some_images
from hybridprune.precision import full_precision
from hybridprune.progress_bar import Steps
from hybridprune.pruning.directions.compensation import Compensation
from hybridprune.pruning.directions.joints import Joint, find_joints
from hybridprune.pruning.directions.tapped_pass import Seen, TappedPass
from hybridprune.pruning.prunable import Run

Refitted = nn.Conv2d | nn.Linear | FactoredLayer

RIDGE = 1e-3
"""Pull towards the core as cut, relative to the mean second moment of its inputs."""

ROWS_PER_INPUT = 10
"""A core with fewer observations than that for each of its coefficients stays as cut: it would learn the images."""
PASS_BYTES = 2**31
"""What passes that stop at a layer may take, beyond the first one."""
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
    whole: bool = False,
    outputs: Mapping[str, Tensor] | None = None,
) -> None:
    """Refit the cores of the cut layers ``names`` of ``model`` to ``reference``, in place and in forward order.

    ``whole``: ``names`` may have layers that were not cut, those in front of the first cut one stay as they are, and
    norms and sums behind a layer are taken into account. ``outputs`` are the output channels that a layer has left, by
    name; one that is not in it has all of them.

    Both run in eval mode, but means are left to the BatchNorm layers behind, which are recalibrated afterwards; until
    then those of ``model`` use the batch's (`normalised_by_batch`). ``metrics`` are the output metrics G of ``[C_out,
    C_out]`` by name; a layer without one, or with 0, has the identity.

    The ``batches`` are gone through once. Their passes stop at every layer and go on behind it. At each there are as
    many as `PASS_BYTES` hold, all of them where activations are small. Where they are large, a layer reads so many
    pixels of every image that it needs fewer images.
    """
    if not names:
        return
    with kept_modes(model), kept_modes(reference):
        model.eval()
        reference.eval()
        example = some_images(next(iter(batches)).images, [0])
        order = _forward_order(reference, names, example, run)
        joints = find_joints(reference, names, example, run) if whole else {}
        first = next(i for i, name in enumerate(order) if _is_cut(model.get_submodule(name), reference, name))
        passes = _Passes(model, reference, _mixed(batches), run)
        with normalised_by_batch(model):
            for name in Steps(order[first:], "refitting", "layer"):
                layer, joint = model.get_submodule(name), joints.get(name, Joint())
                assert isinstance(layer, Refitted)
                left = (outputs or {}).get(name)
                compensation = Compensation.of(model, reference, joint, left)
                absorbed = not whole or joint.norm is not None or _last(layer).bias is not None
                regression = _Regression(centred=absorbed)
                for ours, theirs in passes.at(name, joint):
                    x, y = (each.value.to(_core(layer).weight.dtype) for each in (ours, theirs))
                    if left is not None:
                        y = y.index_select(-1 if isinstance(_core(layer), nn.Linear) else 1, left.to(y.device))
                    if ours.addend is not None and theirs.addend is not None:
                        y = compensation.target(y, theirs.addend - ours.addend)
                    chunk = max(1, COLUMN_BYTES // _column_bytes(layer, x, y))
                    for some_x, some_y in zip(x.split(chunk), y.split(chunk), strict=True):
                        regression.add(_inputs(layer, some_x), _outputs(layer, some_y))
                    del x, y, ours, theirs
                if regression.count >= ROWS_PER_INPUT * _core(layer).weight[0].numel():
                    compensation.settle(_solve(layer, regression, metrics.get(name)))


def _is_cut(layer: nn.Module, reference: nn.Module, name: str) -> bool:
    if isinstance(layer, FactoredLayer):
        return True
    return layer.get_parameter("weight").shape != reference.get_submodule(name).get_parameter("weight").shape


@dataclass
class _Passes:
    """The passes of batches through both networks, each pair of them at the same layer."""

    model: nn.Module
    reference: nn.Module
    batches: Iterator[Any]
    run: Run
    pairs: list[tuple[TappedPass, TappedPass]] = field(default_factory=list)

    def at(self, name: str, joint: Joint) -> Iterator[tuple[Seen, Seen]]:
        """What ``model`` and the reference see at a layer, batch by batch; for each layer once, in forward order."""
        held = number = 0
        while True:
            if number == len(self.pairs):
                if number and held + held // number > PASS_BYTES:
                    return
                if (images := next(self.batches, None)) is None:
                    return
                self.pairs.append(
                    (TappedPass(self.model, images, self.run), TappedPass(self.reference, images, self.run))
                )
            ours, theirs = self.pairs[number]
            yield ours.input_of(name, joint), theirs.output_of(name, joint)
            held, number = held + ours.nbytes + theirs.nbytes, number + 1
            if held > PASS_BYTES:
                del self.pairs[number:]


def _mixed(batches: Iterable[Batch]) -> Iterator[Any]:
    """The images of the batches; those of which a norm could take no statistics join the batch before them."""
    waiting: list[Any] = []
    for batch in batches:
        if sum(images_in(x) or 0 for x in waiting) >= FEW <= (images_in(batch.images) or 0):
            yield from joined(waiting)
            waiting = []
        waiting.append(batch.images)
    yield from joined(waiting)


class _Regression:
    """First and second moments of inputs u ``[D, M]`` and targets y ``[C_out, M]``, summed over batches."""

    def __init__(self, centred: bool) -> None:
        self.centred = centred
        self.count = 0
        self.sums: list[Tensor | float] = [0.0, 0.0, 0.0, 0.0]

    def add(self, u: Tensor, y: Tensor) -> None:
        """Count one batch."""
        assert u.shape[1] == y.shape[1]
        new = (
            gram(u.T[None]).double(),
            (y @ u.T).double(),
            u.sum(1, dtype=torch.float64),
            y.sum(1, dtype=torch.float64),
        )
        self.sums = [total + value for total, value in zip(self.sums, new, strict=True)]
        self.count += u.shape[1]

    def moments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Covariance of u, covariance of y with u, mean of u and mean of y; second moments if not ``centred``."""
        uu, yu, u, y = (torch.as_tensor(total) / self.count for total in self.sums)
        if not self.centred:
            return uu, yu, u, y
        return uu - torch.outer(u, u), yu - torch.outer(y, u), u, y


def _solve(layer: Refitted, regression: _Regression, metric: Tensor | None) -> Tensor:
    """Set the core, and the bias where the layer has one, to the solution; the variance ``[C_out]`` of its outputs."""
    uu, yu, mean_u, mean_y = regression.moments()
    rotation = None
    if isinstance(layer, FactoredLayer) and _last(layer) is not _core(layer):
        rotation = _last(layer).weight.flatten(1).double()
        # The coordinates of y whose rotation is nearest to it, in the metric.
        weighted = rotation.T if metric is None else rotation.T @ _damped(metric.double())
        yu = torch.linalg.solve(weighted @ rotation, weighted @ yu)
    core = _core(layer).weight.flatten(1).double()
    ridge = RIDGE * uu.diagonal().mean()
    if ridge > 0:  # else nothing is known of the core: its inputs are constant
        damped = uu + ridge * torch.eye(len(uu), dtype=uu.dtype, device=uu.device)
        core = torch.linalg.solve(damped, (yu + ridge * core).T).T
        _core(layer).weight.copy_(core.view_as(_core(layer).weight))
    whole = core if rotation is None else rotation @ core
    bias = _last(layer).bias
    if isinstance(bias, Tensor):
        bias.copy_(mean_y - whole @ mean_u)
    return (whole @ uu * whole).sum(1)


def _core(layer: Refitted) -> nn.Conv2d | nn.Linear:
    """What is fitted: the layer, its core or, of a separable one, whose core is depthwise, its last part."""
    if isinstance(layer, FactoredConv2d) and form(layer).separable:
        assert isinstance(layer.rotate_out, nn.Conv2d)
        return layer.rotate_out
    return layer.core if isinstance(layer, FactoredLayer) else layer


def _last(layer: Refitted) -> nn.Conv2d | nn.Linear:
    """What has the layer's bias."""
    if isinstance(layer, FactoredLayer) and not isinstance(layer.rotate_out, nn.Identity):
        return layer.rotate_out
    return _core(layer)


def _damped(metric: Tensor) -> Tensor:
    """The metric, which may not see all outputs, made invertible; the identity where it sees none."""
    mean = metric.diagonal().mean()
    identity = torch.eye(len(metric), dtype=metric.dtype, device=metric.device)
    return metric + METRIC_DAMPING * mean * identity if mean > 0 else identity


def _column_bytes(layer: Refitted, x: Tensor, y: Tensor) -> int:
    """What `_inputs` and `_outputs` take of the first row of x and y: unfolded, then laid out as columns."""
    core = _core(layer)
    positions = y[0].numel() // y.shape[-1 if isinstance(core, nn.Linear) else 1]
    return 2 * x.itemsize * (positions * core.weight[0].numel() + x[0].numel() + y[0].numel())


def _inputs(layer: Refitted, x: Tensor) -> Tensor:
    """What the core multiplies, as columns ``[D, M]``."""
    if isinstance(layer, FactoredConv2d):
        x = x[:, :, :: layer.subsample[0], :: layer.subsample[1]]
    if isinstance(layer, FactoredLayer):
        x = layer.rotate_in(x)
    core = _core(layer)
    if isinstance(layer, FactoredConv2d) and core is layer.rotate_out:
        return layer.core(x).transpose(0, 1).flatten(1)
    if isinstance(core, nn.Linear):
        return x.flatten(0, -2).T
    geometry = geometry_of(core)
    columns = F.unfold(x, geometry.kernel_size, geometry.dilation, geometry.padding, geometry.stride)
    return columns.transpose(0, 1).flatten(1)


def _outputs(layer: Refitted, y: Tensor) -> Tensor:
    """A layer's output as columns ``[C_out, M]``."""
    return y.flatten(0, -2).T if isinstance(_core(layer), nn.Linear) else y.transpose(0, 1).flatten(1)


def _forward_order(model: nn.Module, names: Sequence[str], images: Any, run: Run) -> list[str]:
    """The layers in the order in which they run, which need not be that in which the model registers them."""
    order: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, y, name=name: order.append(name))
        for name in names
    ]
    with attached(handles):
        run(model, images)
    assert sorted(order) == sorted(names), "every layer runs once"
    return order
