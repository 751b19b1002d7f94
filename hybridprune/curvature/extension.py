"""A BackPACK extension that hands each leaf's input and output gradient to a statistic, and leaves no trace.

BackPACK's own Kronecker extensions have no rule for batch norm or residual sums. A first-order extension
needs none: it only reads what passes through the extended leaves, whatever lies between them.
Dangel, Kunstner, Hennig: "BackPACK: Packing more into Backprop", ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from backpack import backpack, extend
from backpack.context import CTX
from backpack.extensions.backprop_extension import FAIL_ERROR
from backpack.extensions.firstorder.base import FirstOrderBackpropExtension, FirstOrderModuleExtension
from torch import Tensor, nn

Statistic = Callable[[nn.Module, Tensor, Tensor], None]
"""Called as ``statistic(layer, layer input, gradient of the loss in the layer's output)``."""


class LeafExtension(FirstOrderBackpropExtension):
    """Calls a statistic for every leaf that the backward pass reaches; stores nothing on the parameters."""

    def __init__(self, layers: Iterable[nn.Module], statistic: Statistic) -> None:
        rule = _LeafRule()
        super().__init__("curvature_statistic", {type(layer): rule for layer in layers}, fail_mode=FAIL_ERROR)
        self.statistic = statistic


class _LeafRule(FirstOrderModuleExtension):
    """The rule of ``nn.Conv2d`` and ``nn.Linear`` alike.

    It replaces BackPACK's dispatch over the parameters that require gradients: no statistic needs the
    weights' gradients, and without them a pass costs a third less.
    """

    def __call__(self, extension: Any, module: nn.Module, g_inp: Any, g_out: Any) -> None:
        if "input0" not in vars(module):
            raise ValueError(f"{module} ran more than once in a forward pass: its input was overwritten")
        extension.statistic(module, vars(module)["input0"].detach(), g_out[0].detach())


class _Anchor(torch.autograd.Function):
    """The identity, with a path to an anchor: differentiating by the anchor alone then reaches every leaf."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


@contextmanager
def observed(layers: Iterable[nn.Module], statistic: Statistic) -> Iterator[Callable[[Tensor], None]]:
    """Extend the leaves; yield ``backward(loss)``, which calls the statistic for every leaf it reaches.

    Only activations' gradients are computed, no ``.grad`` or ``requires_grad`` is touched, and on leaving all
    hooks and attributes are removed. Autograd raises if a leaf's own output is modified in place; an in-place
    ReLU after a batch norm, and in-place sums, are fine.
    """
    layers = list(layers)
    anchor = torch.zeros((), requires_grad=True)

    def to_anchor(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_Anchor.apply(args[0], anchor), *args[1:])  # pyright: ignore[reportReturnType]

    def backward(loss: Tensor) -> None:
        if loss.requires_grad:
            torch.autograd.grad(loss, anchor, allow_unused=True)

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(_extended(layer))
            stack.callback(layer.register_forward_pre_hook(to_anchor).remove)
        stack.enter_context(backpack(LeafExtension(layers, statistic)))
        yield backward


@contextmanager
def _extended(layer: nn.Module) -> Iterator[None]:
    """Extend one leaf, and restore it on leaving."""
    attributes = set(vars(layer))
    hook_kind = layer._is_full_backward_hook
    handles = len(CTX.hook_handles)
    extend(layer)
    own_handles = CTX.hook_handles[handles:]
    try:
        yield
    finally:
        for handle in own_handles:
            handle.remove()
            CTX.hook_handles.remove(handle)
        for name in set(vars(layer)) - attributes:
            delattr(layer, name)
        layer._is_full_backward_hook = hook_kind
