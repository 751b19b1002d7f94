"""Why layers are left alone, and which of these reasons a user has to be told."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

GROUPED = "its channels are in groups"
SUBCLASS = "its forward pass is its own"
SHARED = "its weight is shared or computed"
WHOLE = "it is the whole network"
PADDED = "its padding has no curvature rule"
NEVER = "it did not run"
SEVERAL = "it runs several times in one pass"
BY_KEYWORD = "it is called by keyword, so its input cannot be seen"
NO_INPUT = "its inputs were all 0"
ALIKE = "its channels are the same on average in all classes"
CONSTANT = "what its channels bring is the same for all images"
UNREAD = "no layer reads its channels"
NO_GRADIENT = "no gradient reached it"
NO_ROWS = "the rows of its activations are not those of single images"
UNSEEN = "what it reads is overwritten before its gradient is known"
WIDE = "it is too wide for an eigenbasis"
NOT_FINITE = "its statistics are not finite"
READ = "other code uses its weight and never calls it"
NOT_ONCE = "it is not called once in a pass, with another layer in its place"
DIFFERS = "another layer in its place changes the outputs"
COSTS = "cutting it changes the cost of more than its own rows and columns"
AT_OUTPUT = "its channels are the network's outputs"
JOINED = "a sum joins its channels with those of other layers"
NEEDED = "reads its channels and needs all of them"
UNRULED = f"a layer {NEEDED}"
WIRED = "without some of its channels others would not stay where they are"
STEM = "it reads the images"
PROJECTION = "it is the projection of a shortcut"
LINEAR = "only the filters of convolutions are grouped"
BRANCHED = "its filters are in branches already"
UNBOUNDED = "the search for what depends on its channels does not end"

NAMED = 3
"""How many layers of one reason a message names."""
BY_DESIGN = frozenset(
    {GROUPED, SUBCLASS, SHARED, WHOLE, PADDED, NEVER, SEVERAL, AT_OUTPUT, JOINED, UNRULED, WIRED}
    | {STEM, PROJECTION, LINEAR, BRANCHED}
)
"""What the documentation says of every network. Any other reason is one of this network, and is told."""


def needed_by(name: str, layer: nn.Module) -> str:
    """The reason of channels that a layer without a rule reads, such as a GroupNorm or a grouped convolution."""
    kind = f"grouped {type(layer).__name__}" if getattr(layer, "groups", 1) != 1 else type(layer).__name__
    return f"the {kind} {name} {NEEDED}"


def notice(left_alone: Mapping[str, str]) -> str | None:
    """One sentence on the layers that a user would expect to be cut; None if there are none."""
    told = [
        f"{name} ({reason})"
        for name, reason in left_alone.items()
        if reason not in BY_DESIGN and not reason.endswith(NEEDED)
    ]
    return f"left alone: {'; '.join(told)}" if told else None


def listed(left_alone: Mapping[str, str]) -> str:
    """The layers by reason, in one line: the first of each, and how many there are beside them."""
    layers: dict[str, list[str]] = {}
    for name, reason in left_alone.items():
        layers.setdefault(reason, []).append(name)
    return "; ".join(
        f"{', '.join(names[:NAMED])}{f' and {more} more' if (more := len(names) - NAMED) > 0 else ''} ({reason})"
        for reason, names in layers.items()
    )
