"""Branched convolutions: groups of filters that read some of the inputs each, as dense convolutions side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.models.factored import is_pointwise, subsample

Branch = tuple[int, int]
"""Inputs that a branch reads, and outputs that it makes."""


class BranchedConv2d(nn.Module):
    """A convolution whose filters are in branches: ``y[:, outputs_b] = conv_b(x[:, inputs_b])`` and the bias.

    An output that is in no branch is its bias, or 0: its filter reads nothing. Which channels a branch has is in
    buffers, so that weights alone tell it. What an ``nn.Conv2d`` says of itself can be read here, too.
    """

    inputs: Tensor
    """``[sum of the branches' inputs]``, int64: those of the first branch, ascending, then of the second, ..."""
    order: Tensor
    """``[C_out]``, int64: the place of each output among those of all branches, behind which are zeros"""

    def __init__(self, conv: nn.Conv2d, branches: Sequence[Branch]) -> None:
        """A layer of the geometry of ``conv`` with branches of these sizes, its weights and indices uninitialised.

        Raises ValueError if ``conv`` has groups or fewer channels than a branch asks for.
        """
        super().__init__()
        made = sum(outputs for _, outputs in branches)
        fit = all(1 <= i <= conv.in_channels and o >= 1 for i, o in branches) and 1 <= made <= conv.out_channels
        if conv.groups != 1 or not fit:
            raise ValueError(f"branches {list(branches)} of {conv}")
        options: dict[str, Any] = {"device": conv.weight.device, "dtype": conv.weight.dtype}
        pointwise = is_pointwise(conv)
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.sizes = tuple((int(i), int(o)) for i, o in branches)
        self.subsample = (int(conv.stride[0]), int(conv.stride[1])) if pointwise else (1, 1)
        self.branches = nn.ModuleList(
            nn.Conv2d(
                inputs,
                outputs,
                (int(conv.kernel_size[0]), int(conv.kernel_size[1])),
                stride=1 if pointwise else (int(conv.stride[0]), int(conv.stride[1])),
                padding=conv.padding,  # type: ignore[arg-type]
                dilation=(int(conv.dilation[0]), int(conv.dilation[1])),
                padding_mode=conv.padding_mode,
                bias=False,
                **options,
            )
            for inputs, outputs in self.sizes
        )
        self.bias = None if conv.bias is None else nn.Parameter(torch.zeros(conv.out_channels, **options))
        where = conv.weight.device
        self.register_buffer("inputs", torch.zeros(sum(i for i, _ in self.sizes), dtype=torch.int64, device=where))
        self.register_buffer("order", torch.zeros(conv.out_channels, dtype=torch.int64, device=where))

    def forward(self, x: Tensor) -> Tensor:
        x = subsample(x, *self.subsample)
        index = self.inputs.split([inputs for inputs, _ in self.sizes])
        parts = [
            branch(x if len(read) == self.in_channels else x.index_select(-3, read))
            for branch, read in zip(self.branches, index, strict=True)
        ]
        made = torch.cat(parts, -3)
        if made.shape[-3] < self.out_channels:
            made = F.pad(made, (0, 0, 0, 0, 0, 1))
        y = made.index_select(-3, self.order)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def _load_from_state_dict(self, state_dict: Any, prefix: Any, *args: Any) -> None:  # type: ignore[override]
        """Refuse indices of channels that there are not: files may be somebody else's."""
        made = sum(outputs for _, outputs in self.sizes)
        for name, size in (("inputs", self.in_channels), ("order", made + 1)):
            index = state_dict.get(f"{prefix}{name}")
            if index is not None and not index.is_meta and not bool(((index >= 0) & (index < size)).all()):
                args[-1].append(f"{prefix}{name} has channels outside of 0 to {size - 1}")
                return
        super()._load_from_state_dict(state_dict, prefix, *args)

    def reset_parameters(self) -> None:
        """Set the bias to 0; the branches have weights of their own."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def scale_outputs(self, scale: Tensor, shift: Tensor) -> None:
        """Make the layer give ``scale y + shift``, both ``[C_out]``, in place; it then has a bias."""
        made = torch.empty_like(self.order[: sum(outputs for _, outputs in self.sizes)])
        computed = self.order < len(made)
        made[self.order[computed]] = computed.nonzero().flatten()
        for branch, outputs in zip(self.branches, made.split([outputs for _, outputs in self.sizes]), strict=True):
            weight = branch.get_parameter("weight")
            weight.copy_(weight.double() * scale.double()[outputs].view(-1, 1, 1, 1))
        before = 0 if self.bias is None else self.bias.double()
        self.bias = nn.Parameter((before * scale.double() + shift.double()).to(self._first.weight))

    @property
    def weight(self) -> Tensor:
        """The kernel ``[C_out, C_in, kh, kw]`` of the dense convolution: 0 where a filter does not read an input."""
        first = self._first.weight
        kernel = first.new_zeros(self.out_channels + 1, self.in_channels, *first.shape[2:])
        start, index = 0, self.inputs.split([inputs for inputs, _ in self.sizes])
        for branch, read in zip(self.branches, index, strict=True):
            outputs = branch.get_parameter("weight")
            kernel[start : start + len(outputs)] = kernel[start : start + len(outputs)].index_copy(1, read, outputs)
            start += len(outputs)
        return kernel[self.order]

    @property
    def _first(self) -> nn.Conv2d:
        branch = self.branches[0]
        assert isinstance(branch, nn.Conv2d)
        return branch

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Height and width of the kernel; all that follows is of the dense convolution, too."""
        return self._first.kernel_size

    @property
    def stride(self) -> tuple[int, ...]:
        return tuple(a * b for a, b in zip(self._first.stride, self.subsample, strict=True))

    @property
    def padding(self) -> str | tuple[int, ...]:
        return self._first.padding

    @property
    def dilation(self) -> tuple[int, ...]:
        return self._first.dilation

    @property
    def groups(self) -> int:
        return 1

    @property
    def padding_mode(self) -> str:
        return self._first.padding_mode


@torch.no_grad()
def branched(conv: nn.Conv2d, reads: Tensor) -> BranchedConv2d:
    """The layer that computes what ``conv`` would with 0 for each weight that is not read; filters that read alike
    are one branch.

    Args:
        reads: ``[C_out, C_in]``, bool: which inputs each filter reads; one at least reads one.
    """
    assert reads.shape == conv.weight.shape[:2] and reads.dtype == torch.bool
    reads = reads.to(conv.weight.device)
    rows, which = reads.unique(dim=0, return_inverse=True)
    filters = [(which == number).nonzero().flatten() for number, row in enumerate(rows) if bool(row.any())]
    filters.sort(key=lambda index: int(index[0]))
    inputs = [reads[index[0]].nonzero().flatten() for index in filters]
    layer = BranchedConv2d(conv, [(len(i), len(f)) for i, f in zip(inputs, filters, strict=True)])
    layer.inputs.copy_(torch.cat(inputs))
    made = torch.cat(filters)
    layer.order.fill_(len(made))
    layer.order[made] = torch.arange(len(made), device=made.device)
    for branch, i, f in zip(layer.branches, inputs, filters, strict=True):
        branch.get_parameter("weight").copy_(conv.weight[f][:, i])
    if layer.bias is not None and conv.bias is not None:
        layer.bias.copy_(conv.bias)
    return layer


@torch.no_grad()
def unbranched(layer: BranchedConv2d) -> nn.Conv2d:
    """The dense convolution that computes the same; its weights are 0 where a filter does not read an input."""
    first = layer.branches[0].get_parameter("weight")
    with torch.device("meta"):
        dense = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            (int(layer.kernel_size[0]), int(layer.kernel_size[1])),
            stride=(int(layer.stride[0]), int(layer.stride[1])),
            padding=layer.padding,  # type: ignore[arg-type]
            dilation=(int(layer.dilation[0]), int(layer.dilation[1])),
            padding_mode=layer.padding_mode,  # type: ignore[arg-type]
            bias=layer.bias is not None,
            dtype=first.dtype,
        )
    dense = dense.to_empty(device=first.device)
    dense.weight.copy_(layer.weight)
    if dense.bias is not None and layer.bias is not None:
        dense.bias.copy_(layer.bias)
    return dense.train(layer.training)
