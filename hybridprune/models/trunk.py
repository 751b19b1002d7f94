"""A trunk: the stem and first blocks of a backbone that another one of a cascade goes on from."""

from __future__ import annotations

import copy
from typing import cast

from torch import Tensor, nn

from hybridprune.models.backbone import Backbone


class Tail(nn.Module):
    """The blocks from ``trunk`` on and the head of a backbone: features ``[B, C, H, W]`` to logits ``[B, classes]``.

    The stem and the blocks before are taken out of the backbone: another network has them.
    """

    def __init__(self, backbone: Backbone, trunk: int) -> None:
        """ValueError if there is no block ``trunk``, it is the first one, or the stem's parts are not known."""
        super().__init__()
        _check_trunk(backbone, trunk)
        for name in backbone.stem_parts:
            delattr(backbone, name)
        del backbone.blocks[:trunk]
        self.backbone = backbone
        self.trunk = trunk

    def forward(self, features: Tensor) -> Tensor:
        return run_until(self, features, self.trunk)[1]


class Trunk(nn.Module):
    """The stem and the blocks before ``end`` of a backbone: images ``[B, 3, H, W]`` to features ``[B, C, H', W']``.

    The other blocks are taken out of the backbone, and so are the head's weights: what the stem may run beside its
    parts has none.
    """

    def __init__(self, backbone: Backbone, end: int) -> None:
        """ValueError if there is no block ``end``, it is the first one, or the stem's parts are not known."""
        super().__init__()
        _check_trunk(backbone, end)
        for name, child in list(backbone.named_children()):
            if name not in ("blocks", *backbone.stem_parts) and child.state_dict():
                delattr(backbone, name)
        del backbone.blocks[end:]
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        x = self.backbone.stem(images)
        for block in self.backbone.blocks:
            x = block(x)
        return x


def run_until(net: nn.Module, x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The features before the given block, and the logits, of a backbone on images or of a tail on features.

    Blocks of a tail are counted as those of its whole network, so ``block`` is not before its trunk.
    """
    backbone, first = (net.backbone, net.trunk) if isinstance(net, Tail) else (cast(Backbone, net), 0)
    assert first <= block < first + len(backbone.blocks), (first, block)
    if not isinstance(net, Tail):
        x = backbone.stem(x)
    for layer in backbone.blocks[: block - first]:
        x = layer(x)
    features = x
    for layer in backbone.blocks[block - first :]:
        x = layer(x)
    return features, backbone.head(x)


def graft(onto: nn.Module, rest: nn.Module, trunk: int) -> tuple[Backbone, Tail]:
    """Join two backbones behind one trunk; both are changed.

    The first one is the stem and the blocks before ``trunk`` of ``onto``, and goes on as ``rest``. The second is the
    tail of ``onto``, from that block on. ValueError if they are no backbones of one class, or a block of one of them
    would not be left.
    """
    if not isinstance(onto, Backbone) or type(onto) is not type(rest):
        raise ValueError(
            f"a {type(rest).__name__} cannot go on from a {type(onto).__name__}: they are no backbones alike"
        )
    first = cast(Backbone, rest)
    for backbone in (onto, first):
        _check_trunk(backbone, trunk)
    for name in onto.stem_parts:
        setattr(first, name, getattr(onto, name))
    for index in range(trunk):
        first.blocks[index] = onto.blocks[index]
    return first, Tail(onto, trunk)


def fork(net: nn.Module, block: int) -> tuple[nn.Module, Tail]:
    """Split a copy of a backbone or of a tail: what gives the features before the given block, and what goes on.

    Blocks are counted as `run_until` counts them. ValueError if a backbone has no such block, or it is the first one.
    """
    before, behind = copy.deepcopy(net), copy.deepcopy(net)
    if not (isinstance(before, Tail) and isinstance(behind, Tail)):
        return Trunk(cast(Backbone, before), block), Tail(cast(Backbone, behind), block)
    shared = block - before.trunk
    del behind.backbone.blocks[:shared]
    behind.trunk = block
    return nn.Sequential(*before.backbone.blocks[:shared]), behind


def trunk_names(net: nn.Module, block: int) -> list[str]:
    """Names of the modules of a backbone or a tail that give the features before the given block."""
    if isinstance(net, Tail):
        return [f"backbone.blocks.{index}" for index in range(block - net.trunk)]
    return [*cast(Backbone, net).stem_parts, *(f"blocks.{index}" for index in range(block))]


def _check_trunk(net: Backbone, trunk: int) -> None:
    if not net.stem_parts:
        raise ValueError(f"a {type(net).__name__} does not say what its stem consists of; set its stem_parts")
    if not 1 <= trunk < len(net.blocks):
        raise ValueError(f"a trunk of {trunk} blocks, of a network that has {len(net.blocks)}; some have to be left")
