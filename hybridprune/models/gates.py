"""Gates: small networks that look at a block's output and decide whether the next block runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Hidden = tuple[Tensor, Tensor]


class RecurrentGate(nn.Module):
    """SkipNet's recurrent gate (Wang et al. 2018, section 3.1): one LSTM cell shared by all gates.

    Gate ``i`` sees the globally pooled output ``[B, C_i]`` of block ``i`` through its own linear embedding and
    gives the logit ``[B]`` of executing block ``i + 1``. Without gates (no ``channels``) it has no parameters.
    """

    def __init__(self, channels: Sequence[int], size: int = 10) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Linear(c, size) for c in channels)
        if not channels:
            return
        self.cell = nn.LSTMCell(size, size)
        self.score = nn.Linear(size, 1)
        # Open at first (probability about 0.88): a network whose blocks were never trained together cannot recover.
        nn.init.constant_(self.score.bias, 2.0)

    def forward(self, index: int, pooled: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden]:
        """Logits ``[B]`` of gate ``index`` and the cell's next state, computed in fp32 whatever the autocast."""
        device = "cpu" if pooled.is_meta else pooled.device.type  # there is no autocast on meta
        with torch.autocast(device, enabled=False):
            state: Hidden = self.cell(self.embeddings[index](pooled.float()), hidden)
            return self.score(state[0]).squeeze(1), state


class _Threshold(torch.autograd.Function):
    """``1[logit > 0]`` forward; backward, the gradient of the sigmoid (straight-through, Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, logit: Tensor) -> Tensor:
        ctx.save_for_backward(logit)
        return (logit > 0).to(logit.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        (logit,) = ctx.saved_tensors  # type: ignore[attr-defined]
        p = logit.sigmoid()
        return grads[0] * p * (1 - p)


def straight_through(logit: Tensor) -> Tensor:
    """Exactly 0 or 1 (probability above 0.5), with the gradient of the probability."""
    return _Threshold.apply(logit)  # type: ignore[no-any-return]


def greedy(logit: Tensor) -> Tensor:
    """Exactly 0 or 1 (probability above 0.5), without gradient."""
    return (logit > 0).to(logit.dtype)
