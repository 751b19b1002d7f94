"""ONNX models in the forms of layers that ONNX Runtime is faster with: PyTorch's, or those of the pruned network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridprune.deployment.choice import Choice
from hybridprune.deployment.deploy import Deployed, deploy
from hybridprune.deployment.layer_variants import PRODUCTS
from hybridprune.deployment.onnx import session
from hybridprune.deployment.program import INPUT
from hybridprune.measure.latency import Arms, Latency, stopwatch

BY_PYTORCH, AS_PRUNED = "as PyTorch is fastest", "as pruned"


class OnnxModel(NamedTuple):
    """An ONNX model, the network that it is of, and which of two it is."""

    content: bytes
    module: nn.Module
    choice: Choice | None
    """By the clock of ONNX Runtime on the CPU; None: there was nothing to choose."""


def fastest_onnx(
    net: nn.Module, deployed: Deployed, example_input: Tensor, make: Callable[[nn.Module], bytes]
) -> OnnxModel:
    """The faster model of two: of the forms that ``deployed`` has, and of those that ``net`` itself has.

    ``make`` exports a deployed network, and ``example_input [B, 3, H, W]`` is what both are timed on. Where decisions
    were hardened there is nothing to choose.
    """
    report = deployed.report
    found = {BY_PYTORCH: deployed.module}
    forms = [choice for each in (report, *report.members) for choice in each.forms.values()]
    changed = any(_form(choice.chosen) != _form(choice.before) for choice in forms)
    if changed and not report.fixed:
        again = deploy(net, example_input, rates=report.rates or None, time=nothing_is_faster, progress=False)
        found[AS_PRUNED] = again.module
    contents = {name: make(module) for name, module in found.items()}
    if len(found) == 1:
        return OnnxModel(contents[BY_PYTORCH], deployed.module, None)
    images = {INPUT: example_input.cpu().numpy()}
    arms = {name: partial(session(content).run, None, images) for name, content in contents.items()}
    choice = Choice.fastest(stopwatch(torch.device("cpu"))(arms), before=BY_PYTORCH)
    return OnnxModel(contents[choice.chosen], found[choice.chosen], choice)


def nothing_is_faster(arms: Arms) -> dict[str, Latency]:
    """A stopwatch by which every alternative loses to what is there already, which comes first."""
    return {name: Latency(float(place), float(place), float(place), 1) for place, name in enumerate(arms, start=1)}


def _form(name: str) -> str:
    """The form of a layer, however its 1x1 convolutions are computed: exporters spell them out."""
    return name.removesuffix(PRODUCTS)
