"""Sequences: tokens behind the batch, in it or before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.foreign.network import CLASSES, UNSEEN, Net, pairs


class Attention(nn.Module):
    """Self-attention with one linear layer for queries, keys and values ``[B, T, C]``."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Attention and two linear layers, each behind a norm and beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Patches, a class token, positions: a small ViT."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 10, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class Windows(nn.Module):
    """Swin's way: windows of 4 x 4 tokens are folded into the batch, ``[B * windows, 16, C]``."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, width, 1), Block(width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        batch, height, wide, width = x.shape
        x = x.view(batch, height // 4, 4, wide // 4, 4, width).transpose(2, 3).reshape(-1, 16, width)
        x = self.block(x).view(batch, -1, width)
        return self.head(self.norm(x).mean(1))


class FoldedTokens(nn.Module):
    """Tokens are rows of a matrix, ``[B * T, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer, self.head = nn.Linear(12, 32), nn.Linear(32, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        x = F.relu(self.outer(F.relu(self.inner(x.reshape(-1, 12)))))
        return self.head(x.view(batch, -1, 16).mean(1))


class Shift(nn.Module):
    """A temporal-shift network: frames ``[B, 4, 3, H, W]`` are folded into the batch, channels move between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.second, self.third = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        batch, frames = x.shape[:2]
        x = F.relu(self.norm(self.first(x.flatten(0, 1))))
        x = x.unflatten(0, (batch, frames))
        x = torch.cat([x[:, :, :4].roll(1, 1), x[:, :, 4:]], 2).flatten(0, 1)
        x = F.relu(self.third(F.relu(self.second(x)))).mean((2, 3))
        return self.head(x.view(batch, frames, -1).mean(1))


class SequenceFirst(nn.Module):
    """torch's own encoder with ``batch_first=False``: ``[T, B, C]``."""

    def __init__(self, batch_first: bool = False, width: int = 16) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Linear(12, width)
        layer = nn.TransformerEncoderLayer(width, 2, 48, 0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x if self.batch_first else x.transpose(0, 1))
        return self.head(self.encoder(x).mean(1 if self.batch_first else 0))


class Masked(nn.Module):
    """Takes a mask that may be left out, and is called with one by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(12, 16), Block(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.block(self.embed(x))
        if mask is None:
            return self.head(x.mean(1))
        weights = mask.to(x.dtype).unsqueeze(2)
        return self.head((x * weights).sum(1) / weights.sum(1).clamp_min(1))


class Recurrent(nn.Module):
    """An LSTM reads the columns of a convolution's features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        self.norm, self.lstm = nn.BatchNorm2d(24), nn.LSTM(24, 12, batch_first=True)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.second(F.relu(self.first(x)))))
        states, _ = self.lstm(x.mean(2).transpose(1, 2))
        return self.head(states[:, -1])


class RowFirst(nn.Module):
    """Keeps channels last between linear layers, as ConvNeXt does: ``[B, H, W, C]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.spread = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 5, padding=2, groups=16)
        self.norm, self.inner, self.outer = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)
        self.scale = nn.Parameter(torch.full((16,), 0.5))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.spread(x).permute(0, 2, 3, 1))
        x = x + (self.scale * self.outer(F.gelu(self.inner(y)))).permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


def rows() -> list[tuple[Tensor, Tensor]]:
    """Batches of 6 tokens of 12 features."""
    return pairs(6, 12)


NETS = {
    "vision transformer": Net(Transformer, refused=UNSEEN),
    "windows": Net(Windows, refused=UNSEEN),
    "tokens in the batch": Net(FoldedTokens, rows),
    "temporal shift": Net(Shift, lambda: pairs(4, 3, 8, 8), refused=UNSEEN),
    "sequence first": Net(SequenceFirst, rows, refused=UNSEEN),
    "batch first, fast path": Net(lambda: SequenceFirst(batch_first=True), rows, refused=UNSEEN),
    "mask by keyword": Net(
        Masked, rows, forward=lambda model, batch: model(batch[0], mask=batch[0].mean(2) > -0.3), refused=UNSEEN
    ),
    "LSTM on columns": Net(Recurrent, least=0.85),
    "channels last in the middle": Net(RowFirst, refused=UNSEEN),
}
