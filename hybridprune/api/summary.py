# pyright: strict, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""A pruned module layer by layer: what each was, what it has become, and what that is expected to cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hybridprune.measure.cost import counted, somewhere
from hybridprune.models.branched import BranchedConv2d
from hybridprune.models.edits import ranks_of
from hybridprune.models.factored import FactoredLayer, form_name
from hybridprune.nested import on_device
from hybridprune.pruning.budget.space import Cost
from hybridprune.pruning.directions.layers import layer_macs
from hybridprune.tables import Table

HEAD = (
    "Layer",
    "Kind",
    "Form",
    "Ranks before",
    "Ranks after",
    "MACs before",
    "MACs after",
    "Parameters before",
    "Parameters after",
    "Expected loss",
)
ALIGN = "lllrrrrrrr"


@dataclass(frozen=True)
class LayerState:
    """A convolution or a linear layer, factored or not, as it is at one time."""

    kind: str
    """``Conv2d 3x3``, say, or ``Linear``."""
    form: str
    """``dense``, the side on which a factored layer has rotations, or the number of its branches."""
    inputs: int
    """Channels that its core reads: those of the layer where that side has no rotation, else the rank."""
    outputs: int
    macs: int
    """Of one image."""
    params: int

    @property
    def ranks(self) -> str:
        """Inputs and outputs of the core."""
        return f"{self.inputs} x {self.outputs}"


@dataclass(frozen=True)
class LayerSummary:
    """One layer before and after pruning."""

    name: str
    before: LayerState
    after: LayerState
    expected_loss: float | None
    """Rise of the loss (nats) that its cut was expected to cost, before any training; None: not known."""


def layer_states(
    model: nn.Module, example: Any, run: Callable[[nn.Module, Any], object]
) -> tuple[dict[str, LayerState], Cost]:
    """Every convolution and linear layer of ``model`` by name, in its order, and what all of it costs.

    ``run(model, example)`` passes one image, once: that tells both. The cost is that of `count_module`. Nothing is
    computed where the model runs on the meta device, else a copy of it really runs.
    """

    def measure(found: nn.Module) -> tuple[dict[str, int], int]:
        inputs = on_device(example, next(found.parameters()).device)
        passes: list[int] = []
        # The pass alone is counted: reading a weight that is computed costs products of its own.
        macs = layer_macs(found, lambda: passes.append(counted(lambda: run(found, inputs))[1]))
        return macs, passes[0]

    macs, total = somewhere(model, measure)
    seen: set[int] = set()
    inside: set[nn.Module] = set()
    states: dict[str, LayerState] = {}
    for name, layer in model.named_modules():
        if layer in inside or not isinstance(layer, nn.Conv2d | nn.Linear | FactoredLayer | BranchedConv2d):
            continue
        inside.update(layer.modules())
        own = {id(p): p.numel() for p in layer.parameters() if id(p) not in seen}
        seen |= own.keys()
        core = layer.core if isinstance(layer, FactoredLayer) else layer
        # Not the weight's shape: reading a weight that is computed (spectral norm) can change what it is computed from.
        linear = isinstance(core, nn.Linear)
        inputs = core.in_features if linear else core.in_channels
        outputs = core.out_features if linear else core.out_channels
        states[name] = LayerState(
            kind=_kind(core),
            form=f"{len(layer.sizes)} branches" if isinstance(layer, BranchedConv2d) else form_name(ranks_of(layer)),
            inputs=inputs,
            outputs=outputs,
            macs=sum(value for part, value in macs.items() if part == name or part.startswith(f"{name}.")),
            params=sum(own.values()),
        )
    return states, Cost(total, sum(p.numel() for p in model.parameters()))


def _kind(core: nn.Conv2d | nn.Linear | BranchedConv2d) -> str:
    if isinstance(core, nn.Linear):
        return "Linear"
    kernel = "x".join(map(str, core.kernel_size))
    return f"Conv2d {kernel}" + (f", {core.groups} groups" if core.groups > 1 else "")


def summarised(
    before: Mapping[str, LayerState], after: Mapping[str, LayerState], losses: Mapping[str, float] | None
) -> tuple[LayerSummary, ...]:
    """The layers that are there before and after, with the expected losses of those that were cut."""
    return tuple(
        LayerSummary(name, state, after[name], (losses or {}).get(name))
        for name, state in before.items()
        if name in after
    )


def summary_table(layers: Sequence[LayerSummary], before: Cost, after: Cost) -> Table:
    """A layer a row, then what is in no layer (BatchNorms, attention), then the totals ``before`` and ``after``."""
    rows = [
        (
            layer.name,
            layer.after.kind,
            layer.after.form,
            layer.before.ranks,
            layer.after.ranks,
            *_costs(_cost(layer.before), _cost(layer.after)),
            _loss(layer.expected_loss),
        )
        for layer in layers
    ]
    rest = before.minus(_sum([layer.before for layer in layers])), after.minus(_sum([layer.after for layer in layers]))
    if layers and any((*rest[0], *rest[1])):
        rows.append(("everything else", "", "", "", "", *_costs(*rest), ""))
    known = [layer.expected_loss for layer in layers if layer.expected_loss is not None]
    rows.append(("total", "", "", "", "", *_costs(before, after), _loss(sum(known) if known else None)))
    return Table(HEAD, ALIGN, rows)


def _cost(state: LayerState) -> Cost:
    return Cost(state.macs, state.params)


def _sum(states: Sequence[LayerState]) -> Cost:
    return Cost(sum(state.macs for state in states), sum(state.params for state in states))


def _costs(before: Cost, after: Cost) -> tuple[str, str, str, str]:
    return f"{before.macs:,}", f"{after.macs:,}", f"{before.params:,}", f"{after.params:,}"


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
