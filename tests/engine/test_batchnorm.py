"""Recalibrated BatchNorm statistics are those of the inputs that the layers really see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hybridprune.engine.batchnorm import recalibrate
from tests.cases import batches_of, random_images, random_net

LABELS = torch.zeros(12, dtype=torch.int64)


@pytest.mark.parametrize("count", [1, 3])
def test_statistics_are_the_mean_over_equal_batches(count: int) -> None:
    net = random_net()
    inputs: dict[str, list[Tensor]] = {}
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}

    def record(name: str, norm: nn.BatchNorm2d) -> RemovableHandle:
        inputs[name] = []
        return norm.register_forward_pre_hook(lambda module, args: inputs[name].append(args[0]))

    hooks = [record(name, norm) for name, norm in norms.items()]
    recalibrate(net, batches_of(random_images(12), LABELS, 12 // count))
    for hook in hooks:
        hook.remove()
    for name, norm in norms.items():
        assert len(inputs[name]) == count and norm.running_mean is not None and norm.running_var is not None
        mean = torch.stack([x.mean((0, 2, 3)) for x in inputs[name]]).mean(0)
        variance = torch.stack([x.var((0, 2, 3)) for x in inputs[name]]).mean(0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-4, atol=1e-5)


def test_stem_statistics_of_the_whole_sample() -> None:
    net, images = random_net(), random_images(12)
    recalibrate(net, batches_of(images, LABELS, 12))
    with torch.no_grad():
        x = net.backbone.conv(images)
    torch.testing.assert_close(net.backbone.bn.running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(net.backbone.bn.running_var, x.var((0, 2, 3)))


@pytest.mark.parametrize("training", [True, False])
def test_leaves_all_else_alone(training: bool) -> None:
    net = random_net(8).train(training)
    before = {name: value.clone() for name, value in net.named_parameters()}
    recalibrate(net, batches_of(random_images(12), LABELS, 4))
    assert net.training == training and net.backbone.bn.training == training
    assert net.backbone.bn.momentum == 0.1
    assert all(torch.equal(value, before[name]) and value.grad is None for name, value in net.named_parameters())
