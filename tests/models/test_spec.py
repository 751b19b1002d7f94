"""An architecture survives JSON: what is rebuilt takes the original's weights and computes the same."""

from __future__ import annotations

import json

import pytest
import torch

from hybridprune.models.factored import FactoredConv2d, FactorEdit
from hybridprune.models.spec import NetworkSpec
from tests.cases import random_images, random_net

EDITS = (
    FactorEdit("backbone.blocks.1.conv1", 2, 3),
    FactorEdit("backbone.blocks.2.conv2", None, 5),
    FactorEdit("backbone.blocks.2.projection.0", 3, None),
)


@pytest.mark.parametrize("edits", [(), EDITS], ids=["dense", "factored"])
def test_round_trip(edits: tuple[FactorEdit, ...]) -> None:
    net = random_net(14, 4, 5, edits)
    spec = NetworkSpec("resnet", 14, 4, 5, edits)
    again = NetworkSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    rebuilt = again.build().eval()
    rebuilt.load_state_dict(net.state_dict())  # strict
    images = random_images(3)
    assert torch.equal(rebuilt(images).logits, net(images).logits)


def test_edits_are_really_made() -> None:
    net = NetworkSpec("resnet", 14, 4, 5, EDITS).build()
    factored = {name for name, module in net.named_modules() if isinstance(module, FactoredConv2d)}
    assert factored == {edit.layer for edit in EDITS}


@pytest.mark.parametrize("missing", ["network", "depth", "width", "classes", "edits"])
def test_incomplete_record_is_refused(missing: str) -> None:
    record = NetworkSpec("resnet", 8, 4, 5).to_json()
    del record[missing]
    with pytest.raises(KeyError, match=missing):
        NetworkSpec.from_json(record)
