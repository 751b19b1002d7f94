"""A refit of the whole network: layers that lost nothing, sums, norms, and means that nothing absorbs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.batch import Batch
from hybridprune.engine.batchnorm import recalibrate_by
from hybridprune.models.edits import FactorEdit, apply_edits
from hybridprune.models.resnet import BasicBlock, ResNet
from hybridprune.pruning.directions.layer_forms import Ranks
from hybridprune.pruning.directions.layers import prunable_layers
from hybridprune.pruning.directions.refit import RIDGE, refit
from hybridprune.pruning.directions.surgery import apply_ranks
from tests.pruning.random_curvature import random_decompositions, source


def run(model: nn.Module, images: Tensor) -> object:
    return model(images)


def batches(count: int, size: int = 128) -> list[Batch]:
    """So many smooth images."""
    return [Batch(each, None) for each in images(count).split(size)]


def images(count: int, seed: int = 1) -> Tensor:
    """Smooth ones: neighbouring pixels are alike."""
    noise = torch.randn(count, 3, 4, 4, generator=source(seed))
    return F.interpolate(noise, size=(8, 8), mode="bilinear")


def residual_network() -> ResNet:
    """Trained to nothing, but with BatchNorm statistics of its images."""
    torch.manual_seed(0)
    net = ResNet(14, 6, 5)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.3, 1.2)
            nn.init.normal_(module.bias, std=0.3)
    settle(net)
    return net.eval()


def settle(net: nn.Module) -> None:
    recalibrate_by(net, images(512).split(128), lambda batch: net(batch))


def cut(reference: nn.Module, names: list[str], rank: int) -> nn.Module:
    model = copy.deepcopy(reference)
    layers = [x for x in prunable_layers(model, lambda: model(images(1))) if x.name in names]
    apply_ranks(model, layers, random_decompositions(layers), {name: Ranks(rank, rank) for name in names})
    return model


@torch.no_grad()
@pytest.mark.parametrize("whole", [False, True])
def test_without_bias_or_norm_the_mean_is_part_of_what_is_fitted(whole: bool) -> None:
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(6, 5, bias=False)).double()
    model = copy.deepcopy(reference)
    apply_edits(model, (FactorEdit("0", 3, None),))
    for parameter in model.parameters():
        parameter.normal_()
    layer = model.get_submodule("0")
    before = layer.get_submodule("core").get_parameter("weight").clone().numpy()
    x = torch.randn(200, 6, dtype=torch.float64) + 2
    refit(model, reference, ["0"], [Batch(x, None)], run, {}, whole)
    u = (x @ layer.get_submodule("rotate_in").get_parameter("weight").T).numpy()
    y = reference(x).numpy()
    if not whole:
        u, y = u - u.mean(0), y - y.mean(0)
    ridge = np.sqrt(RIDGE * (u**2).sum(0).mean())
    expected = np.linalg.lstsq(
        np.concatenate([u, ridge * np.eye(3)]), np.concatenate([y, ridge * before.T]), rcond=None
    )[0].T
    np.testing.assert_allclose(layer.get_submodule("core").get_parameter("weight").numpy(), expected, rtol=1e-8)


@torch.no_grad()
def test_a_layer_that_lost_nothing_is_fitted_to_what_it_gets_now() -> None:
    torch.manual_seed(0)
    reference = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(45, 4)
    )
    reference = reference.double()
    model = copy.deepcopy(reference)
    layers = prunable_layers(model, lambda: model(torch.zeros(1, 3, 8, 8, dtype=torch.float64)))[:1]
    apply_ranks(model, layers, random_decompositions(layers), {"0": Ranks(2, 2)})
    x = torch.randn(600, 3, 8, 8, dtype=torch.float64)
    before = copy.deepcopy(model.state_dict())
    refit(model, reference, ["0", "1", "3"], [Batch(x, None)], run, {}, whole=True)
    inside = model[0](x)
    columns = F.unfold(inside, 3, 1, 1, 2).transpose(1, 2).flatten(0, 1).numpy()
    wanted = reference[:2](x).flatten(2).transpose(1, 2).flatten(0, 1).numpy()
    u, y = columns - columns.mean(0), wanted - wanted.mean(0)
    ridge = np.sqrt(RIDGE * (u**2).sum(0).mean())
    rows = np.concatenate([u, ridge * np.eye(36)])
    start = before["1.weight"].flatten(1).numpy()
    expected = np.linalg.lstsq(rows, np.concatenate([y, ridge * start.T]), rcond=None)[0].T
    weight, bias = model[1].get_parameter("weight"), model[1].get_parameter("bias")
    np.testing.assert_allclose(weight.flatten(1).numpy(), expected, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(bias.numpy(), wanted.mean(0) - expected @ columns.mean(0), rtol=1e-6, atol=1e-9)
    assert not torch.equal(model[3].get_parameter("weight"), before["3.weight"])


@pytest.mark.full
def test_layers_in_front_of_the_first_cut_stay_as_they_are() -> None:
    reference = residual_network()
    model = cut(reference, ["blocks.2.conv1"], 3)
    names = [x.name for x in prunable_layers(reference, lambda: reference(images(1)))]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refit(model, reference, names, batches(512), run, {}, whole=True)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not [name for name in changed if name.startswith(("conv.", "bn.", "blocks.0.", "blocks.1."))]
    assert {"blocks.2.conv1.core.weight", "blocks.2.conv2.weight", "blocks.2.bn2.weight", "classifier.bias"} < changed
    assert not [name for name in changed if "running" in name or ("rotate" in name and not name.endswith("bias"))]


def test_a_network_that_lost_nothing_is_still_the_same() -> None:
    reference = residual_network()
    names = [x.name for x in prunable_layers(reference, lambda: reference(images(1)))]
    model = cut(reference, ["blocks.0.conv1", "blocks.1.conv2"], 6)
    refit(model, reference, names, batches(512, 512), run, {}, whole=True)
    settle(model)
    x = images(64, 2)
    with torch.no_grad():
        error = (model(x) - reference(x)).abs().max() / reference(x).abs().max()
    assert float(error) < 0.02


@pytest.mark.full
@torch.no_grad()
def test_what_a_cut_costs_is_made_up_for_behind_it() -> None:
    reference = residual_network()
    names = [x.name for x in prunable_layers(reference, lambda: reference(images(1)))]
    lost = [name for name in names if name.startswith("blocks.") and "projection" not in name]
    x = images(256, 3)

    def error(whole: bool) -> float:
        model = cut(reference, lost, 4)
        refit(model, reference, names if whole else lost, batches(1024), run, {}, whole)
        settle(model)
        return float((model(x) - reference(x)).square().mean())

    assert error(whole=True) < 0.75 * error(whole=False)


@torch.no_grad()
def test_the_second_layer_of_a_block_makes_up_for_its_shortcut() -> None:
    """The shortcut lost something, which is within reach of the block: its sum is right all the same."""
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Conv2d(3, 6, 1), BasicBlock(6, 6, 1)).eval()
    recalibrate_by(reference, images(512).split(128), lambda batch: reference(batch))
    model = copy.deepcopy(reference)
    apply_edits(model, (FactorEdit("0", None, 3),))
    layer = model.get_submodule("0")
    layer.load_state_dict({**layer.state_dict(), "rotate_out.weight": torch.eye(6, 3)[:, :, None, None]})
    layer.get_submodule("core").get_parameter("weight").copy_(reference[0].get_parameter("weight")[:3])

    def error(names: list[str], whole: bool) -> float:
        fitted, x = copy.deepcopy(model), images(256, 5)
        refit(fitted, reference, names, batches(512), run, {}, whole)
        recalibrate_by(fitted, images(512).split(128), lambda batch: fitted(batch))
        return float((fitted(x) - reference(x)).square().mean())

    names = ["0", "1.conv1", "1.conv2"]
    assert error(names, whole=True) < 0.5 * error(names[:1], whole=False)
