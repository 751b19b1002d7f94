"""Effective sparsity: only weights on a live path from input to output count (Vysogorets & Kempe 2021).

Nodes are channels (features of a linear layer). An edge is a kernel of which any entry is not zero and sees more than
padding. A channel is *reached* if a path leads to it from the images, and *needed* if one leads from it to the outputs;
a weight lives if it is such an entry, its input is reached and its output needed. What follows from that:

- A corner of a kernel that lies on the padding at all positions, as 8 of 9 entries do on a map of 1x1, does not live:
  it is multiplied by 0 only. Other positions of a channel are not told apart.
- A BatchNorm's channel with a scale of 0 is a constant, whatever its shift, and cuts the path. Constants (shifts,
  biases, what is computed from them) do not carry the input, and the weights that read nothing else do not live.
- A product (squeeze-excite) with a constant is a path unless the constant is 0, as a ReLU makes of a negative shift.
- What depends on values, such as a ReLU that no image makes fire, is not looked at.
- Weights are those of convolutions and linear layers, of a factored layer those of its two or three; biases and
  BatchNorms do not count. All other layers are parts of the paths, as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from hybridprune.errors import UserError
from hybridprune.measure.padding import seen_entries
from hybridprune.models.copies import copied
from hybridprune.models.held import AnyNetwork, network_of

SMALL = 2.0**-7
"""Size of the values that mark a path: where every activation rises, and sums of hundreds still do not saturate."""
SMALLER = 2.0**-40
"""Of constants beside them: with their signs, but too small to turn a sum."""
Weighted = _ConvNd | nn.Linear


def count_weights(model: AnyNetwork) -> int:
    """Entries of the weights of all convolutions and linear layers of a module, or of what a result holds."""
    return sum(module.weight.numel() for module in _module(model).modules() if isinstance(module, Weighted))


def effective_sparsity(model: AnyNetwork, example: Tensor, dense_weights: int) -> float:
    """Share of the dense network's weights that do not live in ``model``; see `live_weights`.

    Raises UserError if an argument is not what it may be, or if the output is not a tensor.
    """
    if isinstance(dense_weights, bool) or not isinstance(dense_weights, Integral) or dense_weights < 1:
        raise UserError(
            f"dense_weights {dense_weights!r}: give the number of weights before pruning, count_weights(net)"
        )
    return 1 - sum(live_weights(model, example).values()) / dense_weights


def live_weights(model: AnyNetwork, example: Tensor) -> dict[str, int]:
    """The number of live weights of each convolution and linear layer, by the layer's name.

    A copy of the network runs once, forwards and backwards, in double precision. The outputs of each layer that are
    reached are made new positive random numbers, others for each of two images: so a channel is reached if its images
    differ, and needed if a gradient comes back to it. Nothing can vanish or overflow on the way, and what a network
    does between its layers (sums, products, concatenations, pooling) need not be known. A third image carries the
    constants as they really are.

    Args:
        example: one image ``[1, ...]``, on the model's device; ``model(example)`` is a tensor.
    """
    module = _module(model)
    if not isinstance(example, Tensor):
        raise UserError(f"example: is a {type(example).__name__}; give one image, a tensor [1, ...]")
    if not example.ndim or len(example) != 1:
        raise UserError(f"example: is {list(example.shape)}; give one image, [1, ...]")
    net = copied(module).double().eval().requires_grad_(False)
    draw = _Draw()
    nodes: dict[str, _Node] = {}
    for name, module in net.named_modules():
        if isinstance(module, Weighted | _BatchNorm):
            nodes[name] = _Node(module, draw)
            module.__dict__["forward"] = nodes[name]
    images = draw.like(example.double().expand(3, *example.shape[1:])).requires_grad_()
    with torch.enable_grad():
        outputs = _run(net, images)
        if not isinstance(outputs, Tensor):
            raise UserError(f"model: gives a {type(outputs).__name__}; its output has to be one tensor")
        if outputs.requires_grad:
            outputs.backward(draw.like(outputs))
    return {name: int(node.live.count_nonzero()) for name, node in nodes.items() if isinstance(node.module, Weighted)}


def _run(net: nn.Module, images: Tensor) -> object:
    """The output, in double precision; UserError for whatever foreign code raises."""
    try:
        return net(images)
    except Exception as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"model: fails on the example ({type(error).__name__}: {said}); give an image that it takes, and of a "
            "gated network its backbone"
        ) from error


def _module(model: object) -> nn.Module:
    """The network of a module or of a result that holds one; UserError if it is neither."""
    if not isinstance(found := network_of(model), nn.Module):
        raise UserError(f"model: is a {type(model).__name__}; give a torch.nn.Module")
    return found


class _Draw:
    """Positive random numbers, the same in every call of `live_weights`."""

    def __init__(self) -> None:
        self._source = torch.Generator().manual_seed(0)

    def like(self, values: Tensor) -> Tensor:
        """New ones of this shape, type and device: neither differences nor products of them are 0."""
        drawn = torch.rand(values.shape, generator=self._source, dtype=values.dtype)
        return (SMALL * (0.5 + drawn)).to(values.device)


class _Node:
    """A layer by what its outputs read of its inputs; called in the layer's place, it passes on marks."""

    def __init__(self, module: _ConvNd | nn.Linear | _BatchNorm, draw: _Draw) -> None:
        self.module = module
        self.draw = draw
        self.real: Callable[..., Tensor] = module.forward
        self.axis = -1 if isinstance(module, nn.Linear) else 1
        self.groups = module.groups if isinstance(module, _ConvNd) else 1
        # Attention uses the weights of its projection without calling it.
        uncalled = isinstance(module, NonDynamicallyQuantizableLinear)
        self.live = self.entries() if uncalled else torch.zeros_like(self.entries())

    def entries(self) -> Tensor:
        """``[outputs, inputs of a group, area]``: which weights are not 0; of a BatchNorm ``[channels]``, its scales.

        Read at every call: a mask may be applied to the weight just before (torch.nn.utils.prune).
        """
        weight: Tensor | None = self.module.weight
        if isinstance(self.module, _BatchNorm):
            return torch.ones(self.module.num_features, dtype=torch.bool) if weight is None else weight != 0
        assert weight is not None
        if isinstance(self.module, _ConvTransposeNd):
            weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        return (weight != 0).flatten(2) if weight.ndim > 2 else (weight != 0)[..., None]

    def forwards(self, entries: Tensor, reached: Tensor) -> Tensor:
        """Which outputs ``[O]`` read any of the inputs ``reached [I]``."""
        if isinstance(self.module, _BatchNorm):
            return reached & entries.to(reached.device)
        kernels = entries.any(2).unflatten(0, (self.groups, -1))
        return (kernels & reached.view(self.groups, 1, -1)).any(2).flatten()

    def backwards(self, entries: Tensor, needed: Tensor) -> Tensor:
        """Which inputs ``[I]`` are read by any of the outputs ``needed [O]``."""
        if isinstance(self.module, _BatchNorm):
            return needed & entries.to(needed.device)
        kernels = entries.any(2).unflatten(0, (self.groups, -1))
        return (kernels & needed.view(self.groups, -1, 1)).any(1).flatten()

    def count(self, entries: Tensor, reached: Tensor, needed: Tensor) -> None:
        """Note which weights live in this call of the layer; one that is called several times has several chances."""
        if isinstance(self.module, Weighted):
            pairs = reached.view(self.groups, 1, -1, 1) & needed.view(self.groups, -1, 1, 1)
            self.live |= entries & pairs.expand(-1, -1, -1, 1).flatten(0, 1)

    def channels(self, differs: Tensor) -> Tensor:
        """Those ``[C]`` in which ``differs [B, ...]`` is true anywhere."""
        return differs.movedim(self.axis, 0).flatten(1).any(1)

    def marked(self, channels: Tensor, values: Tensor) -> Tensor:
        """``values [B, ...]`` with new random numbers in these ``channels [C]``."""
        shape = [1] * values.ndim
        shape[self.axis] = -1
        return torch.where(channels.view(shape), self.draw.like(values), values)

    def __call__(self, input: Tensor, *rest: Any) -> Tensor:
        """``rest`` is the output's size, which a transposed convolution may be given."""
        return _Pass.apply(input, self, rest)  # type: ignore[no-any-return]


class _Pass(torch.autograd.Function):
    """A layer between marks: its outputs forwards, its inputs backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, node: _Node, rest: tuple[Any, ...]) -> Tensor:
        first, second, constant = x.chunk(3)
        y = node.real(constant, *rest)
        entries, reached = node.entries(), node.channels(first != second)
        if isinstance(node.module, _ConvNd):
            entries = entries & seen_entries(node.module, constant.shape, y.shape).to(entries.device)
        ctx.node, ctx.entries, ctx.reached, ctx.like = node, entries, reached, x.new_zeros(()).expand(x.shape)
        return node.marked(node.forwards(entries, reached), torch.cat([SMALLER * y, SMALLER * y, y]))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        node: _Node = ctx.node
        first, _, _ = gradient.chunk(3)
        needed = node.channels(first != 0)
        node.count(ctx.entries, ctx.reached, needed)
        return node.marked(node.backwards(ctx.entries, needed), ctx.like), None, None
