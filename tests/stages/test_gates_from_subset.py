"""Where gates start in stage 3 and in benchmarks/hybrid_arms.py: images, lessons and price, spelt out."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from hybridprune.config import RlConfig
from hybridprune.data.digits import load_digits
from hybridprune.measure.cost import count
from hybridprune.routing import subset as subsets
from hybridprune.routing.subset import Subset, start_from_subset
from hybridprune.stages import gates_from_subset as start
from hybridprune.stages.images import RunImages
from tests.networks_and_images import random_net


def images() -> RunImages:
    config = RlConfig()
    data = dataclasses.replace(config.data, dataset="digits", resize=8, batch_size=10, max_train_samples=120)
    config = dataclasses.replace(config, data=data, run=dataclasses.replace(config.run, seed=3))
    return RunImages.of(load_digits(resize=8), None, config, torch.device("cpu"))


def test_images_and_lessons_are_those_of_the_published_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subsets, "LESSONS", 3)
    net, pool = random_net(8, classes=10), images()
    cost = count(net, 8)
    budget = 0.8 * cost.backbone_macs
    own, other = copy.deepcopy(net), copy.deepcopy(net)
    found, price = start.gates_from_subset(own, cost, budget, pool, 0.3)
    expected = start_from_subset(other, cost, budget, pool.sample(2000, 500, "subset"), pool.training("lessons"))
    assert torch.equal(found.route, expected.route) and torch.equal(found.worth, expected.worth)
    assert price == (expected.price * cost.backbone_macs or 0.3)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), other.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(own.parameters(), net.parameters(), strict=True))


@pytest.mark.parametrize(("worth", "price"), [([4e-6, 2e-6], 3e-6), ([1e-6, -2e-6], 0.0)])
def test_the_price_is_of_the_whole_backbone_or_else_alpha(
    worth: list[float], price: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = Subset(torch.tensor([1.0, 0.0]), torch.tensor(worth).double())
    monkeypatch.setattr(start, "start_from_subset", lambda *_: chosen)
    net = random_net(8)
    cost = count(net, 8)
    found, first = start.gates_from_subset(net, cost, 0.0, images(), 0.3)
    assert found is chosen and first == pytest.approx(price * cost.backbone_macs if price else 0.3)
