"""The specification of a cascade: it builds what was described, and refuses what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from hybridprune.models.cascade_spec import CascadeSpec, spec_from_json
from hybridprune.models.edits import FactorEdit
from hybridprune.models.factored import FactoredConv2d
from hybridprune.models.spec import NetworkSpec

SMALL = NetworkSpec("resnet", 8, 4, 10, (FactorEdit("backbone.blocks.1.conv1", 2, 3),))
SPEC = CascadeSpec((SMALL, NetworkSpec("resnet", 14, 4, 10)), "last")


def test_round_trip() -> None:
    assert spec_from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC
    assert spec_from_json(json.loads(json.dumps(SMALL.to_json()))) == SMALL


def test_the_members_are_built_with_their_edits_and_without_their_gates() -> None:
    net = SPEC.build()
    assert isinstance(net.get_submodule("members.0.blocks.1.conv1"), FactoredConv2d) and net.answer == "last"
    assert [len(list(net.get_submodule(f"members.{k}.blocks").children())) for k in (0, 1)] == [3, 6]
    assert {name.split(".")[0] for name in net.state_dict()} == {"members", "gate", "temperatures"}
    assert net(torch.zeros(2, 3, 8, 8)).logits.shape == (2, 10)


def test_names() -> None:
    assert SPEC.label == "cascade-resnet8-w4-resnet14-w4"
    assert str(SPEC) == "cascade of resnet-8, width 4, gate rnn; resnet-14, width 4, gate rnn"
    assert (SPEC.classes, SPEC.depth, SPEC.edits, SPEC.network) == (10, 22, (), "cascade")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"members": [SMALL.to_json()]}, "a cascade of 1 members"),
        ({"members": [SMALL.to_json()] * 9}, "a cascade of 9 members"),
        ({"members": "resnet"}, "members"),
        ({"members": [SMALL.to_json(), {**SMALL.to_json(), "classes": 9, "edits": []}]}, "numbers of classes"),
        ({"members": [SMALL.to_json(), SPEC.to_json()]}, "unknown network"),
        ({"answer": "first"}, "unknown answer"),
        ({"answer": 3}, "answer"),
        ({"gate": "rnn"}, "unknown field"),
    ],
)
def test_wrong_records_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises((KeyError, TypeError, ValueError), match=said):
        spec_from_json({**SPEC.to_json(), **change})
    with pytest.raises(KeyError):
        spec_from_json({key: value for key, value in SPEC.to_json().items() if key != "answer"})
