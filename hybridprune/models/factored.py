"""Factored layers ``W = Q_out . core . Q_in^T``, run as rotation -> core -> rotation.

In the separable form the core is depthwise: ``W`` is a sum of R components, each an outer product over outputs, inputs
and kernel offsets (a canonical polyadic decomposition, as in Lebedev et al. 2015), run as 1x1 -> depthwise kxk -> 1x1.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hybridprune.models.on_demand import OnDemand

Core = TypeVar("Core", nn.Conv2d, nn.Linear)


class Ranks(NamedTuple):
    """The form of a layer: channels of the core where a side has a rotation; None where the side has none."""

    rank_in: int | None
    rank_out: int | None
    separable: bool = False
    """Whether the core is depthwise; both ranks are then the number of components."""


DENSE = Ranks(None, None)


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
        return self.product(self.core.weight.dtype)

    def product(self, dtype: torch.dtype) -> Tensor:
        """The kernel, multiplied out in a precision of choice."""
        weight = self.core.weight.to(dtype)
        if not isinstance(self.rotate_in, nn.Identity):
            rotation = self.rotate_in.weight.flatten(1).to(dtype)
            if is_separable(self.core):
                weight = torch.einsum("i...,ic->ic...", weight[:, 0], rotation)
            else:
                weight = torch.einsum("oi...,ic->oc...", weight, rotation)
        if not isinstance(self.rotate_out, nn.Identity):
            weight = torch.einsum("co,oi...->ci...", self.rotate_out.weight.flatten(1).to(dtype), weight)
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

    The forms are two-sided, input-sided (``rotate_out`` is the identity), output-sided and separable (a depthwise
    core, of at least 2 channels). Stride, padding and dilation belong to the core, except that a strided 1x1 subsamples
    before the first rotation. The bias follows the output side. What an ``nn.Conv2d`` says of itself can be read here,
    too.
    """

    def __init__(self, conv: nn.Conv2d, rank_in: int | None, rank_out: int | None, separable: bool = False) -> None:
        """A factored layer of the geometry of ``conv``; its weights are left uninitialised."""
        super().__init__()
        assert conv.groups == 1 and (rank_in is not None or rank_out is not None)
        assert not separable or (rank_in == rank_out and (rank_in or 0) > 1)
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
            groups=rank_in if separable and rank_in else 1,
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
    """Every so many rows and columns of ``[..., H, W]``: before a 1x1 convolution, the same as a stride in it.

    And safe: oneDNN's weight gradient of a strided 1x1 convolution with fewer channels than an AVX2 register holds
    writes out of bounds (uxlfoundation/oneDNN#6035), which ends in wrong gradients, a hang or a crash.
    """
    return x if rows == columns == 1 else x[..., ::rows, ::columns]


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


def is_separable(core: nn.Module) -> bool:
    """Whether a core is that of the separable form: depthwise."""
    return isinstance(core, nn.Conv2d) and core.groups > 1


def factored(layer: nn.Module, rank_in: int | None, rank_out: int | None, separable: bool = False) -> FactoredLayer:
    """The factored form of a dense layer's geometry, weights uninitialised.

    Raises ValueError if the layer has none, or fewer channels than a rank asks for. A separable one may have more
    components than the layer has channels, up to the number of its pairs of them.
    """
    if isinstance(layer, nn.Conv2d | nn.Linear):
        outputs, inputs = layer.weight.shape[:2]
        sizes = f"a layer with {inputs} inputs and {outputs} outputs"
        if separable:
            if rank_in is None or rank_in != rank_out or not 2 <= rank_in <= inputs * outputs:
                raise ValueError(f"{rank_in} and {rank_out} components of {sizes}")
        elif not (1 <= (rank_in or 1) <= inputs and 1 <= (rank_out or 1) <= outputs):
            raise ValueError(f"ranks {rank_in} and {rank_out} of {sizes}")
    if isinstance(layer, nn.Conv2d):
        return FactoredConv2d(layer, rank_in, rank_out, separable)
    if separable:
        raise ValueError(f"a {type(layer).__name__} has no separable form")
    if isinstance(layer, nn.Linear):
        return FactoredLinear(layer, rank_in, rank_out)
    raise ValueError(f"a {type(layer).__name__} has no factored form")


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


def form(layer: FactoredLayer) -> Ranks:
    """The form that a layer has."""
    rank_out, rank_in = layer.core.weight.shape[:2]
    separable = is_separable(layer.core)
    return Ranks(
        None if isinstance(layer.rotate_in, nn.Identity) else int(rank_out if separable else rank_in),
        None if isinstance(layer.rotate_out, nn.Identity) else int(rank_out),
        separable,
    )


def form_name(ranks: Ranks) -> str:
    """The name of the form with these rotations."""
    rank_in, rank_out, separable = ranks
    if separable:
        return "separable"
    if rank_in is not None and rank_out is not None:
        return "two-sided"
    return "dense" if rank_in is rank_out else "input-sided" if rank_out is None else "output-sided"
