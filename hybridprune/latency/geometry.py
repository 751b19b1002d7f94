"""The geometry of a layer, on which its time depends, and layers of a geometry in any form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hybridprune.ambient import seeded
from hybridprune.engine.modes import kept_modes
from hybridprune.hooks import attached
from hybridprune.models.factored import DENSE, FactoredLayer, Ranks, factored


@dataclass(frozen=True)
class Geometry:
    """A convolution or a linear layer, factored or not, and the size of what it reads of one image.

    Its weights are not told, nor whether it has a bias: it has one where it is deployed behind a folded BatchNorm.
    """

    inputs: int
    outputs: int
    rows: int
    """Leading size of the input: 1, or what else of one image is in the batch's place."""
    size: tuple[int, ...]
    """Height and width, or the positions of a linear layer's input (none: a vector)."""
    kernel: tuple[int, ...] = ()
    """Of a convolution; none for a linear layer."""
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    depthwise: bool = False

    def key(self) -> dict[str, Any]:
        """A plain dictionary that tells it from all others."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def images(self, batch: int, inputs: int | None = None) -> Tensor:
        """Random input of ``batch`` images, of fewer channels if so many are given."""
        draw = torch.Generator().manual_seed(0)
        rows, inputs = self.rows * batch, inputs or self.inputs
        if not self.kernel:
            return torch.randn(rows, *self.size, inputs, generator=draw)
        return torch.randn(rows, inputs, *self.size, generator=draw)

    def layer(self, ranks: Ranks = DENSE, inputs: int | None = None, outputs: int | None = None) -> nn.Module:
        """A layer of this geometry with random weights, in the form of ``ranks`` or with fewer channels."""
        inputs, outputs = inputs or self.inputs, outputs or self.outputs
        with seeded(0):
            if not self.kernel:
                dense: nn.Module = nn.Linear(inputs, outputs)
            else:
                dense = nn.Conv2d(
                    outputs if self.depthwise else inputs,
                    outputs,
                    cast(tuple[int, int], self.kernel),
                    stride=cast(tuple[int, int], self.stride),
                    padding=cast(Any, self.padding),
                    dilation=cast(tuple[int, int], self.dilation),
                    groups=outputs if self.depthwise else 1,
                )
            made = dense if ranks == DENSE else factored(dense, *ranks)
        return made.to(memory_format=torch.channels_last).eval().requires_grad_(False)  # type: ignore[call-overload]

    def macs(self, ranks: Ranks = DENSE, inputs: int | None = None, outputs: int | None = None) -> int:
        """Multiply-accumulates of one image, about: borders count in full."""
        inputs, outputs = inputs or self.inputs, outputs or self.outputs
        read = self.rows
        for side in self.size:
            read *= side
        step, area = 1, 1
        for stride, side in zip(self.stride, self.kernel, strict=True):
            step, area = step * stride, area * side
        written = max(1, read // step)
        rank_in = inputs if ranks.rank_in is None else ranks.rank_in
        rank_out = outputs if ranks.rank_out is None else ranks.rank_out
        pairs = rank_out if self.depthwise or ranks.separable else rank_in * rank_out
        first = 0 if ranks.rank_in is None else (written if area == 1 else read) * inputs * rank_in
        last = 0 if ranks.rank_out is None else written * rank_out * outputs
        return written * area * pairs + first + last


@torch.no_grad()
def geometries(model: nn.Module, run: Callable[[], object]) -> dict[str, Geometry]:
    """The layers of ``model`` by name, as ``run`` passes one image through it; those of a factored one as well.

    Layers that do not run, are called by keyword, or have groups that are not single channels are left out. Of one that
    runs several times it is the last.
    """
    found: dict[str, Geometry] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def note(layer: nn.Module, args: tuple[Any, ...], _: Tensor) -> None:
            if args and (geometry := _geometry(layer, args[0].shape)) is not None:
                found[name] = geometry

        return note

    kinds = (nn.Conv2d, nn.Linear, *FactoredLayer.__args__)
    hooks = [m.register_forward_hook(hook(name)) for name, m in model.named_modules() if isinstance(m, kinds)]
    with attached(hooks), kept_modes(model):
        model.eval()
        run()
    return found


def _geometry(layer: nn.Module, shape: torch.Size) -> Geometry | None:
    if hasattr(layer, "in_features"):
        linear = cast(nn.Linear, layer)
        return Geometry(linear.in_features, linear.out_features, shape[0] if len(shape) > 1 else 1, tuple(shape[1:-1]))
    conv = cast(nn.Conv2d, layer)
    depthwise = conv.groups > 1 and conv.groups == conv.in_channels == conv.out_channels
    if conv.padding_mode != "zeros" or (conv.groups > 1 and not depthwise) or len(shape) != 4:
        return None
    return Geometry(
        inputs=conv.in_channels,
        outputs=conv.out_channels,
        rows=shape[0],
        size=tuple(shape[2:]),
        kernel=tuple(conv.kernel_size),
        stride=tuple(conv.stride),
        padding=conv.padding if isinstance(conv.padding, str) else tuple(conv.padding),
        dilation=tuple(conv.dilation),
        depthwise=depthwise,
    )


def separates(geometry: Geometry) -> bool:
    """Whether the layer has a separable form."""
    return math.prod(geometry.kernel) > 1 and not geometry.depthwise


def shapes(model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """The shapes of all parameters and buffers: what time depends on, of two networks of one origin."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
