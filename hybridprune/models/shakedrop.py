"""ShakeDrop regularisation of residual branches (Yamada et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class ShakeDrop(nn.Module):
    """Scale a residual branch ``[B, C, H, W]`` by ``b + alpha - b alpha``, its gradient by ``b + beta - b beta``.

    In training b ~ Bernoulli(1 - drop), alpha ~ U[-1, 1] and beta ~ U[0, 1] are drawn for each image; in eval mode
    the scale is its expectation, ``1 - drop`` (equation 6). The draws come from the module's own stream, whose place
    is kept in the state dict: a resumed training goes on with the same numbers. They are drawn on the device of the
    images, without waiting for it; CPUs and GPUs draw different ones. ``within`` says where the images are in the batch
    of several processes, which then draw what one process would.
    """

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self._seed = int(torch.randint(2**31, (), device="cpu"))
        self._calls = 0
        self.within: tuple[int, int] | None = None
        """The first image and the number of images of the whole batch; None: the batch is all there is."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x * (1 - self.drop)
        # A decorator would load the compiler wherever this file is imported, which takes a second.
        draw: Any = torch.compiler.disable(self._draw) if torch.compiler.is_compiling() else self._draw
        forward, backward = draw(len(x), x.device).to(x.dtype).view(2, -1, 1, 1, 1)
        return _Shake.apply(x, forward, backward)  # type: ignore[no-any-return]

    def _draw(self, images: int, device: torch.device) -> Tensor:
        """The scales ``[2, B]`` of the next forward and of its backward pass."""
        generator = torch.Generator(device).manual_seed(self._seed + self._calls)
        self._calls += 1
        start, whole = self.within or (0, images)
        keep, alpha, beta = torch.rand(3, whole, generator=generator, device=device)[:, start : start + images]
        # b + alpha - b alpha is 1 where b is 1, and alpha where it is 0.
        return torch.where(keep >= self.drop, 1, torch.stack([2 * alpha - 1, beta]))

    def get_extra_state(self) -> Tensor:
        """Seed and place of the stream, int64 ``[2]``."""
        return torch.tensor([self._seed, self._calls], device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """The inverse of ``get_extra_state``."""
        self._seed, self._calls = state.tolist()


class _Shake(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, forward: Tensor, backward: Tensor) -> Tensor:
        ctx.save_for_backward(backward)
        return x * forward

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None]:
        (backward,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return grads[0] * backward, None, None
