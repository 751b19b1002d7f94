"""Receding importances and uniform selection as methods: what they do to a network before and in the cut."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune.config import CutOptions, SparsityOptions
from hybridprune.engine.pressure import Drive
from hybridprune.errors import UserError
from hybridprune.models.resnet import ResNet
from hybridprune.models.sigmoid_norm import SigmoidBatchNorm2d
from hybridprune.models.vgg import VGG
from hybridprune.pruning.budget.space import Cost, Space
from hybridprune.pruning.channels import channel_groups, remove_channels
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.methods import find, rni
from hybridprune.pruning.sparse_training.protocol import SparseTraining, Sparsity, Target
from hybridprune.pruning.sparse_training.scale_l1 import ScalePressure
from tests.networks_and_images import random_images, randomise

PIXELS = random_images(6).double()


def network() -> ResNet:
    torch.manual_seed(0)
    net = ResNet(8, 8, 5)
    randomise(net)
    return net.double()


def run(net: nn.Module, images: Tensor) -> object:
    return net(images)


def target_of(net: nn.Module, coupled: bool = False, seed: int = 0) -> Target:
    groups = channel_groups(net, run, PIXELS[:1], exclude=(), coupled=coupled)
    return Target(net, groups, Space([], [], Cost(0, 0)), None, {}, seed)


def prepared(net: ResNet, **options: Any) -> Any:
    return rni.prepare(target_of(net, **options), SparsityOptions())


def gammas(net: nn.Module) -> list[nn.Parameter]:
    return [module.gamma for module in net.modules() if isinstance(module, SigmoidBatchNorm2d)]


def test_the_norms_of_what_may_go_are_bounded() -> None:
    for coupled in (False, True):
        net = network()
        norms = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
        prepared(net, coupled=coupled)
        found = [name for name, module in net.named_modules() if isinstance(module, SigmoidBatchNorm2d)]
        assert found == (norms if coupled else [f"blocks.{i}.bn1" for i in range(3)])


def test_preparing_an_equal_network_gives_the_same() -> None:
    nets = [ResNet(8, 8, 5).double() for _ in range(3)]  # fresh: gamma is drawn
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        prepared(net, seed=seed)
    one, same, other = map(gammas, nets)
    assert all(a.equal(b) for a, b in zip(one, same, strict=True))
    assert not any(a.equal(b) for a, b in zip(one, other, strict=True))
    assert not one[0].equal(one[1][: len(one[0])])  # each norm has its own


def test_concluding_is_lossless_and_what_has_receded_goes_without_a_trace() -> None:
    net = network()
    target = target_of(net)
    rni.prepare(target, SparsityOptions())
    gone = {group.name: torch.tensor([1, 4]) for group in target.groups}
    for group in target.groups:
        norm = net.get_submodule(group.of("norm")[0].layer)
        assert isinstance(norm, SigmoidBatchNorm2d)
        with torch.no_grad():
            norm.gamma[gone[group.name]] = -1e4
    expected = net(PIXELS)
    method = find("rni")
    assert isinstance(method, ChannelMethod) and method.sparsity is not None and method.sparsity.conclude is not None
    method.sparsity.conclude(net)
    torch.testing.assert_close(net(PIXELS), expected, rtol=1e-12, atol=1e-12)
    remove_channels(net, target.groups, list(gone.values()), run, PIXELS[:1])
    torch.testing.assert_close(net(PIXELS), expected, rtol=1e-12, atol=1e-12)
    assert net.get_submodule("blocks.0.bn1").get_parameter("weight").shape == (6,)


def test_the_weight_and_the_shift_are_those_of_the_options() -> None:
    def push(residual: bool, **options: Any) -> Tensor:
        net = network()
        target = dataclasses.replace(target_of(net), residual=residual)
        rni.prepare(target, SparsityOptions(**options)).pressure.add_gradients(0.0)
        return torch.cat([grad for gamma in gammas(net) if (grad := gamma.grad) is not None])

    net = network()
    rni.prepare(target_of(net), SparsityOptions())
    gamma = torch.cat([each.detach() for each in gammas(net)])
    for residual, options, weight, b in (
        (False, {}, 1e-3, 3.0),
        (True, {}, 1e-4, 0.0),
        (True, {"sparsity_weight": 0.5}, 0.5, 0.0),
        (False, {"rni_shift": 0.0}, 1e-3, 0.0),
    ):
        s = 1 / (1 + (-gamma - b).exp())
        torch.testing.assert_close(push(residual, **options), -weight * s * (1 - s) * s.log())


@pytest.mark.parametrize("coupled", [False, True])
def test_a_method_knows_whether_sums_join_channels(coupled: bool) -> None:
    seen: list[bool] = []

    def prepare(target: Target, options: SparsityOptions) -> Drive:
        seen.append(target.residual)
        return Drive(ScalePressure([], 0.0))

    method = dataclasses.replace(rni.METHOD, sparsity=Sparsity(before=SparseTraining(prepare)))
    batches = [(random_images(8), torch.randint(5, (8,)))]
    options: dict[str, Any] = {
        "cut": CutOptions(prune_ratio=0.5, use_out_dependencies=coupled),
        "sparsity": SparsityOptions(sparse_epochs=0),
    }
    for net in (network().float(), VGG(11, 4, 5)):
        hybridprune.prune(net, batches, method=method, **options)
    assert seen == [True, False]


@pytest.mark.parametrize("method", ["rni", "ucs"])
def test_three_channels_of_a_layer_stay(method: str) -> None:
    batches = [(random_images(8, seed=i), torch.randint(5, (8,))) for i in range(2)]
    model = copy.deepcopy(network()).float()
    cut = CutOptions(prune_ratio=1.0, prune_ratio_limit=0.999)
    pruned = hybridprune.prune(model, batches, method=method, cut=cut, sparsity=SparsityOptions(sparse_epochs=1))
    filters = [pruned.module.get_submodule(f"blocks.{i}.conv1").get_parameter("weight") for i in range(3)]
    assert [len(weight) for weight in filters] == [3] * 3
    assert not any(isinstance(module, SigmoidBatchNorm2d) for module in pruned.module.modules())


def test_the_same_share_of_every_layer() -> None:
    batches = [(random_images(8), torch.randint(5, (8,)))]
    model = network().float()
    with torch.no_grad():
        model.get_submodule("blocks.0.bn1").get_parameter("weight").mul_(100)
    pruned = hybridprune.prune(model, batches, method="ucs", cut=CutOptions(prune_ratio=0.5))
    for i, channels in enumerate((8, 16, 32)):
        scale = model.get_submodule(f"blocks.{i}.bn1").get_parameter("weight").detach()
        left = pruned.module.get_submodule(f"blocks.{i}.bn1").get_parameter("weight").detach()
        assert left.equal(scale[scale.abs() > scale.abs().sort().values[channels // 2 - 1]])


def test_channels_without_a_norm_are_refused_before_anything_is_trained() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 16, 5)).double()
    with pytest.raises(UserError, match="no BatchNorm scales the channels of 0"):
        rni.prepare(target_of(net), SparsityOptions())
