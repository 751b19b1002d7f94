"""Folding BatchNorm (and what else only scales channels in eval mode) into convolutions and linear layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridprune.deployment.pointwise import PointwiseProduct
from hybridprune.models.branched import BranchedConv2d
from hybridprune.models.frozen_norm import is_frozen_norm, is_norm
from hybridprune.models.replace import replace_module
from hybridprune.models.shakedrop import ShakeDrop

Layer = nn.Conv2d | nn.Linear | BranchedConv2d
ELSEWHERE = ""
"""The name of what reads a tensor outside of the modules that are looked at."""


@torch.no_grad()
def fold_scalings(model: nn.Module, run: Callable[[], object]) -> dict[str, str]:
    """Fold the scalings that are behind a layer of ``model`` into it, in place: what was folded -> into which layer.

    ``run`` passes an example through all of ``model``, in eval mode. A pair is folded only if nothing else reads what
    is between the two; which, is seen in the run, whatever code connects the modules.
    """
    folded: dict[str, str] = {}
    while found := {name: layer for name, layer, behind in _pairs(model, run) if behind}:
        for name, layer in found.items():
            fold_into(model, name, layer, behind=True)
        folded |= found
    return folded


@torch.no_grad()
def fold_inputs(model: nn.Module, run: Callable[[], object]) -> dict[str, str]:
    """Fold the scalings that are before a layer of ``model`` into it, as `fold_scalings` does.

    Not into a convolution that pads: the border is padded with zeros that are not normalised.
    """
    found = {name: layer for name, layer, behind in _pairs(model, run) if not behind}
    for name, layer in found.items():
        fold_into(model, name, layer, behind=False)
    return found


class Affine(nn.Module):
    """``a x + b`` for each channel of ``[B, C, ...]``: a BatchNorm in eval mode, in operations of any batch size."""

    def __init__(self, norm: nn.Module, channels: int) -> None:
        super().__init__()
        dtype = next(chain(norm.parameters(), norm.buffers())).dtype
        scale, shift = _scale_and_shift(norm, channels)
        self.scale, self.shift = nn.Parameter(scale.to(dtype)), nn.Parameter(shift.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        return x * self.scale.view(shape) + self.shift.view(shape)


@torch.no_grad()
def spell_out_norms(model: nn.Module) -> None:
    """Replace the BatchNorms that are left by `Affine`, in place."""
    for name, norm in list(model.named_modules()):
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:
            replace_module(model, name, Affine(norm, norm.num_features))


@dataclass
class _Trace(TorchDispatchMode):
    """Which tensors the layers and scalings of a run take and give, and who reads them."""

    taken: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    given: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    axes: dict[str, int] = field(default_factory=dict)
    """How many the tensor has that a module took last."""
    readers: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    inside: str = ELSEWHERE
    _alive: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def memory(self, tensor: Tensor) -> int:
        """What identifies the memory of a tensor, for it is kept alive: a view of it is the same."""
        self._alive.append(tensor)
        return tensor.untyped_storage()._cdata

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self.readers[self.memory(tensor)].add(self.inside)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def watch(self, name: str, module: nn.Module) -> Iterator[None]:
        """Note what ``module`` takes and gives."""

        def before(_: nn.Module, args: tuple[Any, ...]) -> None:
            self.taken[name].append(self.memory(args[0]))
            self.axes[name] = args[0].ndim
            self.inside = name

        def after(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self.given[name].append(self.memory(output))
            self.inside = ELSEWHERE

        with module.register_forward_pre_hook(before), module.register_forward_hook(after):
            yield

    def only_link(self, first: str, second: str) -> bool:
        """Whether all that ``first`` gives goes to ``second``, and all that ``second`` takes comes from ``first``."""
        given, taken = self.given[first], self.taken[second]
        return len(given) == 1 and given == taken and self.readers[given[0]] <= {first, second}


def _pairs(model: nn.Module, run: Callable[[], object]) -> list[tuple[str, str, bool]]:
    """(scaling, layer, whether the layer comes first) of what can be folded."""
    modules = {
        name: module
        for name, module in model.named_modules()
        if is_plain_layer(module) or (_is_scaling(module) and not is_hooked(module))
    }
    owners: dict[int, int] = defaultdict(int)  # tied weights cannot be changed for one of their owners
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] += 1
    with ExitStack() as stack:
        trace = _Trace()
        for name, module in modules.items():
            stack.enter_context(trace.watch(name, module))
        with trace:
            output = run()
    for tensor in tree_leaves(output):
        if isinstance(tensor, Tensor):
            trace.readers[trace.memory(tensor)].add(ELSEWHERE)
    giver = {ids[0]: name for name, ids in trace.given.items() if isinstance(modules[name], Layer) and len(ids) == 1}
    taker = {ids[0]: name for name, ids in trace.taken.items() if isinstance(modules[name], Layer) and len(ids) == 1}
    pairs = []
    for name, scaling in modules.items():
        if not _is_constant(scaling) or len(trace.taken[name]) != 1:
            continue
        before, after = giver.get(trace.taken[name][0]), taker.get(trace.given[name][0])
        for layer, behind in ((before, True), (after, False)):
            if layer is None or any(owners[id(p)] > 1 for p in modules[layer].parameters()):
                continue
            link = (layer, name) if behind else (name, layer)
            if trace.only_link(*link) and _fits(modules[layer], scaling, behind, trace.axes[name]):
                pairs.append((name, layer, behind))
                break
    return pairs


def is_plain_layer(module: nn.Module) -> bool:
    """Whether it computes with the weight that it holds, and nothing else: no subclass, parametrization or hook."""
    if isinstance(module, BranchedConv2d):
        return not is_hooked(module) and not any(map(is_hooked, module.branches))
    plain = type(module) in (nn.Conv2d, nn.Linear, PointwiseProduct)
    return plain and "weight" in dict(module.named_parameters(recurse=False)) and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Whether code hangs on the module that sees, and may change, what it reads or gives."""
    return bool(module._forward_pre_hooks or module._forward_hooks)


def _is_scaling(module: nn.Module) -> bool:
    """Whether it only scales and shifts each channel in eval mode."""
    return isinstance(module, _BatchNorm | ShakeDrop) or is_frozen_norm(module)


def _is_constant(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return not module.training and module.running_mean is not None
    return is_frozen_norm(module) or (isinstance(module, ShakeDrop) and not module.training)


def _fits(layer: nn.Module, scaling: nn.Module, behind: bool, axes: int) -> bool:
    """Whether the channels that are scaled, axis 1 of ``axes``, are those of the layer, everywhere alike."""
    if isinstance(layer, nn.Linear):  # it has its own channels on the last axis
        return isinstance(scaling, nn.BatchNorm1d) and axes == 2
    if not (is_norm(scaling) or isinstance(scaling, ShakeDrop)):
        return False
    if isinstance(layer, BranchedConv2d):
        return behind
    assert isinstance(layer, nn.Conv2d)
    return behind or (layer.padding in ((0, 0), "valid") and layer.groups == 1)


def _scale_and_shift(module: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """``a`` and ``b`` ``[C]`` of ``a x + b``, in double precision."""
    if isinstance(module, ShakeDrop):
        a = torch.full((channels,), 1 - module.drop, dtype=torch.float64)
        return a, torch.zeros_like(a)
    weight, bias, mean, variance = (getattr(module, name) for name in ("weight", "bias", "running_mean", "running_var"))
    a = (variance.double() + module.eps).rsqrt()
    if weight is not None:
        a = a * weight.double()
    b = -mean.double() * a
    return a, b if bias is None else b + bias.double()


@torch.no_grad()
def fold_into(model: nn.Module, name: str, layer_name: str, behind: bool) -> None:
    """Fold the scaling called ``name`` into a layer, in place; ``behind``: the layer comes first."""
    layer, scaling = model.get_submodule(layer_name), model.get_submodule(name)
    assert isinstance(layer, Layer), layer_name
    if isinstance(layer, BranchedConv2d):
        assert behind
        scale, shift = _scale_and_shift(scaling, layer.out_channels)
        layer.scale_outputs(scale.to(layer.order.device), shift.to(layer.order.device))
        replace_everywhere(model, scaling, nn.Identity())
        return
    weight = layer.weight.double()
    bias = layer.bias.double() if layer.bias is not None else weight.new_zeros(len(weight))
    scale, shift = _scale_and_shift(scaling, weight.shape[0 if behind else 1])
    scale, shift = scale.to(weight.device), shift.to(weight.device)
    rest = [1] * (weight.ndim - 2)
    if behind:
        weight, bias = weight * scale.view(-1, 1, *rest), bias * scale + shift
    else:
        bias = bias + (weight * shift.view(1, -1, *rest)).flatten(1).sum(1)
        weight = weight * scale.view(1, -1, *rest)
    layer.weight.copy_(weight)
    if layer.bias is None:
        layer.bias = nn.Parameter(bias.to(layer.weight))
    else:
        layer.bias.copy_(bias)
    replace_everywhere(model, scaling, nn.Identity())


def replace_everywhere(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put ``new`` in the place of a submodule, under all the names by which it is registered."""
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            replace_module(model, name, new)
