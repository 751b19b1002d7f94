"""Recalibrated BatchNorm statistics are those of the inputs that the layers really see."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hybridprune.engine.batchnorm import recalibrate
from tests.cases import batches_of, random_images, random_net


class Plain(nn.Module):
    """A user's module, with what must not be random while statistics are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.dropout = nn.Dropout(0.5)
        self.norm = nn.BatchNorm2d(4, momentum=0.3)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.dropout(self.conv(images))).mean((2, 3)))


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


def test_earlier_statistics_leave_no_trace() -> None:
    net, fresh, images = random_net(), random_net(), random_images(12)
    recalibrate(net, batches_of(3 + random_images(12, seed=1), LABELS, 4))
    for found in (net, fresh):
        recalibrate(found, batches_of(images, LABELS, 4))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in net.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_a_plain_modules_dropout_is_inactive(training: bool) -> None:
    torch.manual_seed(0)
    net, images = Plain().train(training), random_images(12)
    recalibrate(net, batches_of(images, LABELS, 4))
    x = net.conv(images)
    torch.testing.assert_close(net.norm.running_mean, x.mean((0, 2, 3)))
    variance = torch.stack([part.var((0, 2, 3)) for part in x.split(4)]).mean(0)
    torch.testing.assert_close(net.norm.running_var, variance)
    assert net.norm.momentum == 0.3 and all(module.training == training for module in net.modules())


def test_always_on_statistics_are_those_of_the_backbone() -> None:
    images = random_images(12)
    routed, always, alone = random_net(20), random_net(20), random_net(20).backbone
    recalibrate(routed, batches_of(images, LABELS, 4))
    recalibrate(always, batches_of(images, LABELS, 4), always_on=True)
    recalibrate(alone, batches_of(images, LABELS, 4), always_on=True)
    for name, value in alone.state_dict().items():
        assert torch.equal(always.backbone.state_dict()[name], value)
    # Behind the gates the inputs differ, before them they do not.
    last, first = (net_name + ".running_mean" for net_name in ("blocks.8.bn1", "blocks.0.bn1"))
    assert not torch.allclose(routed.backbone.state_dict()[last], alone.state_dict()[last], rtol=0.01)
    torch.testing.assert_close(routed.backbone.state_dict()[first], alone.state_dict()[first])


@torch.no_grad()
def test_always_on_statistics_normalise_the_always_on_network() -> None:
    images, means = random_images(12), {}
    for always_on in (False, True):
        net, seen = random_net(20), []
        recalibrate(net, batches_of(images, LABELS, 12), always_on)
        norm = net.backbone.blocks[-1].bn1
        norm.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.clone()))
        net(images, torch.ones(12, net.num_gates))
        means[always_on] = ((seen[0].mean((0, 2, 3)) - norm.bias) / norm.weight).abs().max()
    # Not exactly 0: the running variances upstream are the unbiased ones.
    assert means[True] < 0.05 < 0.3 < means[False]


def test_modes_and_momenta_are_restored_after_an_exception() -> None:
    net = Plain().train()
    net.norm.eval()
    with pytest.raises(RuntimeError):
        recalibrate(net, batches_of(random_images(4)[:, :2], LABELS, 4))
    assert net.norm.momentum == 0.3 and [m.training for m in net.children()] == [True, True, False, True]
