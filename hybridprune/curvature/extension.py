"""A BackPACK extension that hands each leaf's input and output gradient to a statistic, and leaves no trace.

BackPACK's own Kronecker extensions have no rule for batch norm or residual sums. A first-order extension
needs none: it only reads what passes through the extended leaves, whatever lies between them.
Dangel, Kunstner, Hennig: "BackPACK: Packing more into Backprop", ICLR 2020.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from backpack import backpack, extend, hook_run_extensions, memory_cleanup
from backpack.context import CTX
from backpack.extensions.backprop_extension import FAIL_ERROR
from backpack.extensions.firstorder.base import FirstOrderBackpropExtension, FirstOrderModuleExtension
from torch import Tensor, nn

Statistic = Callable[[nn.Module, Tensor, Tensor], None]
"""Called as ``statistic(layer, layer input, gradient of the loss in the layer's output)``."""


class Unobservable(ValueError):
    """An error: what a layer read is no longer there when the gradient in its output is known; carries the layer."""

    def __init__(self, layer: nn.Module, message: str) -> None:
        super().__init__(message)
        self.layer = layer


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
        extension.statistic(module, vars(module)["input0"].detach(), g_out[0].detach())


class _Anchor(torch.autograd.Function):
    """The identity, in place, with a path to an anchor: differentiating by the anchor alone reaches every leaf."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        # neither a copy nor a view, so that the network may go on to change the output in place
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0], None


@contextmanager
def observed(layers: Iterable[nn.Module], statistic: Statistic) -> Iterator[Callable[[Tensor], None]]:
    """Extend the leaves; yield ``backward(loss)``, which calls the statistic for every leaf it reaches.

    Only activations' gradients are computed, no ``.grad`` or ``requires_grad`` is touched, and on leaving all
    hooks and attributes are removed. The network may change a leaf's output in place.

    Raises:
        Unobservable: on ``backward``, if a leaf ran twice or its input was changed after it ran.
    """
    layers = list(layers)
    anchor = torch.zeros((), requires_grad=True)

    def backward(loss: Tensor) -> None:
        if loss.requires_grad:
            torch.autograd.grad(loss, anchor, allow_unused=True)
        for layer in layers:
            # what the loss does not depend on is still in memory
            memory_cleanup(layer)

    with ExitStack() as stack:
        stack.enter_context(backpack(LeafExtension(layers, statistic)))
        for layer in layers:
            stack.enter_context(_extended(layer, anchor))
        yield backward


@contextmanager
def _extended(layer: nn.Module, anchor: Tensor) -> Iterator[None]:
    """Extend one leaf, with a hook on its output's gradient, and restore it on leaving.

    BackPACK's full backward hook makes the output a view, which autograd forbids to change in place. A hook on
    the output tensor runs the same extensions: it gets the gradient in the output as the leaf left it.
    """
    attributes, backward_hooks = set(vars(layer)), layer._backward_hooks
    hook_kind, handles = layer._is_full_backward_hook, len(CTX.hook_handles)
    extend(layer)
    own_handles = CTX.hook_handles[handles:]
    layer._backward_hooks = OrderedDict(
        (key, hook) for key, hook in backward_hooks.items() if hook is not hook_run_extensions
    )
    watch = layer.register_forward_hook(partial(_watch_output, anchor))
    try:
        yield
    finally:
        watch.remove()
        layer._backward_hooks = backward_hooks
        for handle in own_handles:
            handle.remove()
            CTX.hook_handles.remove(handle)
        for name in set(vars(layer)) - attributes:
            delattr(layer, name)
        layer._is_full_backward_hook = hook_kind


def _watch_output(anchor: Tensor, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    """Forward hook, after BackPACK's own: run the extensions when the gradient in the output is known."""
    if not torch.is_grad_enabled():
        return None
    # weak: the graph outlives the backward pass through a layer, its input need not
    seen, version = weakref.ref(args[0]), args[0]._version

    def run_extensions(g: Tensor) -> None:
        x = vars(layer).get("input0")
        if x is None or x is not seen():
            raise Unobservable(layer, f"{layer} ran more than once in a forward pass: its input was overwritten")
        if x._version != version:
            raise Unobservable(layer, f"the input of {layer} was changed in place after the layer had run")
        hook_run_extensions(layer, (), (g,))  # pyright: ignore[reportArgumentType]

    # BackPACK keeps it for extensions of second order
    del layer.output
    if output._is_view():
        # a linear layer's over tokens; hooks on a view are lost when it is changed in place
        output = output.clone()
    output = _Anchor.apply(output, anchor)  # pyright: ignore[reportAssignmentType]
    output.register_hook(run_extensions)
    return output
