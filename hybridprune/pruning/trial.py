"""A trial cut before the long work: which layers can be replaced at all, as running a copy of the network shows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hybridprune.ambient import seeded
from hybridprune.hooks import attached
from hybridprune.measure.cost import plain_attention
from hybridprune.models.copies import copied
from hybridprune.models.factored import DENSE, FactoredLayer, Ranks, blank
from hybridprune.models.factored_weights import build_layer
from hybridprune.models.replace import inherit, replace_module
from hybridprune.nested import some_images
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.channels.nan_tracing import tensors_of
from hybridprune.pruning.directions.layers import PrunableLayer
from hybridprune.pruning.directions.surgery import outline_of
from hybridprune.pruning.left_alone import COSTS, DIFFERS, NOT_ONCE
from hybridprune.pruning.partition import partition
from hybridprune.pruning.prunable import PrunableNetwork, Run

SITUATIONS = tuple(itertools.product((False, True), repeat=2))
"""Whether the network trains, and whether it records gradients."""
TOLERANCE = 1e-3
"""Of the outputs, relative to the largest; where products are rounded to fewer bits than a float32 has, `ROUGH`."""
ROUGH = 5e-2


@dataclass(frozen=True)
class _Pass:
    """What a network did in one situation."""

    outputs: list[Tensor]
    calls: Counter[str]
    """Of the layers that were watched."""


def replaceable(
    network: PrunableNetwork, layers: Sequence[PrunableLayer]
) -> tuple[list[PrunableLayer], dict[str, str]]:
    """The layers that may become factored, and for each of the others the reason why it may not.

    A layer in the place of each computes the same: a rotation by the identity and the old weight. With these, a copy of
    the network has to run wherever it ran, call each of them once in a pass, give the same outputs and cost what it
    should. ``network.model`` is not changed, nor are the caller's random numbers.
    """
    names = [layer.name for layer in layers]
    images = _two_images(network.example)
    model = copied(network.model)
    expected: list[_Pass | None] = []
    for training, gradients in SITUATIONS:
        try:
            expected.append(_run(model, names, network.run, images, training, gradients))
        except Exception:  # of any kind: where the network itself does not run, nothing is asked of its copies
            expected.append(None)
    weight = next(network.model.parameters())
    numbers = [weight, *(output for each in expected if each is not None for output in each.outputs)]
    exact = all(x.dtype in (torch.float32, torch.float64) and x.device.type == "cpu" for x in numbers)

    def check(tried: Sequence[PrunableLayer]) -> str | None:
        trial = copied(network.model)
        promised = network.cost
        for layer in tried:
            promised = promised.plus(_stand_in(trial, layer))
        for (training, gradients), before in zip(SITUATIONS, expected, strict=True):
            if before is None:
                continue
            try:
                after = _run(trial, names, network.run, images, training, gradients)
            except Exception as error:  # of any kind
                return f"another layer in its place does not run ({_first_line(error)})"
            if any(after.calls[x.name] != (before.calls[x.name] if training else 1) for x in tried):
                return NOT_ONCE
            if not _alike(before.outputs, after.outputs, TOLERANCE if exact else ROUGH, values=not training):
                return DIFFERS
        return None if network.measure(trial) == promised else COSTS

    kept, failed = partition(layers, check)
    return kept, {layer.name: reason for layer, reason in failed}


def read_without_call(model: nn.Module, run: Run, example: Any, names: Sequence[str]) -> list[str]:
    """Layers among ``names``, which no pass calls, whose weights take part in the outputs nevertheless."""
    if not names:
        return []
    net = copied(model).eval().requires_grad_(False)
    modules = [net.get_submodule(name) for name in names]
    weights = [m.core.weight if isinstance(m, FactoredLayer) else m.get_parameter("weight") for m in modules]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad(), plain_attention():
            outputs = [tensor.sum() for tensor in tensors_of(run(net, example)) if tensor.requires_grad]
            gradients = torch.autograd.grad(outputs, weights, allow_unused=True) if outputs else [None] * len(names)
    except Exception:  # of any kind: this is only to name the reason
        return []
    return [name for name, gradient in zip(names, gradients, strict=True) if gradient is not None]


@torch.no_grad()
def _stand_in(model: nn.Module, layer: PrunableLayer) -> Cost:
    """Put a factored layer that computes the same into the place of a dense one; what it costs more."""
    old = model.get_submodule(layer.name)
    if isinstance(old, FactoredLayer):
        return Cost(0, 0)  # it is one already
    weight = layer.weight
    sides = layer.shape.in_channels, layer.shape.out_channels
    ranks = Ranks(sides[0], None) if sides[0] < sides[1] else Ranks(None, sides[1])
    rotation = torch.eye(min(sides), dtype=weight.dtype, device=weight.device)
    rotations = (None, rotation) if ranks.rank_out is None else (rotation, None)
    new = build_layer(outline_of(layer), ranks, (rotations[0], weight, rotations[1]), layer.bias)
    replace_module(model, layer.name, inherit(new, old, blank(old)))
    now, before = ((layer.shape.macs(r), layer.shape.params(r)) for r in (ranks, DENSE))
    return Cost(*now).minus(Cost(*before))


def _run(model: nn.Module, names: Sequence[str], run: Run, images: Any, training: bool, gradients: bool) -> _Pass:
    calls: Counter[str] = Counter()

    def watch(name: str) -> RemovableHandle:
        watched = model.get_submodule(name)
        # Its hooks are those of the layer whose place it took, which may run as well.
        return watched.register_forward_hook(lambda module, *_: calls.update([name] if module is watched else []))

    hooks = [watch(name) for name in names]
    with attached(hooks), seeded(0, next(model.parameters()).device), torch.set_grad_enabled(gradients):
        outputs = tensors_of(run(model.train(training), images))
        found = _Pass([tensor.detach().clone() for tensor in outputs], Counter(calls))
        learning = [tensor.sum() for tensor in outputs if tensor.requires_grad]
        if learning:
            torch.stack([total.double() for total in learning]).sum().backward()
    return found


def _alike(before: Sequence[Tensor], after: Sequence[Tensor], tolerance: float, values: bool) -> bool:
    """Whether outputs are the same: in shape, and if ``values``, where they are finite, up to the tolerance."""
    if [x.shape for x in before] != [x.shape for x in after]:
        return False
    if not values:
        return True  # batch statistics of two images can make much of a rounding
    for x, y in zip(before, after, strict=True):
        finite = x.isfinite()
        scale = float(x[finite].abs().max()) if bool(finite.any()) else 0.0
        if not bool(((y - x)[finite].abs() <= tolerance * scale + 1e-6).all()):
            return False
    return True


def _two_images(example: Any) -> Any:
    """A batch of the example and another image: one alone has no batch statistics."""
    batch = some_images(example, [0, 0])
    if isinstance(batch, Tensor) and batch.is_floating_point():
        draw = torch.Generator().manual_seed(0)
        batch[1] = torch.randn(batch.shape[1:], generator=draw).to(batch)
    return batch


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
