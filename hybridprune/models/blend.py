"""A gated block's output while training: what was skipped and what was executed, blended per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def blend(skipped: Tensor, executed: Tensor, decision: Tensor) -> Tensor:
    """``skipped + decision (executed - skipped)``, ``[B, C, H, W]``, exact for decisions ``[B]`` of 0 and of 1.

    Decisions of another type are taken to that of ``skipped``; it must be the type of ``executed``, too.
    """
    assert skipped.shape == executed.shape, (skipped.shape, executed.shape)
    assert decision.shape == skipped.shape[:1], (decision.shape, skipped.shape)
    decision = decision.to(skipped.dtype)
    # Compilers fuse lerp and its derivative with their neighbours, and exporters know it.
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return torch.lerp(skipped, executed, per_image(decision))
    return Blend.apply(skipped, executed, decision)  # type: ignore[no-any-return]


class Blend(torch.autograd.Function):
    """lerp with a backward pass that holds fewer tensors at once; works twice, and under torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(skipped: Tensor, executed: Tensor, decision: Tensor) -> Tensor:
        return torch.lerp(skipped, executed, per_image(decision))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        skipped, executed, decision = inputs
        # The large ones only for decisions that learn.
        ctx.save_for_backward(decision, *((skipped, executed) if ctx.needs_input_grad[2] else ()))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        decision, *ends = ctx.saved_tensors
        of_decision = None
        # First, so that what it takes in between is free again for the other two.
        if ctx.needs_input_grad[2]:
            skipped, executed = ends
            of_decision = (grad * (executed - skipped)).sum((1, 2, 3))
        of_skipped = grad * per_image(1 - decision) if ctx.needs_input_grad[0] else None
        of_executed = grad * per_image(decision) if ctx.needs_input_grad[1] else None
        return of_skipped, of_executed, of_decision


def per_image(decision: Tensor) -> Tensor:
    """``[B]`` as ``[B, 1, 1, 1]``."""
    return decision.view(-1, 1, 1, 1)
