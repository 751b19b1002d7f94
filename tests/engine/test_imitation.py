"""Imitation of a parent: what it compares, what it trains, and that its pairs merge exactly."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridprune.data import Batch
from hybridprune.engine.imitation import (
    PAIRS,
    Imitation,
    Stages,
    add_pairs,
    check_imitation,
    merge_pairs,
    stage_ends,
)
from hybridprune.errors import UserError
from hybridprune.models.backbone import Backbone
from hybridprune.models.resnet import ResNet
from hybridprune.models.spec import NetworkSpec
from hybridprune.pruning.channels import cut, survey_channels
from tests.networks_and_images import random_images, randomise

IMAGES = random_images(6, 8).double()
BATCH = Batch(IMAGES, torch.zeros(6, dtype=torch.int64), torch.arange(6))


def parent_and_child(dead: bool, coupled: bool = True) -> tuple[ResNet, ResNet]:
    """A ResNet of two blocks a stage, and it without every third channel, which are dead if wanted."""
    torch.manual_seed(0)
    parent = ResNet(14, 6, 5).double().eval()
    randomise(parent)

    def run(net: nn.Module, images: Tensor) -> Tensor:
        return net(images.to(next(net.parameters()).dtype))

    groups = survey_channels(parent, run, IMAGES[:1], exclude=(), coupled=coupled).groups
    gone = [torch.arange(0, group.channels, 3) for group in groups]
    if dead:
        with torch.no_grad():
            for group, index in zip(groups, gone, strict=True):
                for member in group.of("norm"):
                    norm = parent.get_submodule(member.layer)
                    for parameter in norm.parameters():
                        parameter[member.index[index].flatten()] = 0
    child = copy.deepcopy(parent)
    cut(child, groups, gone)
    return parent, child


def imitation(parent: ResNet, child: ResNet, epochs: int = 1) -> Imitation:
    ends = stage_ends(parent, IMAGES[:1])
    student, teacher = Stages(child, ends), Stages(parent.requires_grad_(False), ends)
    add_pairs(student, teacher, [BATCH])
    return Imitation(student, teacher, epochs)


@pytest.mark.parametrize("coupled", [False, True])
def test_without_dead_channels_nothing_is_missing(coupled: bool) -> None:
    learning = imitation(*parent_and_child(dead=True, coupled=coupled))
    assert all(error < 1e-12 for error in learning.validate([BATCH]).values())
    assert len(getattr(learning.student.backbone, PAIRS)) == (3 if coupled else 0)
    missing = imitation(*parent_and_child(dead=False, coupled=coupled))
    assert all(error > 1e-4 for error in missing.validate([BATCH]).values())


def test_pairs_change_nothing_at_first_and_merge_exactly_whatever_they_learnt() -> None:
    parent, child = parent_and_child(dead=False)
    before = child(IMAGES)
    learning = imitation(parent, child)
    assert torch.allclose(learning.answer(IMAGES), before)
    names = set(child.state_dict())
    for parameter in getattr(child, PAIRS).parameters():
        nn.init.normal_(parameter)
    expected = learning.answer(IMAGES)
    assert not torch.allclose(expected, before)
    merge_pairs(child)
    assert torch.allclose(child(IMAGES), expected) and set(child.state_dict()) < names


def test_the_error_is_that_of_features_at_the_ends_of_stages() -> None:
    parent, child = parent_and_child(dead=False, coupled=False)
    learning = imitation(parent, child)
    assert list(learning.student.ends) == [1, 3, 5]
    x, y = child.stem(IMAGES), parent.stem(IMAGES)
    found = learning.validate([BATCH])
    for number in range(6):
        x, y = child.blocks[number](x), parent.blocks[number](y)
        if number % 2:
            assert found[f"imitation_{number // 2 + 1}"] == pytest.approx(F.mse_loss(x, y).item())


def test_each_stage_learns_by_itself_from_the_bottom() -> None:
    parent, child = parent_and_child(dead=False)
    learning = imitation(parent, child, epochs=2)
    own = {
        0: {"conv", "bn", "blocks.0", "blocks.1", f"{PAIRS}.1.up"},
        1: {"blocks.2", "blocks.3", f"{PAIRS}.1.down", f"{PAIRS}.3.up"},
        2: {"blocks.4", "blocks.5", f"{PAIRS}.3.down", f"{PAIRS}.5.up"},
    }
    for passes, stage in ((0.0, 0), (1.9, 0), (2.0, 1), (5.5, 2)):
        statistics = {name: value.clone() for name, value in child.named_buffers() if name.endswith("mean")}
        child.zero_grad(set_to_none=True)
        child.train()
        learning(lambda: None, BATCH, passes)[0].backward()  # type: ignore[arg-type]
        learnt = {name for name, parameter in child.named_parameters() if parameter.grad is not None}
        assert learnt == {name for name in dict(child.named_parameters()) if _within(name, own[stage])}
        moved = {name for name, value in statistics.items() if not torch.equal(value, child.get_buffer(name))}
        assert moved == {name for name in statistics if _within(name, own[stage])}


def _within(name: str, parts: set[str]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def test_networks_that_cannot_imitate_are_refused() -> None:
    image = random_images(1, 8)
    with pytest.raises(UserError, match="--cut_weights imitate: compares features behind residual blocks"):
        check_imitation(NetworkSpec("vgg", 11, 4, 5).build().backbone, image, coupled=False)
    pre = NetworkSpec("preresnet", 8, 4, 5).build().backbone
    assert isinstance(pre, Backbone)
    check_imitation(pre, image, coupled=False)
    with pytest.raises(UserError, match="behind block 0 is no plain convolution"):
        check_imitation(pre, image, coupled=True)
    check_imitation(ResNet(8, 4, 5), image, coupled=True)
