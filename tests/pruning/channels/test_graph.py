"""Channels that code or other layers hold on to: what is cut beside them, and in which modes the result runs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torchvision.models import GoogLeNet
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import SwinTransformer

import hybridprune
from hybridprune.config import CutOptions
from hybridprune.measure.cost import count_module
from hybridprune.pruning.channels import channel_groups, dependency, survey_channels
from hybridprune.pruning.channels.graph import Channels
from hybridprune.pruning.left_alone import AT_OUTPUT, COSTS, JOINED, NEVER, SHARED, UNBOUNDED, notice


class Chain(nn.Module):
    """Convolutions ``a``, ``b``, ``c`` and ``d`` in a row, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.d = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.classifier = nn.Linear(8, 5)

    def features(self, x: Tensor) -> Tensor:
        for conv in (self.a, self.b, self.c, self.d):
            x = F.relu(conv(x))
        return x

    def forward(self, x: Tensor) -> Any:
        return self.classifier(self.features(x).mean((2, 3)))


class Auxiliary(Chain):
    """In training a second head reads ``b``'s channels, behind a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.aux, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.b(F.relu(self.a(x))))
        y = self.classifier(F.relu(self.d(F.relu(self.c(x)))).mean((2, 3)))
        return (y, self.head(F.relu(self.aux(self.norm(x))).mean((2, 3)))) if self.training else y


class TrainedSlice(Chain):
    """In training code relies on the number of ``b``'s channels."""

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.b(F.relu(self.a(x))))
        if self.training:
            x = torch.cat([x[:, :4], x[:, 4:8]], 1) + x.new_zeros(8, 1, 1)
        return self.classifier(F.relu(self.d(F.relu(self.c(x)))).mean((2, 3)))


class Blurred(Chain):
    """``b``'s channels are blurred one by one, which costs what no layer says."""

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.b(F.relu(self.a(x))))
        x = F.conv2d(x, torch.full((x.shape[1], 1, 3, 3), 1 / 9), groups=x.shape[1])
        return self.classifier(F.relu(self.d(F.relu(self.c(x)))).mean((2, 3)))


def survey(model: nn.Module, size: int = 8, coupled: bool = False) -> Channels:
    return survey_channels(model, lambda net, x: net(x), torch.rand(1, 3, size, size), exclude=(), coupled=coupled)


def pruned(model: nn.Module, size: int = 8, share: float = 0.6, **cut: Any) -> hybridprune.Pruned:
    data = [(torch.rand(8, 3, size, size), torch.arange(8) % 5)]
    found = hybridprune.prune(model, data, target_flops=share, method="l1", cut=CutOptions(**cut))
    assert found.spec.macs == count_module(found.module, data[0][0][:1])[0] <= share * found.spec.dense_macs
    found.module.train()(data[0][0])
    return found


def tied(model: Chain) -> Chain:
    model.b.weight = model.c.weight
    return model


def tied_biases(model: Chain) -> Chain:
    model.b.bias = model.c.bias
    return model


def normed(model: Chain) -> Chain:
    parametrizations.weight_norm(model.b)
    parametrizations.orthogonal(model.c)
    return model


def tied_to_an_embedding() -> Chain:
    model = Chain()
    model.table = nn.Embedding(5, 8)  # type: ignore[assignment]
    model.classifier.weight = model.table.weight  # type: ignore[assignment]
    return model


def normed_as_of_old(model: Chain) -> Chain:
    with pytest.warns(FutureWarning):
        weight_norm(model.b)
    return model


@pytest.mark.parametrize("make", [tied, tied_biases, normed])
def test_weights_that_are_shared_or_computed_stay_whole(make: Any) -> None:
    model = make(Chain()).eval()
    found = survey(model)
    # a's channels are b's inputs, and c's outputs are d's inputs.
    assert [group.name for group in found.groups] == ["d"]
    assert {name: found.left_alone[name] for name in ("a", "b", "c")} == dict.fromkeys("abc", SHARED)
    result = pruned(model, share=0.9)
    assert result.spec.params < result.spec.dense_params and SHARED in result.left_alone.values()


def test_a_layer_tied_to_an_embedding_and_one_with_the_old_weight_norm() -> None:
    assert [group.name for group in survey(tied_to_an_embedding().eval()).groups] == ["a", "b", "c"]
    found = survey_of_old(normed_as_of_old(Chain()).eval())
    assert [group.name for group in found.groups] == ["c", "d"]


def survey_of_old(model: nn.Module) -> Channels:
    with torch.no_grad():
        model(torch.rand(1, 3, 8, 8))  # else its weight is no leaf, and cannot be copied
    return survey(model)


def test_a_head_that_only_trains_goes_along() -> None:
    model = Auxiliary().eval()
    found = survey(model)
    assert [group.name for group in found.groups] == ["a", "b", "c", "d"]
    assert {m.layer for group in found.groups if group.name == "b" for m in group.members} == {"b", "c", "aux", "norm"}
    assert found.left_alone == {"aux": NEVER, "classifier": AT_OUTPUT, "head": NEVER}
    result = pruned(model)
    aux = result.module.get_submodule("aux")
    c = result.module.get_submodule("c")
    assert isinstance(aux, nn.Conv2d) and aux.out_channels == 8
    assert isinstance(c, nn.Conv2d) and aux.in_channels == c.in_channels < 8


def test_what_training_alone_relies_on_stays() -> None:
    assert [group.name for group in survey(TrainedSlice().eval()).groups] == ["a", "c", "d"]
    pruned(TrainedSlice().eval())


def test_what_changes_the_cost_of_other_code_stays_and_is_told() -> None:
    with pytest.warns(UserWarning, match=r"^left alone: b \(cutting it changes the cost[^;]*\)$"):
        result = pruned(Blurred().eval(), share=0.8)
    assert result.left_alone["b"] == COSTS


def test_reasons_of_layers_whose_channels_stay() -> None:
    class Joined(Chain):
        def features(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = x + self.b(x)
            return self.d(F.group_norm(self.c(x), 2, torch.ones(8), torch.zeros(8)))

    found = survey(Joined().eval())
    assert {name: found.left_alone[name] for name in ("a", "b", "classifier")} == {
        "a": JOINED, "b": JOINED, "classifier": AT_OUTPUT,
    }  # fmt: skip
    coupled = survey(Joined().eval(), coupled=True)
    assert "a" in [group.name for group in coupled.groups] and "b" not in coupled.left_alone

    class Grouped(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Conv2d(8, 8, 3, padding=1, groups=2)

    assert survey(Grouped().eval()).left_alone["b"] == "the grouped Conv2d c reads its channels and needs all of them"


def test_a_norm_of_several_channels_is_named_and_is_no_output() -> None:
    class Normed(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.GroupNorm(2, 8)

        def features(self, x: Tensor) -> Tensor:
            return self.d(F.relu(self.c(F.relu(self.norm(self.b(self.a(x)))))))

    found = survey(Normed().eval())
    assert found.left_alone == {
        "b": "the GroupNorm norm reads its channels and needs all of them",
        "classifier": AT_OUTPUT,
    }
    assert [group.name for group in found.groups] == ["a", "c", "d"]
    assert notice(found.left_alone) is None


def swin() -> nn.Module:
    return SwinTransformer([2, 2], 8, [1, 1], [2, 2], [2, 2], stochastic_depth_prob=0.0, num_classes=5).eval()


def test_the_search_for_dependencies_comes_to_an_end() -> None:
    torch.manual_seed(0)
    found = survey(swin(), 32, coupled=True)
    assert [g.name for g in found.groups] == ["features.1.0.mlp.0", "features.3.0.mlp.0"]
    assert {name for name, reason in found.left_alone.items() if reason == UNBOUNDED} == {
        "features.1.0.mlp.3", "features.2.reduction", "features.3.0.mlp.3",
    }  # fmt: skip


def test_the_amount_of_work_is_bounded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not set(survey(Chain().eval()).left_alone.values()) & {UNBOUNDED}
    monkeypatch.setattr(dependency, "WORK", 10)
    found = survey(Chain().eval())
    assert not found.groups and found.left_alone["b"] == UNBOUNDED


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tiny_swin_and_a_tiny_maxvit_are_pruned() -> None:
    torch.manual_seed(0)
    pruned(swin(), 32, share=0.9, use_out_dependencies=True)
    net = MaxVit(
        (32, 32),
        8,
        2,
        [8, 8],
        [1, 1],
        8,
        stochastic_depth_prob=0.0,
        norm_layer=nn.BatchNorm2d,
        mlp_ratio=2,
        num_classes=5,
    )
    pruned(net.eval(), 32, share=0.95, use_out_dependencies=True)


@pytest.mark.exhaustive
@pytest.mark.full
def test_googlenet_with_its_auxiliary_heads_trains_after_the_cut() -> None:
    torch.manual_seed(0)
    net = GoogLeNet(num_classes=5, aux_logits=True, init_weights=False).eval()
    result = pruned(net, 64, share=0.8)
    outputs = copy.deepcopy(result.module).train()(torch.rand(2, 3, 64, 64))
    assert [len(part) for part in outputs] == [2, 2, 2] and outputs.aux_logits1 is not None
    groups = channel_groups(net, lambda model, x: model(x), torch.rand(1, 3, 64, 64), exclude=(), coupled=False)
    assert any(member.layer.startswith("aux1") for group in groups for member in group.members)
