"""Pruned modules that are pruned again, saved, and put together elsewhere."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hybridprune
from hybridprune.errors import UserError
from hybridprune.models.edits import FactorEdit, ResizeEdit
from hybridprune.models.factored import FactoredConv2d
from hybridprune.store.files import write_json
from tests.api.test_replaced_layers import NO_REFIT, QUICK, Listed, Plain, batches

SEQUENCES = [
    ("fisher-tucker", "fisher-tucker"),
    ("l1", "fisher-tucker"),
    ("fisher-tucker", "l1"),
    ("l1", "l1"),
    ("fisher-tucker", "l1", "fisher-tucker"),
]


def again(model: nn.Module, method: str, share: float = 0.75) -> hybridprune.Pruned:
    return hybridprune.prune(model, batches(), target_flops=share, method=method, curvature=QUICK, cut=NO_REFIT)


@pytest.mark.parametrize("methods", SEQUENCES, ids="+".join)
def test_a_module_that_was_pruned_again_is_rebuilt(methods: tuple[str, ...], tmp_path: Path) -> None:
    make = Listed if len(methods) > 2 else Plain
    images, results = batches()[0][0], [hybridprune.Pruned(make().eval(), hybridprune.PrunedSpec((), 0, 0, 0, 0))]
    for number, method in enumerate(methods):
        results.append(again(results[-1].module, method))
        hybridprune.save(results[-1], tmp_path / str(number))
        assert results[-1].spec.macs <= 0.75 * results[-1].spec.dense_macs
        assert results[-1].spec.edits != results[-2].spec.edits
    last = tmp_path / str(len(methods) - 1)
    expected = results[-1].module(images)
    for start in (make(), *(hybridprune.restore(tmp_path / str(n), into=make()) for n in range(len(methods)))):
        fresh = hybridprune.restore(last, into=start).eval()
        assert fresh(images).equal(expected)
    # And what was put together can be pruned again as well.
    more = again(hybridprune.restore(last, into=make()).eval(), "fisher-tucker", 0.9)
    hybridprune.save(more, tmp_path / "more")
    assert hybridprune.restore(tmp_path / "more", into=make()).eval()(images).equal(more.module(images))


def test_a_part_that_was_pruned_before(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.scale = body, nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.scale(self.body(x))

    once = again(Plain().eval(), "l1").module
    whole = again(Scaled(once).eval(), "fisher-tucker")
    hybridprune.save(whole, tmp_path)
    kinds = {type(edit) for edit in whole.spec.edits if edit.layer.startswith("body.")}
    assert kinds == {ResizeEdit, FactorEdit}
    images = batches()[0][0]
    assert hybridprune.restore(tmp_path, into=Scaled(Plain())).eval()(images).equal(whole.module(images))


def test_a_layer_that_is_dense_again(tmp_path: Path) -> None:
    model = Plain().eval()
    first = hybridprune.Pruned(model, hybridprune.PrunedSpec((FactorEdit("conv2", 2, 3),), 0, 0, 0, 0))
    hybridprune.restore(first.spec, into=model)
    hybridprune.restore(hybridprune.PrunedSpec((FactorEdit("conv2", None, None),), 0, 0, 0, 0), into=model)
    assert type(model.conv2) is nn.Conv2d and model.conv2.weight.shape == (12, 12, 3, 3)


def test_what_is_noted_is_no_part_of_the_module() -> None:
    model = Plain().eval()
    names = {n for n, _ in model.named_modules()} | model.state_dict().keys()
    pruned = again(model, "l1").module
    assert {n for n, _ in pruned.named_modules()} | pruned.state_dict().keys() == names
    assert vars(model).keys() == vars(Plain()).keys()
    copied = copy.deepcopy(pruned)
    assert again(copied, "l1").spec.edits == again(pruned, "l1").spec.edits


@pytest.mark.parametrize("change", ["layer", "more", "type"])
def test_a_module_that_was_changed_after_it_was_pruned_is_not_saved(change: str, tmp_path: Path) -> None:
    pruned = again(Plain().eval(), "fisher-tucker")
    hybridprune.save(pruned, tmp_path / "before")
    written = {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()}
    module, edited = pruned.module, pruned.spec.edits[0].layer
    if change == "layer":
        setattr(module, edited, nn.Conv2d(3, 3, 1))
    elif change == "more":
        module.add_module("head", nn.Linear(5, 5))
    else:
        factored = module.get_submodule(edited)
        assert isinstance(factored, FactoredConv2d)
        factored.core = nn.Conv2d(1, 1, 1)
    with pytest.raises(UserError, match=r"of the module is .* save what prune gave"):
        hybridprune.save(pruned, tmp_path / "before")
    assert {path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()} == written
    with pytest.raises(UserError, match="save what prune gave"):
        hybridprune.save(pruned, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_specification_of_another_module_is_not_saved(tmp_path: Path) -> None:
    pruned = again(Plain().eval(), "fisher-tucker")
    wrong = hybridprune.Pruned(pruned.module, hybridprune.PrunedSpec((FactorEdit("nothing", 1, 1),), 0, 0, 0, 0))
    with pytest.raises(UserError, match="does not belong to its specification"):
        hybridprune.save(wrong, tmp_path / "new")
    made = hybridprune.Pruned(Plain(), hybridprune.PrunedSpec((), 0, 0, 0, 0))
    hybridprune.save(made, tmp_path / "by hand")
    record = json.loads((tmp_path / "by hand" / "spec.json").read_text())
    assert record["edits"] == [] and isinstance(hybridprune.restore(tmp_path / "by hand", into=Plain()), Plain)
    assert torch.equal(made.module.get_parameter("conv1.weight"), Plain().conv1.weight)


def test_what_does_not_fit_leaves_the_module_as_it_is(tmp_path: Path) -> None:
    pruned = again(Plain().eval(), "l1")
    hybridprune.save(pruned, tmp_path / "whole")
    content = (tmp_path / "whole" / "model.safetensors").read_bytes()
    other = FactorEdit("conv2", 2, 3)
    for name, spec, weights in (
        ("truncated", pruned.spec, content[:-4]),
        ("other weights", dataclasses.replace(pruned.spec, edits=(other,)), content),
        ("other module", dataclasses.replace(pruned.spec, edits=(other, FactorEdit("nothing", 1, 1))), content),
    ):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "spec.json", spec.to_json())
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        fresh = Plain()
        before = copy.deepcopy(fresh.state_dict()), str(fresh)
        with pytest.raises(UserError, match=rf"{name}\S* .*(truncated|another architecture|another kind of module)"):
            hybridprune.restore(tmp_path / name, into=fresh)
        after = fresh.state_dict()
        assert str(fresh) == before[1] and after.keys() == before[0].keys()
        assert all(after[key].equal(value) for key, value in before[0].items())


def test_a_pruned_module_is_not_loaded_as_a_run(tmp_path: Path) -> None:
    made = hybridprune.Pruned(Plain(), hybridprune.PrunedSpec((), 0, 0, 0, 0))
    hybridprune.save(made, tmp_path)
    for given in (tmp_path, str(tmp_path / "model.safetensors"), made.spec):
        with pytest.raises(UserError, match=r"use hybridprune\.restore\(\.\.\., into="):
            hybridprune.load(given)  # type: ignore[arg-type]
