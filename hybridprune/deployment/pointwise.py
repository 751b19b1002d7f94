"""1x1 convolutions as matrix products: at few images a convolution's set-up costs more than its arithmetic."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.models.factored import is_pointwise
from hybridprune.models.replace import replace_module


class PointwiseProduct(nn.Conv2d):
    """A 1x1 convolution of images in channels_last, computed as one matrix product in place of a convolution.

    Images ``[B, C, H, W]`` in another memory format are convolved: so the format of what comes out is always the one
    that the convolution gives, as code behind it may expect.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Make a product of the very weights of ``conv``, which `is_product` allows."""
        super().__init__(conv.in_channels, conv.out_channels, 1, bias=False, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        if not has_channels_last(input):
            return super().forward(input)
        return F.linear(input.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def has_channels_last(x: Tensor) -> bool:
    """Whether the channels of images ``[B, C, H, W]`` lie side by side in memory, even if not all pixels do."""
    return x.ndim == 4 and x.stride(1) == 1


def is_product(conv: nn.Module) -> bool:
    """Whether a plain convolution is a matrix product; with one channel, its memory format would be ambiguous."""
    return (
        type(conv) is nn.Conv2d
        and is_pointwise(conv)
        and conv.stride == (1, 1)
        and conv.groups == 1
        and conv.in_channels > 1
    )


def spell_out_products(model: nn.Module) -> None:
    """Turn products into convolutions again, in place: runtimes have kernels of their own."""
    for name, product in list(model.named_modules(remove_duplicate=False)):
        if isinstance(product, PointwiseProduct):
            conv = nn.Conv2d(product.in_channels, product.out_channels, 1, bias=False, device="meta")
            conv.weight, conv.bias = product.weight, product.bias
            replace_module(model, name, conv.train(product.training))
