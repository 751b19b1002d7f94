"""ONNX models in the forms of layers that an engine is faster with: PyTorch's, or those of the pruned network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hybridprune.deployment.agreement import Run
from hybridprune.deployment.choice import Choice
from hybridprune.deployment.deploy import Deployed, deploy
from hybridprune.deployment.layer_variants import PRODUCTS
from hybridprune.measure.latency import Arms, Latency, stopwatch

BY_PYTORCH, AS_PRUNED = "as PyTorch is fastest", "as pruned"


class OnnxModel(NamedTuple):
    """An ONNX model, and the network that it is of."""

    content: bytes
    module: nn.Module


def onnx_models(
    net: nn.Module, deployed: Deployed, example_input: Tensor, make: Callable[[nn.Module], bytes]
) -> dict[str, OnnxModel]:
    """One model or two by name: of the forms that ``deployed`` has, first, and of those that ``net`` itself has.

    ``make`` exports a deployed network for images as ``example_input [B, 3, H, W]``. Where decisions were hardened, or
    the forms are the same, there is one.
    """
    report = deployed.report
    found = {BY_PYTORCH: deployed.module}
    forms = [choice for each in report.parts() for choice in each.forms.values()]
    changed = any(_form(choice.chosen) != _form(choice.before) for choice in forms)
    if changed and not report.fixed:
        again = deploy(net, example_input, rates=report.rates or None, time=nothing_is_faster, progress=False)
        found[AS_PRUNED] = again.module
    return {name: OnnxModel(make(module), module) for name, module in found.items()}


def fastest_model(
    models: Mapping[str, OnnxModel], example_input: Tensor, opened: Callable[[bytes], Run]
) -> tuple[OnnxModel, Choice | None]:
    """The model that an engine, which ``opened`` opens them in, is fastest with on ``example_input [B, 3, H, W]``.

    The choice by its clock is None where there was nothing to choose.
    """
    if len(models) == 1:
        return next(iter(models.values())), None
    images = example_input.contiguous().cpu().numpy()
    arms = {name: partial(opened(model.content), images) for name, model in models.items()}
    choice = Choice.fastest(stopwatch(torch.device("cpu"))(arms), before=BY_PYTORCH)
    return models[choice.chosen], choice


def nothing_is_faster(arms: Arms) -> dict[str, Latency]:
    """A stopwatch by which every alternative loses to what is there already, which comes first."""
    return {name: Latency(float(place), float(place), float(place), 1) for place, name in enumerate(arms, start=1)}


def _form(name: str) -> str:
    """The form of a layer, however its 1x1 convolutions are computed: exporters spell them out."""
    return name.removesuffix(PRODUCTS)
