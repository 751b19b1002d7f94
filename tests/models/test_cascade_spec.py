"""The specification of a cascade: it builds what was described, and refuses what is none."""

from __future__ import annotations

import dataclasses
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
    shared = dataclasses.replace(SPEC, trunks=(0, 1))
    assert spec_from_json(json.loads(json.dumps(shared.to_json()))) == shared
    assert "trunks" not in SPEC.to_json(), "a record of older versions is one of no trunks"


def test_the_members_are_built_with_their_edits_and_without_their_gates() -> None:
    net = SPEC.build()
    assert isinstance(net.get_submodule("members.0.blocks.1.conv1"), FactoredConv2d) and net.answer == "last"
    assert [len(list(net.get_submodule(f"members.{k}.blocks").children())) for k in (0, 1)] == [3, 6]
    assert {name.split(".")[0] for name in net.state_dict()} == {"members", "gate", "temperatures"}
    assert net(torch.zeros(2, 3, 8, 8)).logits.shape == (2, 10)


def test_names() -> None:
    assert SPEC.label == "cascade-resnet8-w4-resnet14-w4"
    assert str(SPEC) == "cascade of resnet-8, width 4, gate rnn; resnet-14, width 4, gate rnn"
    assert str(dataclasses.replace(SPEC, trunks=(0, 1))).endswith("resnet-14, width 4, gate rnn from block 1 on")
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
        ({"trunks": [0]}, "trunks .* of 2 members"),
        ({"trunks": [1, 1]}, "0 for the first"),
        ({"trunks": [0, -1]}, "trunks is -1"),
        ({"trunks": [0, 1.5]}, "trunks is 1.5"),
        ({"trunks": "ab"}, "trunks"),
        ({"members": [SMALL.to_json()] * 3, "trunks": [0, 2, 1]}, "begins before the features"),
    ],
)
def test_wrong_records_are_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises((KeyError, TypeError, ValueError), match=said):
        spec_from_json({**SPEC.to_json(), **change})
    with pytest.raises(KeyError):
        spec_from_json({key: value for key, value in SPEC.to_json().items() if key != "answer"})


@pytest.mark.parametrize("trunk", [3, 100])
def test_a_trunk_of_all_blocks_or_more_builds_nothing(trunk: int) -> None:
    record = dataclasses.replace(SPEC, trunks=(0, trunk)).to_json()
    with pytest.raises(ValueError, match=f"a trunk of {trunk} blocks, of a network that has"):
        spec_from_json(record).build()
