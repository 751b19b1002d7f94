"""benchmarks/true_losses.py: cuts lose what is expected in the model, and true losses are those of the images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.true_losses import settled_loss, without_channels, without_directions
from hybridprune.api.first_look import Task, look
from hybridprune.api.prunable import PlainNetwork
from hybridprune.config import CurvatureOptions, CutOptions
from hybridprune.curvature import CROSS_ENTROPY
from hybridprune.models.factored import FactoredLayer
from hybridprune.models.spec import NetworkSpec
from hybridprune.pruning.budget.space import Budget
from hybridprune.pruning.directions.inner_channels import removal
from hybridprune.pruning.make_plan import make_plan
from hybridprune.pruning.plan import DirectionPlan

BLOCK = "blocks.1"


@pytest.fixture(scope="module")
def plan() -> DirectionPlan:
    draw = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 3, 8, 8, generator=draw), torch.randint(10, (8,), generator=draw)) for _ in range(2)]
    torch.manual_seed(0)
    net = NetworkSpec("resnet", 8, 8, 10).build().backbone
    batches, example = look(net, data, Task(CROSS_ENTROPY, None))
    few = CurvatureOptions(curvature_images=16, moment_images=16)
    network = PlainNetwork(net, batches, example, (), 0)
    found = make_plan(network, CutOptions(separable="none"), few, budget=Budget(macs=network.cost.macs // 2))
    assert isinstance(found, DirectionPlan)
    return found


def test_as_many_channels_go_as_the_loss_allows(plan: DirectionPlan) -> None:
    found = removal(plan.decompositions[f"{BLOCK}.conv2"])
    wanted = float(found.losses[3]) * (1 + 1e-9)
    net, expected = without_channels(plan, BLOCK, wanted)
    weight = net.get_submodule(f"{BLOCK}.conv2").get_parameter("weight")
    gone = [j for j in range(weight.shape[1]) if not weight[:, j].any()]
    assert sorted(found.order[:3].tolist()) == gone and expected == float(found.losses[3])
    before = plan.network.model.get_submodule(f"{BLOCK}.conv2").get_parameter("weight")
    assert not torch.equal(weight, before)  # of the copy alone


def test_directions_lose_about_as_much(plan: DirectionPlan) -> None:
    found = removal(plan.decompositions[f"{BLOCK}.conv2"])
    wanted = float(found.losses[4])
    net, expected = without_directions(plan, BLOCK, wanted)
    assert expected == pytest.approx(wanted, rel=0.3)
    cut = [name for name, layer in net.named_modules() if isinstance(layer, FactoredLayer)]
    assert cut and all(name.startswith(BLOCK) for name in cut)
    assert not any(isinstance(layer, FactoredLayer) for layer in plan.network.model.modules())


def test_a_loss_is_that_of_the_images_with_their_own_statistics() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
    pairs = [(5 * torch.randn(20, 4) + 2, torch.randint(3, (20,))) for _ in range(2)]
    found = settled_loss(net, pairs[:1], pairs)
    x = pairs[0][0]
    settled = (torch.cat([x for x, _ in pairs]) - x.mean(0)) / (x.var(0, unbiased=True) + 1e-5).sqrt()
    expected = F.cross_entropy(net[1](settled), torch.cat([y for _, y in pairs]))
    assert found == pytest.approx(expected.item(), rel=0.01)
