"""torchvision's classifiers by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hybridprune.errors import UserError
from hybridprune.models.torchvision_nets import build_torchvision, check_torchvision_name, torchvision_classifiers
from tests.networks_and_images import random_images


def test_every_classifier_of_torchvision_and_nothing_else() -> None:
    names = torchvision_classifiers()
    assert {"resnet50", "mobilenet_v2", "vgg16_bn", "vit_b_16", "inception_v3"} <= set(names)
    assert not {"fcn_resnet50", "maskrcnn_resnet50_fpn", "raft_small", "r3d_18"} & set(names)
    for name in names:
        check_torchvision_name(name)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("resnet5", "did you mean resnet50 or "),
        ("MobileNet_v2", "did you mean mobilenet_v2"),
        ("zzz", "choose one of alexnet, "),
    ],
)
def test_unknown_name(name: str, remedy: str) -> None:
    with pytest.raises(UserError, match=rf"--network torchvision:{name}: torchvision has no such classifier; {remedy}"):
        check_torchvision_name(name)


@pytest.mark.parametrize(
    ("name", "size"), [("mobilenet_v2", 32), ("shufflenet_v2_x0_5", 32), ("squeezenet1_1", 33), ("resnet18", 17)]
)
def test_logits_of_our_classes(name: str, size: int) -> None:
    net = build_torchvision(name, 7)
    assert net.train()(random_images(2, size)).shape == net.eval()(random_images(2, size)).shape == (2, 7)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_auxiliary_heads_are_left_out(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *args, **kwargs: nn.init.normal_(tensor))  # as fast
    net = build_torchvision(name, 7)
    logits = net.train()(random_images(2, size))
    assert isinstance(logits, Tensor) and logits.shape == (2, 7)
    assert not any("aux" in name.lower() for name, _ in net.named_parameters())


def test_weights_are_random_and_seeded() -> None:
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(build_torchvision("squeezenet1_1", 3))
    first, same, other = (torch.cat([p.flatten() for p in net.parameters()]) for net in nets)
    assert torch.equal(first, same) and not torch.equal(first, other)
