"""Checks of a network of a user's own: its factory, what that builds, and how images pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from hybridprune.config.registry import in_a_line
from hybridprune.config.suggest import suggest
from hybridprune.errors import UserError
from hybridprune.models.backbone import Backbone, ResidualBlock

Factory = Callable[..., nn.Module]
"""Gives a freshly initialised network of ``classes``; see `READABLE`."""
READABLE = ("depth", "width", "pyramid_alpha", "bottleneck", "shakedrop")
"""What a factory may take beside ``classes``, by these names: the stages' options."""
_TAKES = f"a factory takes classes and, as it likes, {', '.join(READABLE)}"


def checked_factory(factory: object, source: str) -> Factory:
    """``factory``; UserError, which begins with ``source``, if it cannot be called as factories are."""
    if not callable(factory):
        raise UserError(f"{source}: is a {type(factory).__name__}, no function; {_TAKES}")
    try:
        taken = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError) as error:  # of something built in
        raise UserError(f"{source}: its arguments cannot be told; {_TAKES}") from error
    named = {p.name for p in taken if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    for p in taken:
        needed = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if needed and p.name not in named & {"classes", *READABLE}:
            close = suggest(p.name, ("classes", *READABLE))
            raise UserError(f"{source}: needs {p.name}, which it is not given; {_TAKES}{close}")
    if "classes" not in named:
        raise UserError(f"{source}: does not take classes; {_TAKES}")
    return cast(Factory, factory)


def check_backbone(net: object, source: str) -> None:
    """UserError, which begins with ``source``, if a factory has built something that cannot be gated."""
    if not isinstance(net, Backbone):
        raise UserError(f"{source}: gives a {type(net).__name__}, no hybridprune.networks.Backbone; give one")
    blocks = getattr(net, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        raise UserError(f"{source}: its blocks are no nn.ModuleList with a block in it; set self.blocks to one")
    for index, block in enumerate(blocks):
        if not isinstance(block, ResidualBlock):
            raise UserError(
                f"{source}: its blocks.{index} is a {type(block).__name__}, no hybridprune.networks.ResidualBlock; "
                "derive it from that"
            )
        if type(getattr(block, "out_channels", None)) is not int:
            raise UserError(f"{source}: its blocks.{index} has no out_channels; set self.out_channels to their number")


def check_passes(net: Backbone, image: Tensor, classes: int, source: str) -> None:
    """UserError if an image ``[1, 3, H, W]`` does not pass through every block, skipped or not, to ``[1, classes]``."""
    try:
        x = net.stem(image)
        for index, block in enumerate(net.blocks):
            assert isinstance(block, ResidualBlock)
            skipped = block.skip(x)
            x = block.execute(x, skipped)
            if skipped.shape != x.shape or x.ndim != 4 or x.shape[1] != block.out_channels:
                raise UserError(
                    f"{source}: its blocks.{index} gives {list(skipped.shape)} skipped and {list(x.shape)} executed; "
                    f"with out_channels {block.out_channels} both have to be [B, {block.out_channels}, H', W']"
                )
        logits = net.head(x)
    except UserError:
        raise
    except Exception as error:  # whatever somebody else's code does
        raise UserError(f"{source}: fails on an image {list(image.shape)} ({in_a_line(error)}); mend it") from error
    if logits.shape != (1, classes):
        raise UserError(f"{source}: its head gives {list(logits.shape)}; it has to give logits [B, {classes}]")
