"""BatchNorm with bounded scales: what it computes, and the ways there and back."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hybridprune.engine.batchnorm import recalibrate
from hybridprune.models.resnet import ResNet
from hybridprune.models.sigmoid_norm import TOP, SigmoidBatchNorm2d, bound, bounded, conclude, concluded
from tests.networks_and_images import batches_of, random_images, randomise

C = 6
IMAGES = torch.randn(5, C, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 1


def source() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def norm_of(scale: list[float], shift: float = 0.0) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(scale), eps=1e-3, momentum=0.3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(scale))
        norm.bias.fill_(shift)
    return norm


def test_it_computes_the_sigmoid_of_gamma_times_the_normalised_input() -> None:
    gamma = torch.tensor([-20.0, -3, -0.5, 0, 2, 30], dtype=torch.float64)
    module = SigmoidBatchNorm2d(norm_of([1.0] * C, shift=7.0), gamma)
    mean = IMAGES.mean((0, 2, 3), keepdim=True)
    variance = IMAGES.var((0, 2, 3), correction=0, keepdim=True)
    normalised = (IMAGES - mean) / (variance + 1e-3).sqrt()
    expected = normalised / (1 + (-gamma).exp()).view(1, C, 1, 1)
    torch.testing.assert_close(module.train()(IMAGES), expected)
    momentum = 0.3 * IMAGES.mean((0, 2, 3))
    torch.testing.assert_close(module.norm.running_mean, momentum)
    assert {name for name, _ in module.named_parameters()} == {"gamma"}  # no shift
    with torch.autocast("cpu", torch.bfloat16):
        assert module.float()(IMAGES.bfloat16()).dtype == torch.bfloat16


def test_there_and_back_is_the_same_function() -> None:
    norm = norm_of([0.9, 0.5, 1e-5, 0.25, 0.75, 0.1]).train()
    norm(IMAGES)
    norm.eval()
    there = bounded(norm, source())
    back = concluded(there)
    assert type(back) is nn.BatchNorm2d and not there.training and not back.training
    assert (back.eps, back.momentum) == (1e-3, 0.3)
    torch.testing.assert_close(there(IMAGES), norm(IMAGES), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(back(IMAGES), norm(IMAGES), rtol=1e-12, atol=1e-12)
    assert {name: value.dtype for name, value in back.state_dict().items()} == {
        name: value.dtype for name, value in norm.state_dict().items()
    }
    assert back.weight.requires_grad and back.bias.requires_grad


@pytest.mark.parametrize(
    ("scale", "importance"),
    [
        pytest.param([4.0, -2.0, 1.0], [TOP, TOP / 2, TOP / 4], id="too large for a sigmoid: over a common factor"),
        pytest.param([-0.5, 0.9, 0.1], [0.5, 0.9, 0.1], id="as they are, without their signs"),
        pytest.param([0.0, 0.5, 0.25], [0.0, 0.5, 0.25], id="zero is weaker than all others"),
        pytest.param([1.0, 0.5, 0.25], [1.0, 0.5, 0.25], id="one fits"),
    ],
)
def test_importances_of_a_trained_norm(scale: list[float], importance: list[float]) -> None:
    module = bounded(norm_of(scale, shift=0.5), source())
    torch.testing.assert_close(module.importance.detach().tolist(), importance, rtol=1e-6, atol=1e-6)
    assert module.gamma.isfinite().all()


def test_a_fresh_norm_gets_normal_gammas() -> None:
    gammas = bounded(nn.BatchNorm2d(4000), source()).gamma.detach()
    assert abs(float(gammas.mean())) < 0.06 and abs(float(gammas.std()) - 1) < 0.04
    assert gammas.equal(bounded(nn.BatchNorm2d(4000), source()).gamma)
    assert not gammas.equal(bounded(nn.BatchNorm2d(4000), torch.Generator().manual_seed(2)).gamma)


def test_a_network_is_bound_where_it_is_said_and_concluded_everywhere() -> None:
    torch.manual_seed(0)
    net = ResNet(8, 4, 5)
    randomise(net)
    net.double()
    names = ["bn", "blocks.0.bn1", "blocks.1.projection.1"]
    before = copy.deepcopy(net)
    bound(net, names, source())
    assert [n for n, m in net.named_modules() if isinstance(m, SigmoidBatchNorm2d)] == names
    images = random_images(6).double()
    reached = net(images)
    net.train()(images).sum().backward()  # in place ReLUs and sums behind it spoil no gradient
    assert all(p.grad is not None and bool(p.grad.any()) for n, p in net.named_parameters() if n.endswith("gamma"))
    net.eval()
    recalibrate(net, batches_of(images, torch.zeros(6, dtype=torch.int64), 3))
    reached = net(images)
    conclude(net)
    assert net.state_dict().keys() == before.state_dict().keys()
    torch.testing.assert_close(net(images), reached, rtol=1e-10, atol=1e-10)
    assert not any(isinstance(m, SigmoidBatchNorm2d) for m in net.modules())


def test_a_shared_norm_stays_shared() -> None:
    norm = norm_of([0.5, 0.25])
    net = nn.ModuleDict({"a": norm, "b": norm})
    bound(net, ["a"], source())
    assert net["a"] is net["b"] and isinstance(net["a"], SigmoidBatchNorm2d)
    conclude(net)
    assert net["a"] is net["b"] and isinstance(net["a"], nn.BatchNorm2d)


def test_recalibration_finds_the_statistics() -> None:
    module = SigmoidBatchNorm2d(norm_of([1.0] * C), torch.zeros(C, dtype=torch.float64))
    recalibrate(module, batches_of(IMAGES, torch.zeros(5, dtype=torch.int64), 5))
    mean: Tensor | None = module.norm.running_mean
    assert mean is not None
    torch.testing.assert_close(mean, IMAGES.mean((0, 2, 3)))
