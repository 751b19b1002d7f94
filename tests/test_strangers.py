"""Run folders, pruned modules and deployed networks of somebody else: checked before memory is taken for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hybridprune.api.pruned import Pruned, PrunedSpec
from hybridprune.api.save import restore, save
from hybridprune.errors import UserError
from hybridprune.models.edits import FactorEdit, ResizeEdit, apply_edits
from hybridprune.models.spec import NetworkSpec
from hybridprune.stages.images import read_split
from hybridprune.store.run_folder import RunFolder, RunSpec
from tests.damaged_json import damage, quickly
from tests.store.run_folders import FACTORED, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("stranger") / "run", FACTORED)


def check_run(run: RunFolder, data: st.DataObject) -> None:
    record = FACTORED.to_json()
    record["network"]["edits"].append(ResizeEdit("backbone.blocks.0.conv1", 2, 2).to_json())
    spoilt = damage(record, data)
    (run.path / "spec.json").write_text(json.dumps(spoilt))
    found = quickly(run.load_network)
    if not isinstance(found, UserError):  # what was changed does not shape the network
        assert found[1] == RunSpec.from_json(spoilt) and found[1].network.build().state_dict().keys()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_specification_is_a_user_error_or_does_no_harm(data: st.DataObject, run: RunFolder) -> None:
    check_run(run, data)


@pytest.mark.full
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_damaged_specifications(data: st.DataObject, run: RunFolder) -> None:
    check_run(run, data)


def nets() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


PRUNED = PrunedSpec((FactorEdit("0", 2, 3), ResizeEdit("3", 4, 1)), 10, 20, 30, 40, {"1": "nothing to cut"})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_pruned_module(data: st.DataObject, tmp_path: Path) -> None:
    net = nets()
    apply_edits(net, PRUNED.edits)
    save(Pruned(net, PRUNED), tmp_path)
    (tmp_path / "spec.json").write_text(json.dumps(damage(PRUNED.to_json(), data)))
    fresh = nets()
    before = sum(p.numel() for p in fresh.parameters())
    found = quickly(lambda: restore(tmp_path, fresh))
    if isinstance(found, UserError):
        assert str(tmp_path) in str(found)
    assert sum(p.numel() for p in fresh.parameters()) <= 2 * before  # ranks within the channels, no wider layers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"depth": 1_800_002}, "depth is 1800002, which is not in"),
        ({"width": 10**12}, "width is 1000000000000, which is not in"),
        ({"classes": 10**9}, "classes is 1000000000, which is not in"),
        ({"depth": 4094}, "too few for the 4094 layers"),
        ({"depth": 9}, "6n . 2"),
        ({"depth": 14, "edits": []}, "checkpoint of another architecture: backbone"),
        ({"width": 16384}, "checkpoint of another architecture"),
        ({"network": "torchvision:vit_h_14"}, "not a run's specification"),
        ({"edits": [{"layer": "backbone.blocks.1.conv1", "rank_in": 3, "rank_out": 3}]}, "ranks 3 and 3 of a"),
        ({"edits": [{"kind": "resize", "layer": "backbone.conv", "in_channels": 3, "out_channels": 3}]}, "is smaller"),
        ({"edits": [{"layer": "backbone", "rank_in": 1, "rank_out": 1}]}, "no convolution"),
    ],
    ids=str,
)
def test_no_memory_is_taken_for_what_the_weights_do_not_hold(
    changes: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run", FACTORED)
    record = FACTORED.to_json()
    (run.path / "spec.json").write_text(json.dumps({**record, "network": {**record["network"], **changes}}))
    build = NetworkSpec.build
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)

    def on_meta(self: NetworkSpec) -> Any:
        assert torch.empty(()).is_meta
        return build(self)

    monkeypatch.setattr(NetworkSpec, "build", on_meta)
    with pytest.raises(UserError, match=words) as caught:
        run.load_network()
    assert str(run.path) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("format", ["1", 2, None, [1]]),
        ("stage", ["train", None, ["sp"], 3]),
        ("run_id", [None, 3]),
        ("class_names", ["abc", ["a", "b"], ["a", "b", 3], None, []]),
        ("input_size", ["8", 0, -8, 10**9, True, 8.5, None]),
        ("mean", ["abc", [1e7] * 3, [0.5, 0.5], [0.5, 0.5, "0.5"], [0.5, 0.5, float("nan")], [True] * 3]),
        ("std", [[10**400] * 3, [0.5, 0.5, 0.0], [0.5, 0.5, -1.0], [0.5, 0.5, float("inf")], 0.5]),
        ("dataset", [None, 3]),
        ("dataset_digest", [None, 3]),
        ("centre_crop", ["yes", 1, None]),
        ("network", [None, "resnet", [], {}]),
    ],
)
def test_every_field_is_checked(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises((KeyError, TypeError, ValueError), match=field):
            RunSpec.from_json({**FACTORED.to_json(), field: value})


@pytest.mark.parametrize(
    "split",
    [{}, [], {"validation": [1], "total": "8"}, {"validation": [1], "total": 10**12}, {"validation": ["1"], "total": 8},
     {"validation": [True], "total": 8}, {"validation": 3, "total": 8}, {"validation": [9], "total": 8},
     {"validation": [[1]], "total": 8}, {"validation": [2**70], "total": 8}],
    ids=str,
)  # fmt: skip
def test_a_damaged_split(split: Any, run: RunFolder) -> None:
    (run.path / "split.json").write_text(json.dumps(split))
    with pytest.raises(UserError, match=r"split\.json"):
        read_split(run)


@pytest.mark.parametrize(
    "parent", [{}, {"path": 3, "run_id": "r0"}, {"path": "/", "run_id": None}, [], "r0", {"run_id": "r0"}], ids=str
)
def test_a_damaged_parent(parent: Any, run: RunFolder) -> None:
    (run.path / "result.json").write_text(json.dumps({"parent": parent}))
    with pytest.raises(UserError, match=r"result\.json: parent"):
        run.parent()
