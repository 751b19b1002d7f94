"""Factored layers ``W = Q_out . core . Q_in^T``, run as rotation -> core -> rotation."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from hybridprune.models.on_demand import OnDemand

Core = TypeVar("Core", nn.Conv2d, nn.Linear)
Layer = TypeVar("Layer", bound=nn.Module)


class _Factored(nn.Module, Generic[Core]):
    """A factored layer of either kind; ``weight`` and ``bias`` are those of the dense layer, computed when read."""

    rotate_in: Core | nn.Identity
    core: Core
    rotate_out: Core | nn.Identity

    @property
    def weight(self) -> Tensor:
        """The kernel ``Q_out . core . Q_in^T`` ``[C_out, C_in, kh, kw]`` (linear: ``[C_out, C_in]``)."""
        if torch.compiler.is_compiling():
            return self._product()
        inputs, outputs = self.channels
        return OnDemand(self._product, self.core.weight, (outputs, inputs, *self.core.weight.shape[2:]))

    def _product(self) -> Tensor:
        weight = self.core.weight
        if not isinstance(self.rotate_in, nn.Identity):
            weight = torch.einsum("oi...,ic->oc...", weight, self.rotate_in.weight.flatten(1))
        if not isinstance(self.rotate_out, nn.Identity):
            weight = torch.einsum("co,oi...->ci...", self.rotate_out.weight.flatten(1), weight)
        return weight

    @property
    def bias(self) -> nn.Parameter | None:
        """The bias ``[C_out]``, a parameter of the last layer that runs."""
        last = self.core if isinstance(self.rotate_out, nn.Identity) else self.rotate_out
        return last._parameters["bias"]

    @property
    def channels(self) -> tuple[int, int]:
        """Input and output channels (features) of the whole."""
        first = self.core if isinstance(self.rotate_in, nn.Identity) else self.rotate_in
        last = self.core if isinstance(self.rotate_out, nn.Identity) else self.rotate_out
        return first.get_parameter("weight").shape[1], last.get_parameter("weight").shape[0]

    def forward(self, x: Tensor) -> Tensor:
        return self.rotate_out(self.core(self.rotate_in(x)))


class FactoredConv2d(_Factored[nn.Conv2d]):
    """1x1 rotation, kxk core, 1x1 rotation; a side without a rotation (rank None) is absorbed into the core.

    The forms are two-sided, input-sided (``rotate_out`` is the identity) and output-sided. Stride, padding and
    dilation belong to the core, except that a strided 1x1 subsamples before the first rotation. The bias follows
    the output side. What an ``nn.Conv2d`` says of itself can be read here, too.
    """

    def __init__(self, conv: nn.Conv2d, rank_in: int | None, rank_out: int | None) -> None:
        """A factored layer of the geometry of ``conv``; its weights are left uninitialised."""
        super().__init__()
        assert conv.groups == 1 and (rank_in is not None or rank_out is not None)
        options: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        bias = conv.bias is not None
        pointwise = is_pointwise(conv)
        self.subsample = (int(conv.stride[0]), int(conv.stride[1])) if pointwise else (1, 1)
        self.rotate_in = (
            nn.Identity() if rank_in is None else nn.Conv2d(conv.in_channels, rank_in, 1, bias=False, **options)
        )
        self.core = nn.Conv2d(
            conv.in_channels if rank_in is None else rank_in,
            conv.out_channels if rank_out is None else rank_out,
            (int(conv.kernel_size[0]), int(conv.kernel_size[1])),
            stride=1 if pointwise else (int(conv.stride[0]), int(conv.stride[1])),
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=(int(conv.dilation[0]), int(conv.dilation[1])),
            padding_mode=conv.padding_mode,
            bias=bias and rank_out is None,
            **options,
        )
        self.rotate_out = (
            nn.Identity() if rank_out is None else nn.Conv2d(rank_out, conv.out_channels, 1, bias=bias, **options)
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(subsample(x, *self.subsample))

    @property
    def in_channels(self) -> int:
        """Input channels of the dense convolution; all that follows is of it, too."""
        return self.channels[0]

    @property
    def out_channels(self) -> int:
        return self.channels[1]

    @property
    def kernel_size(self) -> tuple[int, ...]:
        return self.core.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        return tuple(a * b for a, b in zip(self.core.stride, self.subsample, strict=True))

    @property
    def padding(self) -> str | tuple[int, ...]:
        return self.core.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        return self.core.dilation

    @property
    def groups(self) -> int:
        return 1

    @property
    def padding_mode(self) -> str:
        return self.core.padding_mode


def subsample(x: Tensor, rows: int, columns: int) -> Tensor:
    """Every so many rows and columns of ``[B, C, H, W]``: before a 1x1 convolution, the same as a stride in it.

    And safe: oneDNN's weight gradient of a strided 1x1 convolution with fewer channels than an AVX2 register holds
    writes out of bounds (uxlfoundation/oneDNN#6035), which ends in wrong gradients, a hang or a crash.
    """
    return x if rows == columns == 1 else x[:, :, ::rows, ::columns]


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether the convolution reads just the pixels at its stride, which can then be picked before anything runs."""
    return conv.kernel_size == (1, 1) and conv.padding in ((0, 0), "valid", "same")


class FactoredLinear(_Factored[nn.Linear]):
    """A factored linear layer: rotation, core and rotation are matrices."""

    def __init__(self, linear: nn.Linear, rank_in: int | None, rank_out: int | None) -> None:
        """A factored layer of the shape of ``linear``; its weights are left uninitialised."""
        super().__init__()
        assert rank_in is not None or rank_out is not None
        options: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        bias = linear.bias is not None
        self.rotate_in = (
            nn.Identity() if rank_in is None else nn.Linear(linear.in_features, rank_in, bias=False, **options)
        )
        self.core = nn.Linear(
            linear.in_features if rank_in is None else rank_in,
            linear.out_features if rank_out is None else rank_out,
            bias=bias and rank_out is None,
            **options,
        )
        self.rotate_out = (
            nn.Identity() if rank_out is None else nn.Linear(rank_out, linear.out_features, bias=bias, **options)
        )

    @property
    def in_features(self) -> int:
        """Input features of the dense layer."""
        return self.channels[0]

    @property
    def out_features(self) -> int:
        """Output features of the dense layer."""
        return self.channels[1]


FactoredLayer = FactoredConv2d | FactoredLinear


def factored(layer: nn.Module, rank_in: int | None, rank_out: int | None) -> FactoredLayer:
    """The factored form of a dense layer's geometry, weights uninitialised.

    Raises ValueError if the layer has none, or fewer channels than a rank asks for.
    """
    if isinstance(layer, nn.Conv2d | nn.Linear):
        outputs, inputs = layer.weight.shape[:2]
        if not (1 <= (rank_in or 1) <= inputs and 1 <= (rank_out or 1) <= outputs):
            raise ValueError(f"ranks {rank_in} and {rank_out} of a layer with {inputs} inputs and {outputs} outputs")
    if isinstance(layer, nn.Conv2d):
        return FactoredConv2d(layer, rank_in, rank_out)
    if isinstance(layer, nn.Linear):
        return FactoredLinear(layer, rank_in, rank_out)
    raise ValueError(f"a {type(layer).__name__} has no factored form")


def outline(layer: FactoredLayer, device: str | torch.device | None = None) -> nn.Conv2d | nn.Linear:
    """The dense layer of the same geometry, its weights left uninitialised, on ``device`` (None: that of ``layer``).

    On the meta device making it draws no random numbers.
    """
    weight = layer.core.weight
    options: dict[str, Any] = {"device": weight.device if device is None else device, "dtype": weight.dtype}
    options["bias"] = layer.bias is not None
    if isinstance(layer, FactoredLinear):
        return nn.Linear(*layer.channels, **options)
    geometry = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    return nn.Conv2d(*layer.channels, **geometry, **options)


def blank(layer: nn.Module) -> nn.Module:
    """A small layer of the same class, on which nothing hangs; ValueError if it is no dense or factored layer."""
    with torch.device("meta"):
        if isinstance(layer, FactoredLayer):
            return factored(blank(layer.core), 1, 1)
        if isinstance(layer, nn.Conv2d):
            return nn.Conv2d(1, 1, 1)
        if isinstance(layer, nn.Linear):
            return nn.Linear(1, 1)
    raise ValueError(f"a {type(layer).__name__} has no factored form")


def form(layer: FactoredLayer) -> tuple[int | None, int | None]:
    """Ranks of the input and the output side; None where there is no rotation."""
    rank_out, rank_in = layer.core.weight.shape[:2]
    return (
        None if isinstance(layer.rotate_in, nn.Identity) else int(rank_in),
        None if isinstance(layer.rotate_out, nn.Identity) else int(rank_out),
    )


def form_name(ranks: tuple[int | None, int | None]) -> str:
    """The name of the form with these rotations."""
    rank_in, rank_out = ranks
    if rank_in is not None and rank_out is not None:
        return "two-sided"
    return "dense" if rank_in is rank_out else "input-sided" if rank_out is None else "output-sided"


@torch.no_grad()
def fill(layer: FactoredLayer, rotate_out: Tensor | None, core: Tensor, rotate_in: Tensor | None) -> None:
    """Set a factored layer's weights: ``[C_out, r_out]``, ``[r_out, r_in, kh, kw]``, ``[r_in, C_in]``; None: absent."""
    assert layer.core.weight.shape[:2] == core.shape[:2]
    layer.core.weight.copy_(core.reshape(layer.core.weight.shape))
    for rotation, values in ((layer.rotate_out, rotate_out), (layer.rotate_in, rotate_in)):
        if isinstance(rotation, nn.Identity):
            assert values is None
        else:
            weight = rotation.get_parameter("weight")
            assert values is not None and weight.shape[:2] == values.shape
            weight.copy_(values.reshape(weight.shape))


@torch.no_grad()
def build_layer(
    outline: nn.Conv2d | nn.Linear,
    ranks: tuple[int | None, int | None],
    factors: tuple[Tensor | None, Tensor, Tensor | None],
    bias: Tensor | None,
) -> nn.Conv2d | nn.Linear | FactoredLayer:
    """The layer ``W = Q_out . core . Q_in`` in the form ``ranks`` (input, output; None: no such rotation).

    ``factors`` are ``Q_out [C_out, r_out]``, ``core [r_out, r_in, kh, kw]`` (linear: ``[r_out, r_in]``, or with two
    axes of 1 behind) and ``Q_in [r_in, C_in]``; None where ``W`` has no such factor. A rotation that the form leaves
    out is multiplied into the core. ``outline`` is a dense layer of the geometry of ``W`` on the meta device, so that
    no random numbers are drawn. The layer is on the device of ``core``, with its ``bias [C_out]``, if there is one.
    """
    rotate_out, core, rotate_in = factors
    keep_in, keep_out = (rank is not None for rank in ranks)
    if rotate_in is not None and not keep_in:
        core = torch.einsum("rs...,si->ri...", core, rotate_in)
    if rotate_out is not None and not keep_out:
        core = torch.einsum("or,ri...->oi...", rotate_out, core)
    if not (keep_in or keep_out):
        outline.to_empty(device=core.device).weight.copy_(core.reshape(outline.weight.shape))
        return _with_bias(outline, outline, bias)
    built = factored(outline, *ranks).to_empty(device=core.device)
    fill(built, rotate_out if keep_out else None, core, rotate_in if keep_in else None)
    last = built.rotate_out if keep_out else built.core
    return _with_bias(built, last, bias)


def _with_bias(layer: Layer, last: nn.Module, bias: Tensor | None) -> Layer:
    """``layer``, whose ``last`` part has the values ``bias``."""
    if bias is not None:
        last.get_parameter("bias").copy_(bias)
    return layer
