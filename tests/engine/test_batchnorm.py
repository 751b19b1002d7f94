"""Recalibrated BatchNorm statistics are those of the inputs that the layers really see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hybridprune.data import Batch, EvalBatches, LabelledImages
from hybridprune.engine.batchnorm import batch_statistics, normalised_by_batch, recalibrate, recalibrate_by
from hybridprune.processes import count as processes
from hybridprune.processes import rank
from tests.networks_and_images import batches_of, random_images, random_net
from tests.process_groups import together


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


def unequal(images: Tensor, sizes: Sequence[int]) -> list[Batch]:
    return [Batch(part, LABELS[: len(part)], LABELS[: len(part)]) for part in images.split(list(sizes))]


@pytest.mark.parametrize("sizes", [(12,), (4, 4, 4), (5, 6, 1), (1, 2, 9)], ids=str)
def test_statistics_are_those_of_all_values_together(sizes: tuple[int, ...]) -> None:
    net, images = random_net(), random_images(12) * torch.linspace(0.2, 3, 12).view(-1, 1, 1, 1)
    inputs: dict[str, list[Tensor]] = {}
    norms = {name: module for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}

    def record(name: str, norm: nn.BatchNorm2d) -> RemovableHandle:
        inputs[name] = []
        return norm.register_forward_pre_hook(lambda module, args: inputs[name].append(args[0]))

    hooks = [record(name, norm) for name, norm in norms.items()]
    recalibrate(net, unequal(images, sizes))
    for hook in hooks:
        hook.remove()
    for name, norm in norms.items():
        assert len(inputs[name]) == len(sizes) and norm.running_mean is not None and norm.running_var is not None
        x = torch.cat(inputs[name]).double()
        torch.testing.assert_close(norm.running_mean.double(), x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), x.var((0, 2, 3)), rtol=1e-5, atol=1e-6)
        assert norm.num_batches_tracked == len(sizes)


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
    torch.testing.assert_close(net.norm.running_var, x.var((0, 2, 3)))
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


class Branches(nn.Module):
    """A plain network on ``[B, 6]`` with norms that little or nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
        self.norm1, self.norm2 = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.never, self.once = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.current = nn.BatchNorm1d(8, track_running_stats=False)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(input=self.first(x))
        self.count += 1
        if self.count == 1:
            x = torch.cat([self.once(x[:1]), x[1:]])
        x = self.norm2(self.second(x.relu()))
        return self.current(x) if len(x) > 1 else x


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_a_rest_of_one_image_counts_as_one(training: bool) -> None:
    torch.manual_seed(0)
    net, x = Branches().train(training), torch.randn(16, 6)
    recalibrate_by(net, x.split(15), net)
    y = net.first(x)
    torch.testing.assert_close(net.norm1.running_mean, y.mean(0))
    torch.testing.assert_close(net.norm1.running_var, y.var(0))
    assert net.norm1.running_mean is not None and y[15].sub(net.norm1.running_mean).abs().max() > 0.1
    assert all(module.training == training for module in net.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@torch.no_grad()
def test_a_norm_that_nothing_or_one_value_reaches_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    net, x = Branches(), torch.randn(16, 6)
    for norm in (net.never, net.once):
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        norm.running_mean.fill_(3.0)
        norm.running_var.fill_(5.0)
        norm.num_batches_tracked.fill_(7)
    recalibrate_by(net, x.split(15), net)
    for norm in (net.never, net.once):
        assert norm.running_mean is not None and norm.running_var is not None
        assert (norm.running_mean == 3).all() and (norm.running_var == 5).all() and norm.num_batches_tracked == 7
    assert net.current.running_mean is None


@torch.no_grad()
def test_single_images_alone_are_normalised_by_what_came_before() -> None:
    torch.manual_seed(0)
    net, x = Branches(), torch.randn(9, 6)
    recalibrate_by(net, x.split(1), net)
    y = net.first(x)
    torch.testing.assert_close(net.norm1.running_mean, y.mean(0))
    torch.testing.assert_close(net.norm1.running_var, y.var(0))
    assert all(value.isfinite().all() for value in net.state_dict().values())


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(60, 60, 60, 60, 1), (15,) * 16 + (1,)], ids=["60", "15"])
def test_statistics_are_nearly_those_of_an_exact_pass_layer_by_layer(sizes: tuple[int, ...]) -> None:
    """In which every norm's input comes from norms that have their final statistics already."""
    images, net, exact = random_images(sum(sizes)), random_net(20).backbone, random_net(20).backbone
    norms = [module for module in exact.modules() if isinstance(module, nn.BatchNorm2d)]

    def settle(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(args[0].mean((0, 2, 3)))
        norm.running_var.copy_(args[0].var((0, 2, 3)))

    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    expected = exact(images)
    for hook in hooks:
        hook.remove()
    recalibrate_by(net, images.split(list(sizes)), net)
    tolerance = 0.1 if sizes[0] == 15 else 0.05
    for found, wanted in zip((m for m in net.modules() if isinstance(m, nn.BatchNorm2d)), norms, strict=True):
        assert found.running_mean is not None and found.running_var is not None
        assert wanted.running_mean is not None and wanted.running_var is not None
        shift = (found.running_mean - wanted.running_mean) / wanted.running_var.sqrt()
        assert shift.abs().max() < tolerance, shift
        assert (found.running_var / wanted.running_var).log().abs().max() < tolerance
    error = (net(images) - expected).norm() / (expected - expected.mean(0)).norm()
    assert error < tolerance, error


def test_batch_statistics_are_left_as_they_were() -> None:
    net, images = random_net(), random_images(12)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad(), batch_statistics(net):
        inside = net.backbone(images)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with torch.no_grad():
        training = net.train().backbone(images)
    torch.testing.assert_close(inside, training)


def test_processes_that_share_the_batches_join_their_statistics(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    images = LabelledImages(
        torch.randint(256, (13, 3, 8, 8), generator=draw, dtype=torch.uint8), torch.zeros(13).long()
    )

    def statistics(own: int, number: int) -> list[Tensor]:
        net = random_net(8, 4)
        batches = EvalBatches(
            images,
            None,
            batch_size=4,
            mean=(0.5,) * 3,
            std=(0.25,) * 3,
            device="cpu",
            channels_last=False,
            rank=own,
            processes=number,
        )
        recalibrate(net, batches)
        norm = net.backbone.bn
        assert norm.running_mean is not None and norm.running_var is not None
        return [norm.running_mean, norm.running_var]

    ended = together(tmp_path, lambda: statistics(rank(), processes()))
    assert [each[0] for each in ended] == [0, 0], ended[0][3] + ended[1][3]
    for _, found, *_ in ended:
        torch.testing.assert_close(found, statistics(0, 1))


@torch.no_grad()
def test_norms_by_the_batch_keep_their_own_statistics_for_few_images() -> None:
    torch.manual_seed(0)
    net = Plain().eval()
    nn.init.uniform_(net.norm.running_var, 1, 2)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    images, expected = random_images(8), net(random_images(8)[:3])
    with normalised_by_batch(net):
        few = net(images[:3])
        many = net(images)
        assert torch.equal(net.norm.running_mean, before["norm.running_mean"])  # type: ignore[arg-type]
    assert torch.equal(few, expected)
    inside = net.conv(images)
    by_batch = nn.functional.batch_norm(inside, None, None, net.norm.weight, net.norm.bias, training=True)
    torch.testing.assert_close(many, net.head(by_batch.mean((2, 3))))
    assert not net.norm.training and net.norm.momentum == 0.3 and not net.norm._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
