"""The three stages in sequence, what they hand over, and what their runs can be used for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import hybridprune
from hybridprune.data import EvalBatches, load_dataset
from hybridprune.stages.images import RunImages
from tests.cli.tiny_runs import (
    DIGITS,
    OWN,
    SCRIPTS,
    STAGES,
    TINY,
    assert_refused,
    contents,
    folder_of,
    run_here,
    stage,
    weights,
)
from tests.networks_and_images import all_pixels
from tests.processes import run_cli


def result_of(results: Path, name: str, **where: Any) -> dict[str, Any]:
    return json.loads((folder_of(results, name, **where) / "result.json").read_text())


def difference(text: str) -> float:
    """Of the logits, executed against masked, as ``evaluate`` prints it."""
    found = re.search(r"logits differ by (\S+) \(relative", text)
    assert found is not None, text
    return float(found.group(1))


@pytest.mark.full
@pytest.mark.parametrize("name", STAGES)
def test_the_test_images_are_read_once(name: str, results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, read = RunImages.test, []

    def counted(images: RunImages) -> EvalBatches:
        read.append(name)
        return test(images)

    monkeypatch.setattr(RunImages, "test", counted)
    done = stage(name, "--result_dir", results, "--exp_name", "again")
    assert done.returncode == 0, done.stderr
    assert read == [name]


def test_stages_hand_over_what_the_next_one_needs(finished: Path) -> None:
    sp, prune, rl = (result_of(finished, name) for name in STAGES)
    assert sp["parent"] is None
    assert (prune["parent"]["run_id"], rl["parent"]["run_id"]) == (sp["run_id"], prune["run_id"])
    assert (prune["parent"]["model_sha256"], rl["parent"]["model_sha256"]) == (
        sp["model_sha256"],
        prune["model_sha256"],
    )
    assert (
        sp["dense"]
        == prune["dense"]
        == rl["dense"]
        == {"params": sp["params"]["backbone"], "macs": sp["macs"]["backbone"]}
    )
    assert 0.55 * sp["macs"]["backbone"] < prune["macs"]["backbone"] <= 0.6 * sp["macs"]["backbone"]
    assert rl["macs"] == prune["macs"] and rl["params"] == prune["params"]
    splits = [json.loads((folder_of(finished, name) / "split.json").read_text()) for name in STAGES]
    assert splits[0] == splits[1] == splits[2]
    for result in (sp, prune, rl):
        routed = result["test"]["routed"]
        assert len(routed["block_rates"]) == 2
        assert routed["expected_macs"] <= result["macs"]["backbone"] + result["macs"]["gates"]
        assert 0 < result["test"]["always_on"]["accuracy"] <= 1
        assert result["test"]["images"] == len(load_dataset(**DIGITS_DATA).test)


DIGITS_DATA: dict[str, Any] = {
    "dataset": "digits",
    "data_dir": None,
    "img_type": "png",
    "resize": 8,
    "num_workers": 0,
    "download": False,
    "cache_dir": None,
}


@pytest.mark.parametrize("name", STAGES)
def test_evaluate_agrees_with_the_result_and_with_masked_execution(name: str, finished: Path) -> None:
    run, result = folder_of(finished, name), result_of(finished, name)
    for mode in ("executed", "masked", "always_on"):
        shown = run_here("hybridprune.evaluate", run, "--mode", mode, "--batch_size", 64, "--device", "cpu")
        assert shown.returncode == 0, shown.stderr
        reading = result["test"]["always_on" if mode == "always_on" else "routed"]
        assert f"accuracy {reading['accuracy']:.4f}," in shown.stdout
        macs = result["macs"]["backbone"] if mode == "always_on" else reading["expected_macs"]
        flops = f" {2 * macs / 1e9:.4g} GFLOPs, {macs / result['dense']['macs']:.1%} of dense (2 x MACs), "
        assert flops + ("without the gates" if mode == "always_on" else "gates counted") in shown.stdout
        if mode == "executed":
            assert difference(shown.stdout) <= 1e-5
    validation = run_here("hybridprune.evaluate", run / "model.safetensors", "--split", "validation", "--no-compare")
    assert f"accuracy {result['validation']['routed']['accuracy']:.4f}," in validation.stdout


@pytest.mark.parametrize("name", STAGES)
def test_predict_agrees_with_the_result(name: str, finished: Path) -> None:
    test = load_dataset(**DIGITS_DATA).test
    model = hybridprune.load(folder_of(finished, name))
    predictions = hybridprune.predict(model, list(all_pixels(test)))
    right = sum(p.label == model.classes[label] for p, label in zip(predictions, test.labels.tolist(), strict=True))
    routed = result_of(finished, name)["test"]["routed"]
    assert right / len(predictions) == pytest.approx(routed["accuracy"], abs=1e-9)
    executed = sum(p.blocks_executed for p in predictions) / len(predictions)
    assert executed == pytest.approx(sum(routed["block_rates"]), abs=1e-9)
    assert all(0 < p.probability <= 1 for p in predictions)


@pytest.mark.parametrize("name", STAGES)
def test_resuming_a_finished_run_changes_nothing(name: str, finished: Path) -> None:
    before = contents(finished)
    again = stage(name, "--result_dir", finished, "--resume")
    assert again.returncode == 0, again.stderr
    assert f"finished: {folder_of(finished, name)}" in again.stdout
    assert contents(finished) == before


@pytest.mark.parametrize("name", STAGES)
def test_a_second_run_gets_its_own_folder_and_the_same_weights(name: str, results: Path) -> None:
    before = contents(results)
    parent = () if name == "sp" else ("--checkpoint_file", folder_of(results, STAGES[STAGES.index(name) - 1]))
    assert stage(name, "--result_dir", results, *parent).returncode == 0
    first = folder_of(results, name)
    second = first.with_name(f"{first.name}-2")
    assert weights(second) == weights(first)
    assert {path: stamp for path, stamp in contents(results).items() if path in before} == before


@pytest.mark.parametrize("name", STAGES)
def test_an_unfinished_run_is_taken_up_with_resume_only(name: str, results: Path) -> None:
    run = folder_of(results, name)
    expected = weights(run)
    (run / "result.json").unlink()
    assert_refused(stage(name, "--result_dir", results), str(run), "--resume")
    other = ("--lr", "0.07")
    assert_refused(stage(name, "--result_dir", results, "--resume", *other), "lr", "0.07")
    done = stage(name, "--result_dir", results, "--resume")
    assert done.returncode == 0, done.stderr
    assert (run / "result.json").is_file() and weights(run) == expected


@pytest.mark.full
def test_two_cuts_in_two_iterations(results: Path) -> None:
    done = stage("prune", "--result_dir", results, "--exp_name", "two", "--max_iter", 2)
    assert done.returncode == 0, done.stderr
    run = folder_of(results, "prune", "two")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["epoch"]) for line in lines] == [(p, e) for p in (0, 1) for e in (0, 1, 2)]
    result = json.loads((run / "result.json").read_text())
    assert result["iterations"] == 2
    assert 0.55 * result["dense"]["macs"] < result["macs"]["backbone"] <= 0.6 * result["dense"]["macs"]
    assert hybridprune.count(hybridprune.load(run).network, 8).backbone_macs == result["macs"]["backbone"]


@pytest.mark.parametrize("options", [("--method", "eigendamage"), ("--method", "eigendamage", "--correct_eigenvalues")])
def test_the_other_method_meets_the_budget_too(options: tuple[str, ...], results: Path) -> None:
    done = stage(
        "prune", "--result_dir", results, "--exp_name", "other", "--epochs_start", 0, "--epochs_end", 0, *options
    )
    assert done.returncode == 0, done.stderr
    result = result_of(results, "prune", exp_name="other")
    assert 0.55 * result["dense"]["macs"] < result["macs"]["backbone"] <= 0.6 * result["dense"]["macs"]
    assert result["epochs"] == 0 and result["selected_epoch"] == 0


@pytest.mark.parametrize("baseline", ["none", "moving_average", "self_critical", "counterfactual"])
def test_every_baseline_runs(baseline: str, results: Path) -> None:
    done = stage("rl", "--result_dir", results, "--exp_name", "other", "--baseline", baseline, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    metrics = (folder_of(results, "rl", "other") / "metrics.jsonl").read_text().splitlines()
    assert "train_advantage" in json.loads(metrics[1])


def test_starting_from_dense_weights(results: Path, tmp_path: Path) -> None:
    network = hybridprune.load(folder_of(results, "sp")).network
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in network.backbone.state_dict().items()}}, tmp_path / "dense.pt"
    )
    for file in (tmp_path / "dense.pt", folder_of(results, "sp") / "model.safetensors"):
        name = f"from-{file.suffix[1:]}"
        done = stage("sp", "--result_dir", results, "--exp_name", name, "--weights", file, "--epochs", 1, "--lr", 1e-12)
        assert done.returncode == 0, done.stderr
        weight = hybridprune.load(folder_of(results, "sp", name)).network.backbone.conv.weight
        torch.testing.assert_close(weight, network.backbone.conv.weight, rtol=1e-6, atol=1e-6)


def test_dense_weights_as_they_are(results: Path) -> None:
    weights = folder_of(results, "sp") / "model.safetensors"
    done = stage("sp", "--result_dir", results, "--exp_name", "as-is", "--weights", weights, "--epochs", 0)
    assert done.returncode == 0, done.stderr
    run = folder_of(results, "sp", "as-is")
    network, parent = (hybridprune.load(path).network.backbone for path in (run, weights))
    assert all(torch.equal(value, parent.state_dict()[name]) for name, value in network.state_dict().items())
    result, before = (json.loads((path / "result.json").read_text()) for path in (run, weights.parent))
    assert result["epochs"] == result["selected_epoch"] == 0
    assert result["test"]["always_on"] == before["test"]["always_on"]


@pytest.mark.full
def test_image_tree_from_end_to_end(image_tree: Path, tmp_path: Path) -> None:
    data = (*TINY, "--data_dir", str(image_tree), "--resize", "16")
    for name in STAGES:
        done = stage(name, "--dataset", "tree", "--result_dir", tmp_path / "results", data=data)
        assert done.returncode == 0, done.stderr
    run = folder_of(tmp_path / "results", "rl", dataset=image_tree.name)
    shown = run_here("hybridprune.evaluate", run, "--data_dir", image_tree, "--device", "cpu")
    assert shown.returncode == 0 and difference(shown.stdout) <= 1e-5

    model = hybridprune.load(run)
    assert model.classes == ("disc", "horizontal", "vertical")
    files = sorted(image_tree.glob("test/*/*.png"))
    predictions = hybridprune.predict(model, files)
    right = sum(p.label == file.parent.name for p, file in zip(predictions, files, strict=True))
    result = json.loads((run / "result.json").read_text())
    assert right / len(files) == pytest.approx(result["test"]["routed"]["accuracy"], abs=1e-9)

    table = run_here("hybridprune.report", tmp_path / "results")
    assert (table.returncode, table.stderr) == (0, "")
    assert image_tree.name in table.stdout or "resnet" in table.stdout.lower()


@pytest.mark.full
def test_the_real_commands_in_sequence(tmp_path: Path) -> None:
    for name in STAGES:
        done = run_cli(SCRIPTS[name], *DIGITS, *OWN[name], "--result_dir", "results", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"finished: {folder_of(Path('results'), name)}" in done.stdout
    shown = run_cli("hybridprune.evaluate", folder_of(Path("results"), "rl"), "--mode", "executed", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert difference(shown.stdout) <= 1e-5
    table = run_cli("hybridprune.report", "results", cwd=tmp_path)
    assert (table.returncode, table.stderr) == (0, "")
    rows = [line for line in table.stdout.splitlines() if line.startswith("|")]
    assert len(rows) >= 2 + 3
