"""Cascades that are saved, and put together elsewhere."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune.errors import UserError
from hybridprune.models.factored import FactoredConv2d
from tests.api.test_cascade import CLASSES, data, loader, reader
from tests.api.test_replaced_layers import NO_REFIT, QUICK


def small() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(24, CLASSES))


def middle() -> nn.Sequential:
    """A network with a BatchNorm, whose statistics are buffers."""
    return nn.Sequential(nn.Conv2d(3, 8, (1, 3), padding=(0, 1)), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                         nn.Linear(64, CLASSES))  # fmt: skip


def large() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 16, (1, 3)), nn.ReLU(), nn.Conv2d(16, 16, (1, 3)), nn.ReLU(), nn.Flatten(),
                         nn.Linear(64, CLASSES))  # fmt: skip


def fresh() -> list[nn.Module]:
    return [small(), middle(), large()]


@pytest.fixture(scope="module")
def found() -> hybridprune.Cascaded:
    """A cascade of a plain network and of two pruned ones, of which one is given as its module."""
    torch.manual_seed(0)
    quick: dict[str, Any] = {"target_flops": 0.6, "progress": False, "curvature": QUICK, "cut": NO_REFIT}
    between = hybridprune.prune(middle(), loader(256, size=64), method="l1", **quick).module
    dear = hybridprune.prune(large(), loader(256, size=64), **quick)
    return hybridprune.cascade(small(), dear, loader(512), target_flops=0.4, between=[between])


@pytest.fixture
def folder(found: hybridprune.Cascaded, tmp_path: Path) -> Path:
    hybridprune.save(found, tmp_path / "saved")
    return tmp_path / "saved"


IMAGES = data(200, 5)[0]


def test_what_was_saved_is_the_same_cascade(found: hybridprune.Cascaded, folder: Path) -> None:
    again = hybridprune.restore(folder, into=fresh())
    assert isinstance(again, hybridprune.Cascaded)
    routed, before = again.module(IMAGES, mode="executed"), found.module(IMAGES, mode="executed")
    assert all(map(torch.equal, routed, before)) and 0 < float(routed.decisions.mean()) < 1
    assert again(IMAGES).equal(found(IMAGES))
    facts = [name for name in vars(found) if name != "module"]
    assert {name: getattr(again, name) for name in facts} == {name: getattr(found, name) for name in facts}
    assert str(again) == str(found) and again.table() == found.table() and again.module.answer == "average"
    assert any(isinstance(m, FactoredConv2d) for m in again.module.members[2].modules()) and not again.module.training
    assert sum(p.numel() for p in again.module.parameters()) < sum(p.numel() for m in fresh() for p in m.parameters())
    assert hybridprune.accuracy(again, loader(200)) == hybridprune.accuracy(found, loader(200))


def test_it_is_saved_over_another_one_and_saved_again(found: hybridprune.Cascaded, folder: Path) -> None:
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert written.keys() == {"model.safetensors", "spec.json"}
    other = hybridprune.cascade(small(), reader(1, deep=True), loader(512), target_flops=0.5, answer="last")
    hybridprune.save(other, folder)
    assert len(json.loads((folder / "spec.json").read_text())["members"]) == 2
    last = hybridprune.restore(folder, into=(small(), reader(1, deep=True)))
    assert last.module.answer == "last" and last(IMAGES).equal(other(IMAGES))
    hybridprune.save(found, folder)
    hybridprune.save(hybridprune.restore(folder, into=fresh()), str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == written


def test_the_instances_stay_as_they_are_and_half_precision_becomes_single(
    found: hybridprune.Cascaded, folder: Path
) -> None:
    given = [member.half() for member in fresh()]
    before = [copy.deepcopy(member.state_dict()) for member in given]
    again = hybridprune.restore(folder, into=given)
    assert again(IMAGES).equal(found(IMAGES))
    for member, state in zip(given, before, strict=True):
        assert member.training and all(value.equal(state[name]) for name, value in member.state_dict().items())


def test_a_cascade_that_was_deployed_is_not_saved(found: hybridprune.Cascaded, tmp_path: Path) -> None:
    for k, name in ((1, r"between\[0\]"), (2, "large")):
        changed = copy.deepcopy(found)
        changed.module.members[k] = hybridprune.deploy(changed.module.members[k], IMAGES[:8], "cpu").module
        with pytest.raises(UserError, match=rf"of member {name} is .* save what cascade gave"):
            hybridprune.save(changed, tmp_path / "new")
    changed = copy.deepcopy(found)
    changed.module.members[0].add_module("more", nn.Linear(CLASSES, CLASSES))
    with pytest.raises(UserError, match=r"more\.bias of member small is \[5\]"):
        hybridprune.save(changed, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def wider() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(24, CLASSES), nn.Linear(CLASSES, CLASSES))


@pytest.mark.parametrize(
    ("into", "said"),
    [
        (fresh()[:2], r"^into: are 2, and .*saved holds a cascade of 3; give fresh .* small, between\[0\], large$"),
        (small(), r"^into: is a Sequential, and .* holds a cascade; give a list of fresh instances of its 3 members"),
        (3, r"^into: is a int, and "),
        ([small(), middle(), "large"], r"^into\[2\]: is a str; give a fresh instance of member large$"),
        ([small(), large(), middle()], r"^into\[1\]: is another kind of module than member between\[0\] of .*saved"),
        ([wider(), middle(), large()], r"model\.safetensors: .* architecture: members\.0\.2\.bias is nothing"),
        ([nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), middle(), large()], r"^into\[0\]: .* lazy layers"),
    ],
)
def test_other_networks_are_refused_in_one_line(into: Any, said: str, folder: Path) -> None:
    with pytest.raises(UserError, match=said) as error:
        hybridprune.restore(folder, into=into)
    assert "\n" not in str(error.value)


def without(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda record: record.pop(name)


def put(value: object, *path: Any) -> Callable[[dict[str, Any]], object]:
    def change(record: dict[str, Any]) -> None:
        place: Any = record
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *((without(name), f"{name} is missing") for name in ("answer", "members", "macs", "budget_macs", "classes")),
        (without("ahead"), r"ahead\.mean is missing"),
        (put("first", "answer"), "unknown answer 'first'"),
        (put([], "members"), "members are none"),
        (put(3, "members", 0), "name is missing"),
        (put(2.0, "members", 0, "rate"), r"rate is 2\.0"),
        (put([3], "members", 0, "edits"), "an edit is a int"),
        (put("a", "accuracy"), "accuracy is 'a'"),
        (put(0, "dense_macs"), "dense_macs is 0"),
        (put(None, "ahead", "low"), r"ahead\.low is None"),
    ],
)
def test_a_broken_record_names_its_file(change: Callable[[dict[str, Any]], object], said: str, folder: Path) -> None:
    record = json.loads((folder / "spec.json").read_text())
    change(record)
    (folder / "spec.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"^\S*spec\.json: not a cascade's specification \(.*{said}.*; save") as error:
        hybridprune.restore(folder, into=fresh())
    assert "\n" not in str(error.value)


def test_broken_weights_and_weights_of_others_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(UserError, match="truncated or not a safetensors file"):
        hybridprune.restore(folder, into=fresh())
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        hybridprune.restore(folder, into=fresh())


def test_it_is_no_run_and_no_pruned_module(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a cascade of your own; use hybridprune\.restore"):
        hybridprune.load(folder)
    hybridprune.save(hybridprune.Pruned(small(), hybridprune.PrunedSpec((), 0, 0, 0, 0)), tmp_path / "pruned")
    with pytest.raises(UserError, match="into: is a list; give a fresh instance of the unpruned module"):
        hybridprune.restore(tmp_path / "pruned", into=[small()])


class Sharing(nn.Module):
    """A network with one layer under two names, and a number that is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, CLASSES)
        self.same = self.first
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return self.same(x.flatten(1))


def test_weights_that_are_shared_are_shared_again(tmp_path: Path) -> None:
    torch.manual_seed(1)
    joined = hybridprune.cascade(Sharing(), reader(1, deep=True), loader(512), target_flops=0.6)
    hybridprune.save(joined, tmp_path)
    again = hybridprune.restore(tmp_path, into=[Sharing(), reader(0, deep=True)])
    assert again(IMAGES).equal(joined(IMAGES))
    first = again.module.members[0]
    assert isinstance(first, Sharing) and first.first is first.same
