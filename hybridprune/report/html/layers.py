"""Layers after static pruning: channels or directions on both sides, and MACs, before and after."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from markupsafe import Markup
from torch import nn

from hybridprune.measure.cost import module_macs
from hybridprune.models.branched import BranchedConv2d
from hybridprune.models.edits import channels_of
from hybridprune.models.factored import FactoredConv2d, FactoredLinear, form, form_name
from hybridprune.models.spec import NetworkSpec
from hybridprune.report.html import svg

WIDTH, ROW = 760, 22
SIDES = ("input side", "output side")


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer: what it had, what it has, and how it is run now."""

    name: str
    form: str
    """dense, narrower, two-sided, input-sided, output-sided, separable or branched."""
    before: tuple[int, int]
    """Input and output channels."""
    after: tuple[int, int]
    """Kept channels or, where there is a rotation, directions or components; of branches the inputs of the widest."""
    macs: tuple[int, int]
    """Before and after, rotations counted."""


def layers(network: NetworkSpec, input_size: int) -> list[Layer]:
    """Every layer of the backbone that computes, in the network's order.

    Raises ValueError or UserError if the specification makes no network.
    """
    with torch.device("meta"):
        old, new = dataclasses.replace(network, edits=()).build(), network.build()
    macs_old, macs_new = module_macs(old, input_size), module_macs(new, input_size)
    found = []
    for name, module in old.backbone.named_modules(prefix="backbone"):
        before, edited = channels_of(module), new.get_submodule(name)
        after = channels_of(edited)
        if isinstance(module, nn.Conv2d | nn.Linear) and before and after:
            macs = _total(macs_old, name), _total(macs_new, name)
            if isinstance(edited, FactoredConv2d | FactoredLinear):
                ranks = form(edited)
                after = (ranks.rank_in or after[0], ranks.rank_out or after[1])
            if isinstance(edited, BranchedConv2d):
                after = (max(inputs for inputs, _ in edited.sizes), sum(outputs for _, outputs in edited.sizes))
            found.append(Layer(name.removeprefix("backbone."), _form(edited, before, after), before, after, macs))
    return found


def _total(macs: dict[str, int], name: str) -> int:
    return sum(count for layer, count in macs.items() if layer == name or layer.startswith(f"{name}."))


def _form(edited: nn.Module, before: tuple[int, int], after: tuple[int, int]) -> str:
    if isinstance(edited, FactoredConv2d | FactoredLinear):
        return form_name(form(edited))
    if isinstance(edited, BranchedConv2d):
        return "branched"
    return "dense" if before == after else "narrower"


def draw(found: Sequence[Layer]) -> Markup:
    """Bars of both sides of each layer: the outline is what it had, the filling what it keeps."""
    left, gap, top = 150, 78, 30
    room = (WIDTH - left - 2 * gap) / 2
    scale = room / max(max(layer.before) for layer in found)
    starts = (left, left + room + gap)
    parts = [svg.text(start, 16, side, "start", "label") for start, side in zip(starts, SIDES, strict=True)]
    for index, layer in enumerate(found):
        y = top + index * ROW
        parts.append(svg.text(left - 10, y + 13, svg.clipped(layer.name), "end", "tick"))
        for start, had, kept in zip(starts, layer.before, layer.after, strict=True):
            components = f"{kept} components" if layer.form == "separable" else ""
            title = f"{layer.name} ({layer.form}): {components or f'{kept} of {had} kept'}"
            cut = "" if kept == had else " cut"
            outline = svg.tag("rect", x=start, y=y + 2, width=had * scale, height=ROW - 7, rx=2, class_="had")
            filling = svg.tag(
                "rect", x=start, y=y + 2, width=min(kept, had) * scale, height=ROW - 7, rx=2, class_=f"kept{cut}"
            )
            parts.append(svg.tag("g", svg.tag("title", title), outline, filling))
            shown = components or (f"{kept} / {had}" if kept != had else str(had))
            parts.append(svg.text(start + had * scale + 7, y + 14, shown, "start", "tick"))
    cut = sum(layer.before != layer.after for layer in found)
    label = f"Channels or directions kept on both sides of {len(found)} layers, {cut} of them cut; the table has them."
    return svg.figure(WIDTH, top + ROW * len(found) + 6, label, *parts)
