"""nuspm through stage 2, and its masked network made small: without loss, at the MACs of the masks, once."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import hybridprune
from hybridprune.commands import reconfigure
from hybridprune.commands.finished_run import FinishedRun, Parser, add_batch_size
from hybridprune.engine.descent import Descent
from hybridprune.errors import Interrupted, RunFailed
from hybridprune.measure.cost import count
from hybridprune.pruning.methods.nuspm import method
from hybridprune.store.run_folder import RunFolder
from hybridprune.store.validation_logits import ValidationLogits
from tests.cli.tiny_runs import DIGITS, OWN, Result, assert_refused, contents, folder_of, run_here, stage
from tests.networks_and_images import batches_of, random_decisions, random_images, random_net
from tests.processes import run_forked

MODEL = "model.safetensors"
STEPS = 10
NUSPM = ("--method", "nuspm", "--target_flops", "0.5", "--sparse_epochs", "3", "--lr", "0.05", "--alpha", "0")
"""The masks freeze after 21 of 30 steps."""


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("nuspm") / "results"
    done = stage("sp", "--result_dir", results, "--epochs", "1")
    assert done.returncode == 0, done.stderr
    return folder_of(results, "sp")


def masked_run(parent: Path, results: Path, *more: str) -> Path:
    done = stage("prune", "--checkpoint_file", parent, "--result_dir", results, *NUSPM, *more)
    assert done.returncode == 0, done.stderr
    return folder_of(results, "prune")


@pytest.fixture(scope="module")
def whole(parent: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an epoch of fine-tuning; not to be changed."""
    return masked_run(parent, tmp_path_factory.mktemp("whole"), "--epochs_start", "1", "--epochs_end", "1")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def masks_in(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in tensors.items() if name.endswith("channel_mask.scalars")}


def reconfigured(*arguments: object) -> Result:
    return run_here("hybridprune.reconfigure", *arguments, "--device", "cpu")


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.full
def test_the_budget_is_met_by_masks_that_the_run_keeps(whole: Path) -> None:
    result = result_of(whole)
    assert 0.98 * 0.5 <= result["macs"]["backbone"] / result["dense"]["macs"] <= 0.5
    masks = masks_in(load_file(whole / "masked.safetensors"))
    # Both groups within blocks and those of the stages, of 3 blocks.
    assert len(masks) == 6
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    sparse = [record for record in records if record["phase"] == 0]
    assert sparse[0]["train_masks_of_budget"] == pytest.approx(2.0, rel=1e-3) and sparse[0]["train_masks_moved"] == 0
    assert 0.98 <= sparse[-1]["train_masks_of_budget"] <= 1
    assert sparse[-1]["train_masks_of_budget"] == result["macs"]["backbone"] / (0.5 * result["dense"]["macs"])
    assert "train_masks_of_budget" not in records[-1]


def test_it_trains_from_scratch(parent: Path, whole: Path) -> None:
    """Three epochs do not turn a filter by a right angle."""
    before, after = (load_file(path)["backbone.conv.weight"] for path in (parent / MODEL, whole / "masked.safetensors"))
    assert abs(float(torch.cosine_similarity(before.flatten(), after.flatten(), 0))) < 0.5


@pytest.mark.full
@pytest.mark.parametrize(
    "at", [25, *(pytest.param(step, marks=pytest.mark.full) for step in (STEPS // 2, 3 * STEPS + 4))]
)
def test_a_resumed_run_keeps_its_masks(
    at: int, parent: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted while they move, when they are frozen, and in the fine-tuning."""
    steps, step = 0, Descent.step

    def interrupt(self: Descent, *arguments: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == at:
            raise Interrupted("now")
        step(self, *arguments)

    epochs = ("--epochs_start", "1", "--epochs_end", "1")
    with monkeypatch.context() as patched:
        patched.setattr(Descent, "step", interrupt)
        stopped = stage("prune", "--checkpoint_file", parent, "--result_dir", tmp_path, *NUSPM, *epochs)
        assert stopped.returncode == 130
    resumed = masked_run(parent, tmp_path, *epochs, "--resume")
    for name in ("masked.safetensors", "model.safetensors"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.full
def test_frozen_masks_are_the_same_bits_to_the_end(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    step = Descent.step

    def watch(self: Descent, *arguments: Any) -> None:
        step(self, *arguments)
        seen.append({name: value.clone() for name, value in masks_in(dict(self.net.state_dict())).items()})

    monkeypatch.setattr(Descent, "step", watch)
    run = masked_run(parent, tmp_path, "--epochs_start", "0", "--epochs_end", "0")
    assert len(seen) == 3 * STEPS
    stored = masks_in(load_file(run / "masked.safetensors"))
    for later in seen[22:]:
        assert all(torch.equal(later[name], value) for name, value in stored.items())
    assert any(not torch.equal(seen[19][name], value) for name, value in stored.items())


@pytest.mark.full
def test_the_small_network_is_the_masked_one(whole: Path, tmp_path: Path) -> None:
    before = contents(whole)
    output = tmp_path / "small"
    done = reconfigured(whole, "--output", output)
    assert done.returncode == 0, done.stderr
    assert contents(whole) == before
    macs = result_of(output)["macs"]["backbone"]
    assert f"MACs of the masks {macs:,}, of the small network {macs:,}" in done.stdout
    assert "differ by" in done.stdout and str(output) in done.stdout
    parser = Parser(None)
    add_batch_size(parser)
    finished = FinishedRun.load(parser.parse_args([str(whole), "--device", "cpu"]))
    masked, _, of_masks = reconfigure.reconfigured(finished)
    small = hybridprune.load(output).network.eval()
    images, decisions = random_images(8), random_decisions(8, small.num_gates)
    masked.backbone.double()
    small.backbone.double()
    expected, found = (net(images.double(), decisions.double()) for net in (masked, small))
    assert float((expected.logits - found.logits).detach().abs().max()) < 1e-10
    assert torch.allclose(expected.gate_logits, found.gate_logits, atol=1e-5)
    assert count(small, 8).backbone_macs == macs == of_masks.macs == result_of(whole)["macs"]["backbone"]
    said = ValidationLogits.read(RunFolder(output), RunFolder(output).read_spec())
    assert said is not None
    validated = result_of(output)["validation"]["always_on"]["accuracy"]
    assert float((said.logits.argmax(1) == said.labels).double().mean()) == validated
    assert result_of(output)["parent"] == result_of(whole)["parent"]
    assert result_of(output)["group"] != result_of(whole)["group"]
    evaluated = run_here("hybridprune.evaluate", output, "--device", "cpu", "--mode", "always_on")
    assert f"accuracy {result_of(output)['test']['always_on']['accuracy']:.4f}" in evaluated.stdout
    assert run_here("hybridprune.report", tmp_path).returncode == 0


def test_a_layer_whose_masks_are_all_off_keeps_one_channel_and_nothing_is_lost(run: Path, tmp_path: Path) -> None:
    tensors = load_file(run / "masked.safetensors")
    for name in ("backbone.blocks.0.conv1", "backbone.blocks.1.conv2"):
        tensors[f"{name}.channel_mask.scalars"].fill_(0.3)
    save_file(tensors, run / "masked.safetensors")
    done = reconfigured(run, "--output", tmp_path / "small")
    assert done.returncode == 0, done.stderr
    edits = {e["layer"]: e for e in json.loads((tmp_path / "small" / "spec.json").read_text())["network"]["edits"]}
    for name in ("backbone.blocks.0.conv1", "backbone.blocks.1.conv2"):
        assert edits[name]["out_channels"] == 1
    assert result_of(tmp_path / "small")["macs"]["backbone"] < result_of(run)["macs"]["backbone"]


@pytest.mark.full
def test_an_excluded_layer_keeps_its_channels(parent: Path, tmp_path: Path) -> None:
    excluded = "backbone.blocks.0.conv1"
    run = masked_run(parent, tmp_path, "--epochs_start", "0", "--epochs_end", "0", "--exclude", excluded)
    done = reconfigured(run, "--output", tmp_path / "small")
    assert done.returncode == 0, done.stderr
    assert result_of(tmp_path / "small")["macs"] == result_of(run)["macs"]
    edits = json.loads((tmp_path / "small" / "spec.json").read_text())["network"]["edits"]
    narrowed = {e["layer"]: e["out_channels"] for e in edits}
    assert narrowed and narrowed.get(excluded, 4) == 4


@pytest.mark.full
def test_what_is_not_lossless_is_not_written(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = method.unread_channels
    monkeypatch.setattr(
        method, "unread_channels", lambda net, group: [(c + 1) % group.channels for c in right(net, group)]
    )
    done = reconfigured(whole, "--output", tmp_path / "small")
    assert done.returncode == 1 and "other logits" in done.stderr and not any(tmp_path.iterdir())
    monkeypatch.setattr(method, "unread_channels", lambda net, group: right(net, group)[1:])
    done = reconfigured(whole, "--output", tmp_path / "small")
    assert done.returncode == 1 and "the plan promised" in done.stderr and not any(tmp_path.iterdir())


def test_logits_that_differ_by_more_than_rounding_are_noticed() -> None:
    net = random_net(8, 4)
    batches = batches_of(random_images(4), torch.zeros(4), 2)
    assert reconfigure.largest_difference(net, net, batches) == 0
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.backbone.classifier.bias.add_(1e-6)
    with pytest.raises(RunFailed, match="other logits"):
        reconfigure.largest_difference(net, other, batches)


def test_users_mistakes(whole: Path, run: Path, finished: Path, tmp_path: Path) -> None:
    before = contents(whole)
    assert_refused(reconfigured(whole, "--output", finished), f"--output {finished}", "exists")
    assert_refused(reconfigured(whole, "--output", tmp_path / "no" / "where"), "--output", "there is no folder")
    for name in ("sp", "rl"):
        assert_refused(reconfigured(folder_of(finished, name)), "no run of hybridprune prune", "--method nuspm")
    assert_refused(reconfigured(folder_of(finished, "prune")), "--method fisher-tucker", "--method nuspm")
    assert_refused(reconfigured(tmp_path / "missing"), "missing", "no such run")
    assert contents(whole) == before
    masked = run / "masked.safetensors"
    masked.write_bytes(masked.read_bytes()[:-100])
    assert_refused(reconfigured(run), str(masked))
    masked.unlink()
    assert_refused(reconfigured(run), "without its masked.safetensors")
    shutil.copy(whole / "masked.safetensors", masked)
    (run / "masked.json").write_text("{}")
    assert_refused(reconfigured(run), "masked.json")
    (run / "result.json").unlink()
    assert_refused(reconfigured(run), "not finished")
    assert not run.with_name("run-reconfigured").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--target_flops", "0.001"), ("--target_flops", "the floor is")),
        (("--target_params", "0.5"), ("--target_flops", "--method nuspm")),
        (("--sparse_epochs", "0"), ("--sparse_epochs 0",)),
        (("--sparsity_weight", "0.1"), ("--sparsity_weight 0.1", "--alpha_nuc")),
        (("--max_iter", "2"), ("--max_iter 2",)),
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_with_it(
    flags: tuple[str, ...], words: tuple[str, ...], parent: Path, tmp_path: Path
) -> None:
    refused = stage("prune", "--checkpoint_file", parent, "--result_dir", tmp_path, *NUSPM, *flags)
    assert_refused(refused, *words)
    assert not folder_of(tmp_path, "prune").exists()


def test_without_a_budget_it_is_refused(parent: Path, tmp_path: Path) -> None:
    (tmp_path / "nuspm.json").write_text('{"method": "nuspm"}')
    where = ("--config_path", tmp_path / "nuspm.json", "--result_dir", tmp_path / "results")
    refused = run_here("main_prune.py", *DIGITS, *where, "--checkpoint_file", parent)
    assert_refused(refused, "--method nuspm", "give --target_flops")


@pytest.mark.full
def test_as_a_user_runs_it(parent: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    flags = (*DIGITS, *OWN["prune"], "--checkpoint_file", parent, "--result_dir", results, *NUSPM)
    trained = run_forked("main_prune.py", *flags, "--epochs_start", "0", "--epochs_end", "0", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    run = folder_of(results, "prune")
    done = run_forked("hybridprune.reconfigure", run, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    small = run.with_name(f"{run.name}-reconfigured")
    assert f"written: {small}" in done.stdout
    assert result_of(small)["macs"] == result_of(run)["macs"]
    again = run_forked("hybridprune.reconfigure", run, cwd=tmp_path)
    assert_refused(Result(again.returncode, again.stdout, again.stderr), "nothing is overwritten")
