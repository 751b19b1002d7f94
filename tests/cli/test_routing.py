"""Stage 3's own options: estimators, budgets, what learns, distillation; and the gates of stages 1 and 2."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridprune.data import Batch, TrainBatches
from hybridprune.engine.distill import Distillation
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.routing.price import TOLERANCE
from hybridprune.store.weights import read_tensors
from tests.cli.tiny_runs import folder_of, run_here, stage, weights


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder with a stage-1 network whose gates have learnt on their noise: they tell images apart."""
    results = tmp_path_factory.mktemp("parent") / "results"
    done = stage("sp", "--result_dir", results, "--gate_noise", "1", "--alpha", "0.5", "--epochs", "6")
    assert done.returncode == 0, done.stderr
    return results


def fine_tune(parent: Path, *args: object, code: int = 0) -> tuple[dict[str, Any], str]:
    """The result and the messages of a run of stage 3 on the parent, in the working directory."""
    run = folder_of(parent, "sp")
    done = stage("rl", "--result_dir", "out", "--checkpoint_file", run, *args)
    assert done.returncode == code, done.stderr
    if code:
        return {}, done.stderr
    return json.loads((folder_of(Path("out"), "rl") / "result.json").read_text()), done.stderr


@pytest.mark.parametrize("estimator", ["reinforce", "gumbel"])
def test_a_budget_is_met_on_validation_or_said_not_to_be(estimator: str, parent: Path) -> None:
    result, messages = fine_tune(parent, "--target_flops", "0.9", "--estimator", estimator, "--epochs", "6")
    target = result["target"]
    assert target["macs"] == pytest.approx(0.9 * result["dense"]["macs"])
    reached = abs(result["validation"]["routed"]["expected_macs"] / target["macs"] - 1)
    assert target["met"] == (reached <= TOLERANCE)
    assert ("warning: expected FLOPs" in messages) == (not target["met"])
    assert result["validation"]["routed"]["expected_macs"] == pytest.approx(target["validation_macs"])
    # An epoch's score is that of the network that would be shipped, at the budget, and the best one is shipped.
    run = folder_of(Path("out"), "rl")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # The alpha that it ended with is the last step's; gumbel has none.
    assert (target["price"] is None) == (estimator == "gumbel")
    assert estimator == "gumbel" or 0 < target["price"] != 0.1
    best = max(lines, key=lambda line: line["validation_score"])
    assert best["epoch"] == result["selected_epoch"]
    if not result["batchnorm_recalibrated"]:
        assert best["validation_budget_accuracy"] == pytest.approx(result["validation"]["routed"]["accuracy"])
        shipped = best["validation_budget_flops_share"] * result["macs"]["backbone"]
        assert shipped == pytest.approx(target["validation_macs"])
    # The shift of the gates is in the stored weights, too.
    shown = run_here("hybridprune.evaluate", run, "--split", "validation", "--no-compare")
    assert f"expected {2 * target['validation_macs'] / 1e9:.4g} GFLOPs" in shown.stdout, shown.stderr


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--baseline", "moving_average"), marks=pytest.mark.full),
        pytest.param(("--baseline", "counterfactual"), marks=pytest.mark.full),
        ("--estimator", "gumbel"),
        pytest.param(("--gate_start", "subset", "--batchnorm", "trained"), marks=pytest.mark.full),
    ],
    ids=" ".join,
)
def test_an_interrupted_run_with_a_budget_ends_as_the_whole_one(
    flags: tuple[str, ...], parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ("rl", "--result_dir", "out", "--checkpoint_file", folder_of(parent, "sp"), "--target_flops", "0.9")
    options = (*flags, "--rl_warmup", "0.1", "--rate_bound", "0.3", "--entropy_bonus", "0.1", "--lr", "0.02")
    assert stage(*common, *options, "--exp_name", "whole").returncode == 0
    whole = TrainBatches.epoch

    def with_ctrl_c(self: TrainBatches, epoch: int, start: int = 0) -> Iterator[Batch]:
        for step, batch in enumerate(whole(self, epoch, start), start):
            if (epoch, step) == (1, 3):
                signal.raise_signal(signal.SIGINT)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(TrainBatches, "epoch", with_ctrl_c)
        cut = stage(*common, *options, "--exp_name", "cut")
    assert cut.returncode == 130 and "--resume" in cut.stderr
    assert stage(*common, *options, "--exp_name", "cut", "--resume").returncode == 0
    runs = [folder_of(Path("out"), "rl", name) for name in ("whole", "cut")]
    assert weights(runs[0]) == weights(runs[1])
    lines = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for line in (*lines[0], *lines[1]):
        del line["seconds"]
    assert lines[0] == lines[1] and len(lines[0]) == 3
    targets = [json.loads((run / "result.json").read_text())["target"] for run in runs]
    assert targets[0] == targets[1]


def test_budgets_that_skipping_cannot_reach(parent: Path) -> None:
    for budget in ("0.05", "2e12"):
        _, message = fine_tune(parent, "--target_flops", budget, code=2)
        assert f"--target_flops {float(budget)}" in message and "of the dense FLOPs" in message
    _, message = fine_tune(parent, "--target_flops", "0.9", "--alpha", "0", code=2)
    assert "--alpha 0" in message
    assert not Path("out").exists()


@pytest.mark.parametrize("estimator", ["reinforce", "gumbel"])
def test_gates_alone_leave_the_backbone_as_it_is(estimator: str, parent: Path) -> None:
    fine_tune(parent, "--train", "gates", "--estimator", estimator, "--lr", "0.1", "--rl_warmup", "0", "--alpha", "1")
    before = read_tensors(folder_of(parent, "sp") / "model.safetensors")
    for file in ("last.safetensors", "model.safetensors"):  # statistics included, in what is shipped too
        after = read_tensors(folder_of(Path("out"), "rl") / file)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert all(name.startswith("gate.") for name in changed), file
        assert changed or file == "model.safetensors"  # the parent itself may be the best


@pytest.mark.parametrize("estimator", ["reinforce", "gumbel"])
@pytest.mark.parametrize("batchnorm", ["frozen", "trained"])
def test_statistics_move_where_they_are_trained(estimator: str, batchnorm: str, parent: Path) -> None:
    fine_tune(parent, "--batchnorm", batchnorm, "--estimator", estimator, "--epochs", "1", "--lr", "0.01")
    name = "backbone.bn.running_mean"
    before = read_tensors(folder_of(parent, "sp") / "model.safetensors")[name]
    after = read_tensors(folder_of(Path("out"), "rl") / "last.safetensors")[name]
    assert torch.equal(before, after) == (batchnorm == "frozen")


def test_gates_alone_refuse_to_train_the_backbones_statistics(parent: Path) -> None:
    _, message = fine_tune(parent, "--train", "gates", "--batchnorm", "trained", code=2)
    assert "--batchnorm trained" in message and "--batchnorm frozen" in message
    assert not Path("out").exists()


def test_gates_alone_refuse_to_distil_a_backbone_that_does_not_learn(parent: Path) -> None:
    _, message = fine_tune(parent, "--train", "gates", "--kd_weight", "0.5", code=2)
    assert "--kd_weight" in message and "--train gates" in message and "gumbel" in message
    _, message = fine_tune(parent, "--train", "gates", "--compile", code=2)
    assert "--compile" in message and "--train gates" in message and "gumbel" in message
    assert not Path("out").exists()
    fine_tune(parent, "--train", "gates", "--kd_weight", "0.5", "--estimator", "gumbel", "--epochs", "1")


def test_gates_start_from_a_subset_that_meets_the_budget(parent: Path) -> None:
    flags = ("--target_flops", "0.8", "--epochs", "1", "--lr", "1e-6")
    started, messages = fine_tune(parent, "--gate_start", "subset", *flags)
    assert "gates start from" in messages
    first = json.loads((folder_of(Path("out"), "rl") / "metrics.jsonl").read_text().splitlines()[0])
    assert 0.4 < first["validation_flops_share"] < 0.9
    assert started["target"]["macs"] == pytest.approx(0.8 * started["dense"]["macs"])


@pytest.mark.full
def test_gates_are_sharpened_once_before_they_learn(parent: Path) -> None:
    flags = ("--train", "gates", "--gate_sharpen", "0.05", "--epochs", "1", "--lr", "1e-12")
    fine_tune(parent, *flags)
    before, after = (
        {name: value for name, value in read_tensors(run / "model.safetensors").items() if name.startswith("gate.")}
        for run in (folder_of(parent, "sp"), folder_of(Path("out"), "rl"))
    )
    assert before.keys() == after.keys() and any(name.startswith("gate.score.") for name in before)
    for name, value in before.items():
        sharpened = value / 0.05 if name.startswith("gate.score.") else value
        torch.testing.assert_close(after[name], sharpened, msg=name)
    first = json.loads((folder_of(Path("out"), "rl") / "metrics.jsonl").read_text().splitlines()[0])
    assert first["validation_accuracy"] > 0.1  # greedy decisions are those of the parent


def test_a_subset_needs_a_budget(parent: Path) -> None:
    _, message = fine_tune(parent, "--gate_start", "subset", code=2)
    assert "--gate_start subset" in message and "--target_flops" in message
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("estimator", "what"),
    [
        (("--estimator", "gumbel"), {"GatedNetwork"}),
        (("--batchnorm", "trained"), {"GatedNetwork"}),
        ((), {"rollout"}),
        (("--baseline", "self_critical"), {"rollout"}),
    ],
)
def test_what_the_backbone_learns_from_is_compiled(
    estimator: tuple[str, ...], what: set[str], parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: set[str] = set()

    def observed(run: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            called.add(getattr(run, "__name__", type(run).__name__))
            assert options.get("mode", "masked") == "masked", "what skips has no fixed shapes"
            return run(*args, **options)

        return call

    monkeypatch.setattr(torch, "compile", observed)
    _, message = fine_tune(parent, *estimator, "--epochs", "1", "--compile")
    assert called - {"_probe"} == what and "left out" not in message


@pytest.mark.parametrize("estimator", ["gumbel", "reinforce"])
def test_without_a_compiler_training_goes_on(estimator: str, parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--estimator", estimator, "--epochs", "1")
    fine_tune(parent, *flags)
    plain = read_tensors(folder_of(Path("out"), "rl") / "last.safetensors")

    def broken(model: object) -> object:
        def fail(*args: object) -> None:
            raise RuntimeError("no C++ compiler\nmore about it")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    shutil.rmtree("out")
    _, message = fine_tune(parent, *flags, "--compile")
    assert message.count("--compile is left out") == 1 and "no C++ compiler" in message and "more" not in message
    after = read_tensors(folder_of(Path("out"), "rl") / "last.safetensors")
    assert all(torch.equal(after[name], plain[name]) for name in plain)


@pytest.mark.full
def test_distillation_is_from_the_dense_networks_run_and_needs_it(
    parent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = Path(shutil.copytree(parent, tmp_path / "family"))
    cut = stage("prune", "--result_dir", results)
    assert cut.returncode == 0, cut.stderr
    pruned = folder_of(results, "prune")
    command = ("rl", "--result_dir", results, "--checkpoint_file", pruned, "--kd_weight", "0.5", "--epochs", "1")
    teachers: list[GatedNetwork] = []
    of = Distillation.of

    def watched(net: GatedNetwork, weight: float, temperature: float, **options: Any) -> Distillation | None:
        teachers.append(net)
        return of(net, weight, temperature, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Distillation, "of", watched)
        assert stage(*command).returncode == 0
    (teacher,), dense = teachers, read_tensors(folder_of(results, "sp") / "model.safetensors")
    assert teacher.state_dict().keys() == dense.keys()  # the pruned parent has factored layers
    assert all(torch.equal(value, dense[name]) for name, value in teacher.state_dict().items())
    plain = stage(*command[:-4], "--kd_weight", "0", "--epochs", "1", "--exp_name", "plain")
    assert plain.returncode == 0
    taught, free = (read_tensors(folder_of(results, "rl", name) / "last.safetensors") for name in ("default", "plain"))
    assert not torch.equal(taught["backbone.bn.weight"], free["backbone.bn.weight"])
    shutil.rmtree(folder_of(results, "sp"))
    gone = stage(*command, "--exp_name", "again")
    assert gone.returncode == 2 and "--kd_weight" in gone.stderr and "gone" in gone.stderr


@pytest.mark.full
@pytest.mark.parametrize("flags", [("--entropy_bonus", "5"), ("--rate_bound", "0.4"), ("--exploration", "0.4")])
def test_what_keeps_gates_open_changes_what_they_learn(flags: tuple[str, ...], parent: Path) -> None:
    common = ("--lr", "0.05", "--rl_warmup", "0")
    fine_tune(parent, *common)
    before = read_tensors(folder_of(Path("out"), "rl") / "last.safetensors")
    shutil.rmtree("out")
    fine_tune(parent, *common, *flags)
    after = read_tensors(folder_of(Path("out"), "rl") / "last.safetensors")
    assert not torch.equal(before["gate.score.weight"], after["gate.score.weight"])


@pytest.mark.full
@pytest.mark.parametrize("gate", ["ff1", "ff2"])
def test_feed_forward_gates_go_through_all_stages(gate: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name in ("sp", "prune", "rl"):
        done = stage(name, "--result_dir", results, "--gate", gate)
        assert done.returncode == 0, done.stderr
    (run,) = results.glob(f"default/*-{gate}-rl-seed0")
    result = json.loads((run / "result.json").read_text())
    assert result["network"]["label"] == f"resnet8-w4-{gate}"
    missing = stage("rl", "--result_dir", results, "--exp_name", "other")
    assert missing.returncode == 2 and f"gate {gate}, not rnn" in missing.stderr


def test_soft_gating_differs_from_hard(tmp_path: Path) -> None:
    for gating in ("hard", "soft"):
        assert stage("sp", "--result_dir", tmp_path, "--gating", gating, "--exp_name", gating).returncode == 0
    hard, soft = (read_tensors(folder_of(tmp_path, "sp", name) / "last.safetensors") for name in ("hard", "soft"))
    assert not torch.equal(hard["gate.score.weight"], soft["gate.score.weight"])
