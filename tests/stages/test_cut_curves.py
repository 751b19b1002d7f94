"""The curves over the cuts of stage 2: shares and parameters of layers, and a time."""

from __future__ import annotations

import dataclasses

import torch

from hybridprune.models.edits import FactorEdit, ResizeEdit
from hybridprune.models.spec import NetworkSpec
from hybridprune.stages.cut_curves import cut_points


def test_points_are_of_each_layer_and_of_the_whole() -> None:
    spec = NetworkSpec("resnet", 8, 4, 5)
    narrow = [ResizeEdit(f"backbone.blocks.0.{name}", *ends) for name, ends in (("conv1", (4, 3)), ("bn1", (3, 3)))]
    edits = (*narrow, ResizeEdit("backbone.blocks.0.conv2", 3, 4), FactorEdit("backbone.blocks.1.conv2", 2, 5))
    unpruned, net = spec.build(), dataclasses.replace(spec, edits=edits).build().train()
    points = cut_points(net, unpruned, torch.zeros(2, 3, 8, 8))
    assert points.pop("cut/inference_ms") > 0 and all(module.training for module in net.modules())
    assert points["params/blocks.0.conv1"] == 9 * 4 * 3 and points["ratio/blocks.0.conv1"] == 3 / 4
    assert points["params/blocks.1.conv2"] == 8 * 2 + 9 * 2 * 5 + 5 * 8
    assert points["ratio/blocks.1.conv2"] == (8 * 2 + 9 * 2 * 5 + 5 * 8) / (9 * 8 * 8)
    left = sum(p.numel() for p in net.backbone.parameters())
    assert points["cut/params"] == left and points["cut/ratio"] == left / sum(
        p.numel() for p in unpruned.backbone.parameters()
    )
    untouched = {name for name, value in points.items() if name.startswith("ratio/") and value == 1}
    assert "ratio/classifier" in untouched and len(untouched) == len([n for n in points if n.startswith("ratio/")]) - 3
