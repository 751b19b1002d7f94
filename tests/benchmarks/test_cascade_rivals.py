"""benchmarks/cascade_rivals.py on tiny networks and the digits: budgets, costs counted once, and a trunk that stays."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from benchmarks import cascade_rivals, converged
from benchmarks.cascade_choices import Images, costs
from benchmarks.cascade_members import Networks
from benchmarks.cascade_rivals import gates_at_blocks, members_on_trunk, shared_trunk
from benchmarks.converged import Bench
from benchmarks.recipe import Recipe
from hybridprune.measure.cost import count
from hybridprune.models.backbone import Backbone
from hybridprune.models.cascade import Cascade
from hybridprune.models.spec import NetworkSpec
from hybridprune.models.trunk import Trunk, graft
from hybridprune.routing.stopping import stop_macs
from tests.benchmarks.test_converged import images as digits

pytestmark = pytest.mark.full
ONTO, FIRST = "14", "8@0.6x1"


@pytest.fixture
def networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Networks:
    for depth in (8, 14):
        torch.manual_seed(depth)
        state = NetworkSpec("resnet", depth, 4, 10).build().backbone.state_dict()
        torch.save(state, tmp_path / f"cifar100_resnet{depth}.pth")
    monkeypatch.setattr(converged, "WIDTH", 4)
    monkeypatch.setattr("benchmarks.cascade_members.OF", 14)
    for name, value in {"FIRST": FIRST, "SHARED": 1, "EPOCHS": 1, "GATE_EPOCHS": 1}.items():
        monkeypatch.setattr(cascade_rivals, name, value)
    monkeypatch.setattr(cascade_rivals, "GATED", {0.7: ONTO})
    monkeypatch.setattr(cascade_rivals, "ONTO", {0.9: ONTO})
    return Networks(Bench(digits(), tmp_path, tmp_path / "work"), 0, Recipe(lr=0.01, precision="fp32"))


def parts(networks: Networks) -> Images:
    data = networks.bench.images
    return Images(data.dataset.test.labels, data.parts.validation, data.parts.train)


def test_gates_at_blocks_meet_the_budget_and_are_resumed(networks: Networks) -> None:
    images, whole = parts(networks), networks.member(ONTO).macs
    found = gates_at_blocks(networks, images, 0.7, 0.7 * whole)
    assert found.macs == pytest.approx(0.7 * whole, rel=0.15)  # a few images, and few operating points
    assert found.correct.shape == images.report.shape and len(found.members) == 1
    again = gates_at_blocks(networks, images, 0.7, 0.7 * whole)
    assert torch.equal(again.correct, found.correct) and again.macs == found.macs


def test_a_trunk_is_counted_once_stays_as_it_is_and_the_rest_answers_as_before(networks: Networks) -> None:
    parent = networks.build(ONTO)
    assert isinstance(parent, Backbone)
    before = copy.deepcopy(parent)
    first, second = members_on_trunk(networks, ONTO)
    assert torch.equal(second.logits, networks.bench.images.logits(before))
    assert not torch.allclose(first.logits, networks.member(FIRST).logits)
    joined, tail = graft(parent, networks.build(FIRST), 1)
    cost = count(Cascade([joined, tail], 10), 8)
    assert costs([first, second]).tolist() == stop_macs(cost).tolist()
    state = torch.load(networks.bench.work / f"trunk-{FIRST}-on-{ONTO}-seed0" / "1.pt", weights_only=True)["net"]
    for name, value in Trunk(before, 1).backbone.state_dict().items():
        assert torch.equal(state[name], value), name  # weights and BatchNorm statistics
    assert any(not torch.equal(state[name], value) for name, value in joined.state_dict().items())


def test_a_cascade_on_a_trunk_meets_the_budget(networks: Networks) -> None:
    whole = networks.member(ONTO).macs
    found = shared_trunk(networks, parts(networks), 0.9, 0.9 * whole)
    assert found.macs == pytest.approx(0.9 * whole, rel=0.1)
    assert found.members == (f"{FIRST} from block 1 of {ONTO}", ONTO)
