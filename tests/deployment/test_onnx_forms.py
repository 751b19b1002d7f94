"""ONNX models in the forms that ONNX Runtime is faster with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from hybridprune.deployment import deploy, onnx_forms
from hybridprune.deployment.agreement import compare
from hybridprune.deployment.onnx import onnx_bytes, opened
from hybridprune.deployment.onnx_forms import (
    AS_PRUNED,
    BY_PYTORCH,
    OnnxModel,
    fastest_model,
    nothing_is_faster,
    onnx_models,
)
from hybridprune.measure.latency import Arms, Latency
from hybridprune.models.factored import FactoredConv2d
from tests.deployment.networks import preferring


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layer = FactoredConv2d(nn.Conv2d(3, 6, 3, padding=1), 5, 5, separable=True)
    layers = (layer, nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 1))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()


def fastest(name: str) -> Callable[..., Callable[[Arms], dict[str, Latency]]]:
    """A maker of stopwatches by which this arm needs a tenth of the time."""
    times = {True: Latency(0.1, 0.1, 0.1, 1), False: Latency(1.0, 1.0, 1.0, 1)}
    return lambda device: lambda arms: {arm: times[arm == name] for arm in arms}


@pytest.mark.full
@pytest.mark.parametrize("name", [BY_PYTORCH, AS_PRUNED])
@torch.no_grad()
def test_the_forms_are_those_of_the_faster_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = network(), torch.randn(3, 3, 8, 8)
    deployed = deploy(net, images, time=preferring("dense"))
    assert deployed.report.forms["0"].chosen == "dense"
    monkeypatch.setattr(onnx_forms, "stopwatch", fastest(name))
    models = onnx_models(net, deployed, images, partial(onnx_bytes, example_input=images))
    made, choice = fastest_model(models, images, opened)
    assert choice is not None and choice.chosen == name
    factored = [layer for layer in made.module.modules() if isinstance(layer, FactoredConv2d)]
    assert len(factored) == (name == AS_PRUNED)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in made.module.modules())
    assert compare(opened(made.content), made.module, [images]).difference < 1e-4
    assert compare(opened(made.content), deployed.module, [images]).difference < 1e-3


@torch.no_grad()
def test_without_another_form_there_is_no_choice() -> None:
    net, images = network(), torch.randn(2, 3, 8, 8)
    for kept in ("separable", "separable with products"):
        deployed = deploy(net, images, time=preferring(kept))
        models = onnx_models(net, deployed, images, lambda module: b"model")
        assert fastest_model(models, images, opened) == (OnnxModel(b"model", deployed.module), None)


def test_what_is_there_stays() -> None:
    found = nothing_is_faster({"own": int, "other": int})
    assert min(found, key=lambda name: found[name].median_ms) == "own"
