"""Gates: small networks that look at a block's output and decide whether the next block runs.

Every kind of gate gives the logit of executing the next block from the block's output and its own hidden state, and
can be shifted: a threshold other than 0.5 on the probability is a shift of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

Hidden = tuple[Tensor, Tensor]
Decide = Callable[[Tensor], Tensor]
"""Decisions ``[B]`` in [0, 1] from one gate's logits ``[B]``."""

# Open at first (probability about 0.88): a network whose blocks were never trained together cannot recover.
OPEN = 2.0
FEEDFORWARD_CHANNELS = 10


class Gate(nn.Module):
    """The module that decides in a gated network. Without gates (no ``channels``) it has no parameters."""

    def forward(self, index: int, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        """Logits ``[B]`` of executing block ``index + 1``, from block ``index``'s output ``[B, C_i, H, W]``.

        ``hidden`` is what the gate before gave, None for the first. Computed in fp32 whatever the autocast.
        """
        device = "cpu" if features.is_meta else features.device.type  # there is no autocast on meta
        if not torch.is_autocast_enabled(device):  # entering the context costs more than the gate of one image
            return self.decide(index, features, hidden)
        with torch.autocast(device, enabled=False):
            return self.decide(index, features, hidden)

    def decide(self, index: int, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        """``forward`` of one kind of gate."""
        raise NotImplementedError

    def scores(self) -> Sequence[nn.Linear]:
        """The layers whose single outputs are the logits."""
        raise NotImplementedError

    def open(self) -> None:
        """Start by executing: every score's bias is set so."""
        for layer in self.scores():
            nn.init.constant_(layer.bias, OPEN)

    @torch.no_grad()
    def shift(self, by: float) -> None:
        """Add ``by`` to every logit from now on."""
        for layer in self.scores():
            layer.bias.add_(by)

    @torch.no_grad()
    def sharpen(self, temperature: float) -> None:
        """Divide every logit by ``temperature`` from now on: below 1, probabilities go towards 0 and 1."""
        for layer in self.scores():
            layer.weight.div_(temperature)
            layer.bias.div_(temperature)


class RecurrentGate(Gate):
    """SkipNet's recurrent gate (Wang et al. 2018, section 3.1): one LSTM cell shared by all gates.

    Gate ``i`` sees the globally pooled output of block ``i`` through its own linear embedding.
    """

    def __init__(self, channels: Sequence[int], size: int = 10) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Linear(c, size) for c in channels)
        if not channels:
            return
        self.cell = nn.LSTMCell(size, size)
        self.score = nn.Linear(size, 1)
        self.open()

    def decide(self, index: int, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        pooled = features.mean(dim=(2, 3), dtype=torch.float32)
        state: Hidden = self.cell(self.embeddings[index](pooled), hidden)
        return self.score(state[0]).squeeze(1), state

    def scores(self) -> Sequence[nn.Linear]:
        return [self.score] if len(self.embeddings) else []


class FeedForwardGate(Gate):
    """SkipNet's feed-forward gates (Wang et al. 2018, section 3.1, figure 3): convolutions of the block's output.

    Every gate has weights of its own and no memory. Convolutions have ten 3x3 filters, each followed by BatchNorm and
    ReLU; global average pooling and a linear layer give the logit.
    """

    def __init__(self, channels: Sequence[int], convolutions: Callable[[int], nn.Sequential]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(map(convolutions, channels))
        self.linears = nn.ModuleList(nn.Linear(FEEDFORWARD_CHANNELS, 1) for _ in channels)
        self.open()

    def decide(self, index: int, features: Tensor, hidden: Hidden | None) -> tuple[Tensor, Hidden | None]:
        pooled = self.convolutions[index](features.float()).mean(dim=(2, 3))
        return self.linears[index](pooled).squeeze(1), None

    def scores(self) -> Sequence[nn.Linear]:
        return [layer for layer in self.linears if isinstance(layer, nn.Linear)]


def feed_forward_1(channels: Sequence[int]) -> FeedForwardGate:
    """FFGate-I: 2x2 max pooling, a convolution, and another of stride 2."""
    return FeedForwardGate(
        channels, lambda c: nn.Sequential(nn.MaxPool2d(2), *_convolution(c, 1), *_convolution(FEEDFORWARD_CHANNELS, 2))
    )


def feed_forward_2(channels: Sequence[int]) -> FeedForwardGate:
    """FFGate-II, the cheap one: a single convolution of stride 2."""
    return FeedForwardGate(channels, lambda c: nn.Sequential(*_convolution(c, 2)))


def _convolution(channels: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, FEEDFORWARD_CHANNELS, 3, stride, 1, bias=False)
    return [convolution, nn.BatchNorm2d(FEEDFORWARD_CHANNELS), nn.ReLU()]


GATES: Mapping[str, Callable[[Sequence[int]], Gate]] = {
    "rnn": RecurrentGate,
    "ff1": feed_forward_1,
    "ff2": feed_forward_2,
}
"""Kinds of gates by the names that ``--gate`` takes."""
UNGATED = "none"
"""Names no kind: a network whose blocks all run."""


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


def soft(logit: Tensor) -> Tensor:
    """The probability itself: SkipNet's soft gating, which blends the block and its shortcut."""
    return logit.sigmoid()


def above(threshold: float) -> Decide:
    """Exactly 0 or 1, where the logit is above ``threshold``, without gradient."""
    return lambda logit: (logit > threshold).to(logit.dtype)


def logistic(uniform: Tensor) -> Tensor:
    """Noise, from numbers in [0, 1), that makes ``1[logit + noise > 0]`` a sample of the gate.

    It is the Gumbel-max trick for two outcomes.
    """
    uniform = uniform.clamp(1e-6, 1 - 1e-6)
    return uniform.log() - (-uniform).log1p()
