"""The trainings before a cut: their order, what they start from, what is cut, and that all can be interrupted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hybridprune.config import SparsityOptions
from hybridprune.config.methods import METHODS
from hybridprune.engine.descent import Descent
from hybridprune.engine.pressure import Drive
from hybridprune.errors import Interrupted, UserError
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.pruning.channels.scores.magnitude import l1
from hybridprune.pruning.left_alone import AT_OUTPUT
from hybridprune.pruning.method import ChannelMethod
from hybridprune.pruning.sparse_training.protocol import Removal, SparseTraining, Sparsity, Target
from hybridprune.pruning.sparse_training.scale_l1 import ScalePressure, all_scales, doomed_scales
from hybridprune.stages import prune, sp
from hybridprune.store.weights import read_tensors
from tests.cli.tiny_runs import DIGITS, OWN

pytestmark = pytest.mark.full
STEPS = 10
OTHER = {"sparse_start": "parent", "cut_weights": "inherit"}
OPTIONS = ("--sparse_epochs", "1", "--method", "slimming", "--alpha", "0")


class Scaled(nn.Module):
    """A BatchNorm with a parameter more."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm
        self.more = nn.Parameter(torch.ones(norm.num_features))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.more[:, None, None]


class Watched:
    """A method with both trainings that writes down what it is given."""

    def __init__(self) -> None:
        self.log: list[tuple[str, Removal, Mapping[str, Tensor]]] = []
        both = Sparsity(
            SparseTraining(self.before), SparseTraining(self.after, start="parent"), self.conclude, self.select
        )
        self.method = ChannelMethod(l1, sparsity=both)
        self.selected: Removal | None = None

    def note(self, what: str, target: Target) -> None:
        self.log.append((what, target.removed, {k: v.clone() for k, v in target.model.state_dict().items()}))

    def before(self, target: Target, options: SparsityOptions) -> Drive:
        assert options.sparse_epochs == 1
        self.note("before", target)
        backbone = target.model.get_submodule("backbone")
        backbone.bn = Scaled(backbone.get_submodule("bn"))  # type: ignore[assignment,arg-type]
        return Drive(ScalePressure(all_scales(target.model), 0.1), {"backbone.bn.more": 3.0}, {"backbone.bn.more"})

    def after(self, target: Target, options: SparsityOptions) -> Drive:
        self.note("after", target)
        return Drive(ScalePressure(doomed_scales(target), 0.1))

    def conclude(self, model: nn.Module) -> None:
        backbone = model.get_submodule("backbone")
        if isinstance(backbone.bn, Scaled):
            with torch.no_grad():
                backbone.bn.norm.weight.mul_(backbone.bn.more)
                backbone.bn.norm.bias.mul_(backbone.bn.more)
            backbone.bn = backbone.bn.norm

    def select(self, target: Target, options: SparsityOptions) -> Removal | None:
        self.note("select", target)
        return self.selected


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("sparse")
    sp.main([*DIGITS, *OWN["sp"], "--result_dir", str(results)])
    return results


def stage_2(parent: Path, results: Path, *more: str) -> Path:
    (run,) = (parent / "default").iterdir()
    prune.main([*DIGITS, *OWN["prune"], *OPTIONS, "--checkpoint_file", str(run), "--result_dir", str(results), *more])
    return next(path for path in (results / "default").iterdir() if path.is_dir())


def weights_of(parent: Path) -> dict[str, Tensor]:
    (run,) = (parent / "default").iterdir()
    return dict(read_tensors(run / "model.safetensors"))


def watch(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    monkeypatch.setitem(METHODS.added, "slimming", watched.method)
    return watched


def widths(run: Path) -> dict[str, int]:
    spec = json.loads((run / "spec.json").read_text())
    return {e["layer"]: e["out_channels"] for e in spec["network"]["edits"] if e["layer"].endswith("conv1")}


def test_train_select_train_cut(parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = watch(monkeypatch)
    watched.selected = {"backbone.blocks.0.conv1": [0, 2], "backbone.blocks.2.conv1": [5]}
    run = stage_2(parent, tmp_path)
    first, selection, second = watched.log
    assert [first[0], selection[0], second[0]] == ["before", "select", "after"]
    assert [first[1], selection[1], second[1]] == [{}, {}, watched.selected]
    original = weights_of(parent)
    for name, value in original.items():
        assert torch.equal(first[2][name], value) and torch.equal(second[2][name], value), name
    assert not torch.equal(selection[2]["backbone.conv.weight"], original["backbone.conv.weight"])
    assert selection[2].keys() == original.keys()  # it was concluded
    assert widths(run) == {"backbone.blocks.0.conv1": 2, "backbone.blocks.2.conv1": 15}
    result = json.loads((run / "result.json").read_text())
    assert result["sparse_epochs"] == 2 and result["method"] == "slimming"
    phases = [json.loads(line)["phase"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert phases == [0, 0, 1, 1, 2, 2, 2]


def test_the_channels_that_go_are_those_that_were_selected(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch(monkeypatch)
    watched.selected = {"backbone.blocks.0.conv1": [0, 3]}
    ended: list[Mapping[str, Tensor]] = []
    train = prune._Trainer.train

    def note(self: Any, net: GatedNetwork, *more: Any) -> None:
        train(self, net, *more)
        ended.append({name: value.clone() for name, value in net.state_dict().items()})

    monkeypatch.setattr(prune._Trainer, "train", note)
    run = stage_2(parent, tmp_path, "--epochs_start", "0", "--epochs_end", "0")
    cut = read_tensors(run / "model.safetensors")
    name = "backbone.blocks.0.conv1.weight"
    assert torch.equal(cut[name], ended[1][name][[1, 2]])


@pytest.fixture(scope="module")
def whole(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with both trainings that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patched:
        watch(patched).selected = {"backbone.blocks.0.conv1": [0, 2]}
        return stage_2(parent, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("at", [3, STEPS + 3, 2 * STEPS + 3])
def test_interrupted_in_any_training(
    at: int, parent: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch(monkeypatch).selected = {"backbone.blocks.0.conv1": [0, 2]}
    steps = 0
    step = Descent.step

    def interrupt(self: Descent, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == at:
            raise Interrupted("now")
        step(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Descent, "step", interrupt)
        with pytest.raises(Interrupted):
            stage_2(parent, tmp_path / "cut")
    resumed = stage_2(parent, tmp_path / "cut", "--resume")
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_slimming_shrinks_scales_and_hits_the_budget(parent: Path, tmp_path: Path) -> None:
    run = stage_2(parent, tmp_path, "--sparsity_weight", "0.05", "--sparse_epochs", "2")
    result = json.loads((run / "result.json").read_text())
    assert result["macs"]["backbone"] <= 0.6 * result["dense"]["macs"] and result["sparse_epochs"] == 2
    scales = [
        sum(float(v.abs().sum()) for k, v in tensors.items() if ".bn" in k and k.endswith("weight") and "blocks" in k)
        / sum(v.numel() for k, v in tensors.items() if ".bn" in k and k.endswith("weight") and "blocks" in k)
        for tensors in (weights_of(parent), read_tensors(run / "model.safetensors"))
    ]
    assert scales[1] < 0.95 * scales[0]


@pytest.mark.parametrize("what", ["sparse_start", "cut_weights"])
def test_from_scratch(what: str, parent: Path, tmp_path: Path) -> None:
    epochs = ("--sparse_epochs", "0", "--epochs_start", "0", "--epochs_end", "0")
    runs = {start: stage_2(parent, tmp_path / start, *epochs, f"--{what}", start) for start in ("scratch", OTHER[what])}
    fresh, kept = (read_tensors(runs[start] / "model.safetensors") for start in ("scratch", OTHER[what]))
    original = weights_of(parent)["backbone.classifier.weight"]
    assert torch.equal(kept["backbone.classifier.weight"], original)
    assert not torch.equal(fresh["backbone.classifier.weight"], original)


def test_several_cuts_are_refused_before_anything_is_made(parent: Path, tmp_path: Path) -> None:
    for flags in (("--max_iter", "2"), ("--back_ratio", "0.5")):
        with pytest.raises(UserError, match="--method slimming trains towards one cut"):
            stage_2(parent, tmp_path, *flags)
    assert not list(tmp_path.iterdir())


def test_what_a_user_would_expect_to_be_cut_is_named(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hybridprune.pruning.left_alone.BY_DESIGN", frozenset())
    stage_2(parent, tmp_path, "--sparse_epochs", "0")
    (told,) = [line for line in "".join(capsys.readouterr()).splitlines() if line.startswith("left alone: ")]
    assert f"backbone.classifier ({AT_OUTPUT})" in told
