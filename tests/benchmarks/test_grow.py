"""A grown network computes what the one it was grown from computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import grow
from benchmarks.grow import deepen, sources
from hybridprune.models.spec import NetworkSpec
from hybridprune.store.weights import load_weights
from tests.networks_and_images import random_images, randomised


@pytest.mark.parametrize(("depth", "deeper"), [(14, 20), (8, 26), (20, 20)])
@torch.no_grad()
def test_a_grown_network_computes_the_same(depth: int, deeper: int) -> None:
    net = randomised(NetworkSpec("resnet", depth, 4, 10).build()).eval()
    grown = NetworkSpec("resnet", deeper, 4, 10).build()
    for block in grown.backbone.blocks:
        torch.nn.init.normal_(block.bn2.weight)
    deepen(net, grown)
    images = random_images(3)
    assert torch.equal(grown.eval().backbone(images), net.backbone(images))
    # All of the old blocks are there, each once, and the gate of a new block is a copy.
    old = [block.conv2.weight for block in net.backbone.blocks]
    new = [block.conv2.weight for block in grown.backbone.blocks]
    assert all(sum(torch.equal(each, other) for other in new) == 1 for each in old)
    assert torch.equal(grown.gate.embeddings[0].weight, net.gate.embeddings[0].weight)
    assert torch.equal(grown.gate.cell.weight_hh, net.gate.cell.weight_hh)


def test_new_blocks_stand_behind_those_they_come_from() -> None:
    assert sources(2, 5) == [(0, True), (0, False), (0, False), (1, True), (1, False)]


@torch.no_grad()
def test_the_checkpoint_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "grown.safetensors"
    monkeypatch.setattr("sys.argv", ["grow", "--depth", "38", "--output", str(file)])
    grow.main()
    net = NetworkSpec("resnet", 38, 16, 100).build()
    load_weights(net, file)
    before = grow.DENSE.build()
    load_weights(before, grow.CHECKPOINT)
    images = random_images(2, 32)
    assert torch.equal(net.eval().backbone(images), before.eval().backbone(images))
