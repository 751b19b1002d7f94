"""The layers of any network whose directions can be cut, factored or not, in the coordinates of their cores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridprune.curvature.geometry import geometry_of
from hybridprune.engine.modes import kept_modes
from hybridprune.hooks import attached
from hybridprune.measure.cost import plain_attention
from hybridprune.models.branched import BranchedConv2d
from hybridprune.models.factored import DENSE, FactoredLayer, Ranks, form, is_pointwise
from hybridprune.models.factored_weights import dense_form
from hybridprune.models.replace import replace_module
from hybridprune.pruning.directions.layer_forms import ConvShape
from hybridprune.pruning.left_alone import (
    BRANCHED,
    BY_KEYWORD,
    GROUPED,
    NEVER,
    PADDED,
    SEVERAL,
    SHARED,
    SUBCLASS,
    WHOLE,
)


@dataclass(frozen=True)
class PrunableLayer:
    """A convolution or linear layer. ``leaf`` is the layer itself or the core of its factored form.

    A separable layer's leaf is the dense layer that it is a form of, which the model does not have: components have no
    eigenbasis of their own.
    """

    name: str
    leaf: nn.Conv2d | nn.Linear
    shape: ConvShape
    form: Ranks
    """The form it has now."""
    rotate_in: Tensor | None
    """``[r_in, C_in]`` in front of ``leaf``, or None"""
    rotate_out: Tensor | None
    """``[C_out, r_out]`` behind ``leaf``, or None"""
    bias: Tensor | None
    stride: tuple[int, int]
    """Of the whole layer."""

    @property
    def weight(self) -> Tensor:
        """The weight of ``leaf`` as ``[r_out, r_in, kh, kw]``; a linear layer is a 1x1 convolution."""
        weight = self.leaf.weight.detach()
        return weight if weight.ndim == 4 else weight[:, :, None, None]

    @property
    def directions(self) -> tuple[int, int]:
        """Input and output channels of ``leaf``: what can still be cut."""
        return self.weight.shape[1], self.weight.shape[0]


@dataclass
class _Call:
    """What a layer read and wrote in the example's forward pass, over all of its calls."""

    count: int = 0
    by_keyword: bool = False
    in_positions: int = 0
    out_positions: int = 0


class Survey(NamedTuple):
    """The layers of a network that can be cut, in its order, and the reason for each of the others."""

    layers: list[PrunableLayer]
    left_alone: dict[str, str]


def prunable_layers(
    model: nn.Module, run: Callable[[], object], exclude: Sequence[str] = ("gate.*",)
) -> list[PrunableLayer]:
    """All layers with a Kronecker-factored Fisher that run exactly once, in the model's order; see `survey`."""
    return survey(model, run, exclude).layers


def survey(model: nn.Module, run: Callable[[], object], exclude: Sequence[str] = ("gate.*",)) -> Survey:
    """Convolutions and linear layers whose directions can be cut, and the others with the reason.

    Left alone are grouped convolutions, padding other than with zeros, layers that run several times or never in
    ``run`` (which passes one image through ``model``), weights that are shared or computed, and subclasses of the
    plain layers, whose forward pass is unknown. Names that match one of the patterns ``exclude`` are in neither list.
    """
    calls = _trace(model, run)
    users = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    found = Survey([], {})
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if module in inside:
            continue
        leaf = own = module
        if isinstance(module, BranchedConv2d):
            inside |= set(module.modules())
            if not any(fnmatchcase(name, pattern) for pattern in exclude):
                found.left_alone[name] = BRANCHED
            continue
        if isinstance(module, FactoredLayer):
            inside |= set(module.modules())
            own = module.core
            leaf = dense_form(module) if form(module).separable else own
        if not isinstance(leaf, nn.Conv2d | nn.Linear) or any(fnmatchcase(name, pattern) for pattern in exclude):
            continue
        reason = _obstacle(leaf, calls[module], users[id(own.weight)]) if name else WHOLE
        if reason is None:
            found.layers.append(_layer(name, module, leaf, calls[module]))
        else:
            found.left_alone[name] = reason
    return found


def _obstacle(leaf: nn.Conv2d | nn.Linear, call: _Call, users: int) -> str | None:
    """Why a layer's directions cannot be cut; None if they can."""
    if isinstance(leaf, nn.Conv2d) and leaf.groups != 1:
        return GROUPED
    if type(leaf) not in (nn.Conv2d, nn.Linear) or "forward" in vars(leaf):
        return SUBCLASS
    if users != 1:
        return SHARED
    if call.by_keyword:
        return BY_KEYWORD
    if call.count != 1:
        return SEVERAL if call.count else NEVER
    try:
        geometry_of(leaf)
    except ValueError:
        return PADDED
    return None


@contextmanager
def leaves_in_place(model: nn.Module, layers: Sequence[PrunableLayer]) -> Iterator[None]:
    """Inside, ``model`` runs the dense layers that stand for its separable ones, so that these can be measured."""
    separable = {layer.name: model.get_submodule(layer.name) for layer in layers if layer.form.separable}
    leaves = {layer.name: layer.leaf for layer in layers}
    try:
        for name in separable:
            replace_module(model, name, leaves[name])
        yield
    finally:
        for name, module in separable.items():
            replace_module(model, name, module)


def layer_macs(model: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """MACs of every convolution and linear layer, by name, when ``run`` passes one image through ``model``."""
    calls = _trace(model, run)
    return {
        name: calls[module].out_positions * module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


def _layer(name: str, module: nn.Module, leaf: nn.Conv2d | nn.Linear, call: _Call) -> PrunableLayer:
    ranks, rotate_in, rotate_out, subsample = DENSE, None, None, (1, 1)
    last: nn.Module = leaf
    if isinstance(module, FactoredLayer):
        ranks = form(module)
        if not ranks.separable:
            subsample = getattr(module, "subsample", (1, 1))
            rotate_in, rotate_out = _matrix(module.rotate_in), _matrix(module.rotate_out)
            last = module.core if rotate_out is None else module.rotate_out
    assert isinstance(last, nn.Conv2d | nn.Linear)
    stride = (int(leaf.stride[0]), int(leaf.stride[1])) if isinstance(leaf, nn.Conv2d) else (1, 1)
    pointwise = isinstance(leaf, nn.Linear) or is_pointwise(leaf)
    shape = ConvShape(
        in_channels=leaf.weight.shape[1] if rotate_in is None else rotate_in.shape[1],
        out_channels=leaf.weight.shape[0] if rotate_out is None else rotate_out.shape[0],
        kernel_area=leaf.weight[0, 0].numel(),
        in_positions=call.out_positions if pointwise else call.in_positions,
        out_positions=call.out_positions,
        bias=last.bias is not None,
    )
    stride = (stride[0] * subsample[0], stride[1] * subsample[1])
    return PrunableLayer(name, leaf, shape, ranks, rotate_in, rotate_out, last.bias, stride)


def _matrix(rotation: nn.Module) -> Tensor | None:
    return None if isinstance(rotation, nn.Identity) else rotation.get_parameter("weight").detach().flatten(1)


@torch.no_grad()
def _trace(model: nn.Module, run: Callable[[], object]) -> dict[nn.Module, _Call]:
    """Calls and positions of one image in every convolution, linear and factored layer."""
    calls = {m: _Call() for m in model.modules()}

    def record(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        call, axis = calls[module], -1 if _linear(module) else -3
        call.out_positions += y.numel() // y.shape[axis]
        call.count += 1
        call.by_keyword |= not args  # which hides the input from hooks
        if args:
            call.in_positions += args[0].numel() // args[0].shape[axis]

    kinds = (nn.Conv2d, nn.Linear, *FactoredLayer.__args__)
    hooks = [m.register_forward_hook(record) for m in calls if isinstance(m, kinds)]
    with attached(hooks), kept_modes(model), plain_attention():
        model.eval()
        run()
    return calls


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or isinstance(getattr(module, "core", None), nn.Linear)
