"""The wiring of a network, channel by channel: where each input of each layer comes from, found by running it.

A dependency graph is an interpretation of a trace; sizes that the code of a network takes as constants (slices,
chunks, paddings) are not in it. So a channel is marked with NaN where it is produced, and the marks are read at the
inputs of all layers: NaN passes through sums, activations, pooling and concatenations channel by channel, and every
layer that mixes channels is made to swallow it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from hybridprune.models.branched import BranchedConv2d
from hybridprune.models.copies import copied
from hybridprune.models.frozen_norm import is_norm
from hybridprune.nested import some_images
from hybridprune.pruning.channels.group import role_of
from hybridprune.pruning.prunable import Run
from hybridprune.torch_alone import TorchAlone

M = TypeVar("M", bound=nn.Module)

OUTPUT = ""
"""The name of what leaves the layers that can be narrowed: the network's outputs, and what opaque layers read, or
operations that are not torch's own."""
SEVERAL = -1


def opaque_layers(model: nn.Module) -> list[nn.Module]:
    """Layers that have weights but no role in a group: torch's recurrent cells and other norms, and branched ones."""
    return [
        module
        for module in model.modules()
        if isinstance(module, BranchedConv2d)
        or (
            type(module).__module__.startswith("torch.nn.modules")
            and any(True for _ in module.parameters(recurse=False))
            and role_of(module, output=True) is None
        )
    ]


def put_into(model: M, training: bool) -> M:
    """Put the network into a mode; in training, norms and dropout do what they do in eval mode. Returns it."""
    model.train(training)
    for module in model.modules():
        if isinstance(module, _BatchNorm | _DropoutNd):
            module.eval()
    return model


@torch.no_grad()
def running_modes(model: nn.Module, run: Run, example: Any) -> dict[bool, set[str]]:
    """The modes (training or not) in which the network runs on one image, and the layers that run in each.

    It has to run in eval mode: whatever that raises is raised.
    """
    found: dict[bool, set[str]] = {}
    for training in (False, True):
        net, ran = put_into(copied(model), training), set()
        for name, module in net.named_modules():
            if role_of(module, output=True) is not None:
                module.register_forward_pre_hook(lambda *_, name=name, ran=ran: ran.add(name))
        try:
            run(net, example)
        except Exception:  # of any kind, for example for want of targets
            if not training:
                raise
            continue
        found[training] = ran
    return found


@torch.no_grad()
def trace_wiring(
    model: nn.Module,
    run: Run,
    example: Any,
    marked: Mapping[str, Tensor],
    training: bool = False,
    depthwise: Collection[str] = (),
) -> dict[str, Tensor]:
    """Number of the marked channel that each input of each convolution, linear layer and BatchNorm carries.

    The number of a channel is written in bits over a batch of copies of the example: its output is NaN in image b
    where bit b is 1, and in image ``bits + b`` where it is 0. One forward pass tells all numbers, and two channels in
    one place leave some bit that is both.

    Args:
        example: one image ``[1, ...]``, or what else ``run`` takes.
        marked: for each marked layer the numbers of its outputs, > 0, or 0 for an output that is not marked.
        training: the mode, but for norms and dropout, which would mix or lose marks (`put_into`).
        depthwise: layers that are depthwise convolutions, beside those that show it: with one channel they do not.

    Returns:
        ``[inputs]`` by layer name: a channel's number, 0 for none, ``SEVERAL`` for a mixture. Under ``OUTPUT`` those
        numbers that are anywhere in what leaves, and by the name of an opaque layer those in what it reads. A layer
        that does not run has no entry.
    """
    model = put_into(copied(model), training)
    bits = max((int(numbers.max()) for numbers in marked.values()), default=1).bit_length()
    found: dict[str, Tensor] = {}
    names = {module: name for name, module in model.named_modules()}

    def read(name: str, carried: Tensor) -> None:
        numbers = _decode(carried.cpu(), bits)
        if name in found:
            numbers = torch.where(found[name] == numbers, numbers, SEVERAL)
        found[name] = numbers

    def leave(module: nn.Module | None, tensors: object) -> Any:
        numbers = [_decode(_marks(tensor, 2 * bits).cpu(), bits) for tensor in tensors_of(tensors)]
        for place in {OUTPUT, OUTPUT if module is None else names[module]}:
            unique = torch.cat([found.get(place, torch.empty(0, dtype=torch.int64)), *numbers]).unique()
            found[place] = unique[unique != 0]
        return mapped(tensors, lambda tensor: tensor.nan_to_num(0.0, 0.0, 0.0))

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) or is_norm(module):
            module.register_forward_pre_hook(_reader(name, 2 * bits, read, name in depthwise))
        if name in marked:
            module.register_forward_hook(_marker(marked[name], bits))
    for module in opaque_layers(model):
        module.register_forward_pre_hook(leave)
    # What others' operations read (boxes, maps) leaves the layers that can be narrowed.
    with TorchAlone(lambda args: leave(None, args)):
        output = run(model, some_images(example, [0] * (2 * bits)))
    leave(None, output)
    return found


def _marker(numbers: Tensor, bits: int) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    set_bits = (numbers >> torch.arange(bits)[:, None]) & 1
    pattern = torch.cat([set_bits, 1 - set_bits]).bool() & (numbers > 0)

    def mark(module: nn.Module, args: Any, y: Tensor) -> Tensor:
        if len(y) % len(pattern):
            return y  # images are not along the first dimension: without marks, what is expected will not be found
        # Tokens or frames may be folded into the batch.
        where = pattern.to(y.device).repeat_interleave(len(y) // len(pattern), 0)
        if isinstance(module, nn.Linear):
            where = where.view(len(where), *(1,) * (y.ndim - 2), -1)
        else:
            where = where[..., None, None]
        return y.masked_fill(where, torch.nan)

    return mark


def _reader(
    name: str, images: int, record: Callable[[str, Tensor], None], depthwise: bool
) -> Callable[[nn.Module, tuple[Tensor, ...]], Any]:
    def read(module: nn.Module, args: tuple[Tensor, ...]) -> Any:
        x = args[0]
        carried = x.movedim(-1 if isinstance(module, nn.Linear) else 1, -1).isnan()
        folded = len(x) % images == 0
        record(name, carried.reshape(images if folded else 1, -1, carried.shape[-1]).any(1).expand(images, -1))
        apart = depthwise or is_norm(module) or (isinstance(module, nn.Conv2d) and module.groups > 1)
        return None if apart else (x.nan_to_num(0.0), *args[1:])

    return read


def _marks(values: Tensor, images: int) -> Tensor:
    """Where ``values`` are NaN, ``[images, n]``; what is not one entry an image (a loss, say) mixes all of them."""
    marks = values.isnan()
    return marks.reshape(images, -1) if values.ndim and len(values) == images else marks.any().expand(images, 1)


def _decode(carried: Tensor, bits: int) -> Tensor:
    """Numbers ``[C]`` from the marks ``[2 bits, C]``."""
    ones, zeros = carried.split(bits)
    numbers = (ones.long() << torch.arange(bits)[:, None]).sum(0)
    none = ~carried.any(0)
    return torch.where(none | (ones != zeros).all(0), numbers, SEVERAL)


def tensors_of(values: object) -> list[Tensor]:
    """The tensors with real numbers in nested tuples, lists and dictionaries."""
    found: list[Tensor] = []
    mapped(values, found.append)
    return found


def mapped(values: object, change: Callable[[Tensor], Any]) -> Any:
    """Nested tuples, lists and dictionaries with their tensors of real numbers changed; tuples become plain ones."""
    if isinstance(values, Tensor):
        return change(values) if values.is_floating_point() and values.numel() else values
    if isinstance(values, Mapping):
        return {key: mapped(value, change) for key, value in values.items()}
    if isinstance(values, tuple | list):
        return (tuple if isinstance(values, tuple) else list)(mapped(value, change) for value in values)
    return values
