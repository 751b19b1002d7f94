"""Stage 3 of a cascade that trains its members: real runs, kept or refused by the rule, with a trunk or without."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hybridprune
from hybridprune.deployment import load_deployed
from hybridprune.models.cascade import Cascade
from hybridprune.store.run_folder import RunFolder
from tests.cli.test_kill_and_resume import lines, moments, wait_for
from tests.cli.tiny_runs import Result, assert_refused, contents, folder_of, run_here, stage, weights
from tests.processes import start_cli

NAME = "digits-cascade-resnet8-w4-resnet14-w4-rl-seed0"
DATA = ("--dataset", "digits", "--resize", "8", "--max_train_samples", "200", "--device", "cpu", "--bs", "20")
LEARN = ("--train", "members", "--epochs", "2", "--target_flops", "0.8", "--batchnorm", "trained", "--lr", "0.02")
TRUNK = (*LEARN, "--trunk", "1", "--epochs", "4", "--lr", "0.1")
RUIN = (*LEARN, "--lr", "10", "--scheduler_params", '{"0": 1}')


@pytest.fixture(scope="module")
def members(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder with a cut ResNet-8 and a ResNet-14."""
    results = Path(shutil.copytree(finished, tmp_path_factory.mktemp("trained_members") / "results"))
    deep = stage("sp", "--result_dir", results, "--depth", "14")
    assert deep.returncode == 0, deep.stderr
    return results


@pytest.fixture(scope="module")
def plain(members: Path) -> Path:
    """The cascade of both whose gates alone are fitted."""
    return trained(members, "plain", "--target_flops", "0.8")


def runs(results: Path) -> list[Path]:
    return [folder_of(results, "prune"), results / "default" / "digits-resnet14-w4-sp-seed0"]


def route_words(results: Path, *args: object) -> list[str]:
    named = ",".join(map(str, runs(results)))
    return list(map(str, (*DATA, "--routing", "cascade", "--members", named, "--result_dir", results, *args)))


def route(results: Path, *args: object) -> Result:
    return run_here("main_rl_prune.py", *route_words(results, *args))


def trained(results: Path, name: str, *args: object) -> Path:
    done = route(results, "--exp_name", name, *args)
    assert done.returncode == 0, done.stderr
    return results / name / NAME


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


@pytest.mark.full
def test_members_that_make_it_better_are_kept(members: Path, plain: Path) -> None:
    """Those of the best epoch: in the last one the learning rate ruins them."""
    late = ("--scheduler_id", "stair", "--scheduler_params", '{"0.6": 2000}', "--epochs", "3")
    run = trained(members, "kept", *LEARN, *late)
    result, before = result_of(run), result_of(plain)
    training = result["training"]
    assert training["kept"] and training["accuracy_trained"] > training["accuracy_before"]
    assert training["accuracy_before"] == before["cascade"]["accuracy"], "the same gates, the same halves"
    assert result["cascade"]["accuracy"] == training["accuracy_trained"]
    assert result["cascade"]["alone"] == before["cascade"]["alone"], "of the members as they were given"
    assert result["selected_epoch"] in (1, 2) and result["epochs"] == 3
    old, new = hybridprune.load(plain).network.state_dict(), hybridprune.load(run).network.state_dict()
    changed = {
        name.split(".")[1] for name in old if name.startswith("members") and not torch.equal(old[name], new[name])
    }
    assert changed == {"0", "1"}
    spent = result["validation"]["routed"]["expected_macs"]
    assert spent == pytest.approx(result["target"]["macs"], rel=0.02), "gates are fitted for the new members"


@pytest.mark.full
def test_members_that_are_ruined_stay_as_they_were_and_the_run_says_so(members: Path, plain: Path) -> None:
    done = route(members, "--exp_name", "ruined", *RUIN)
    assert done.returncode == 0, done.stderr
    run = members / "ruined" / NAME
    training = result_of(run)["training"]
    assert not training["kept"] and training["accuracy_trained"] < training["accuracy_before"]
    assert "the members stay as they were: accuracy on validation" in done.stdout
    assert (run / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    assert result_of(run)["test"] == result_of(plain)["test"]
    assert result_of(run)["selected_epoch"] == 0
    assert "the members stay as they were" in route(members, "--exp_name", "ruined", *RUIN, "--resume").stdout


@pytest.mark.full
def test_a_trunk_is_shared_frozen_and_counted_once(members: Path, plain: Path) -> None:
    run = trained(members, "trunk", *TRUNK)
    result, large = result_of(run), runs(members)[1]
    net = hybridprune.load(run).network
    assert isinstance(net, Cascade) and net.trunks == (0, 1) and result["training"]["kept"]
    theirs = hybridprune.load(large).network.backbone
    for name in ("conv", "bn", "blocks.0"):
        mine = net.members[0].get_submodule(name).state_dict()
        assert all(torch.equal(mine[key], value) for key, value in theirs.get_submodule(name).state_dict().items()), (
            name
        )
    trunk = 9 * (3 * 4 + 2 * 4 * 4) * 8**2
    assert result["macs"]["backbone"] == hybridprune.count(net, 8).backbone_macs
    assert hybridprune.count(net, 8).block_macs == (result_of(large)["macs"]["backbone"] - trunk,)
    done = run_here("hybridprune.evaluate", run, "--device", "cpu")
    assert done.returncode == 0 and f"accuracy {result['test']['routed']['accuracy']:.4f}" in done.stdout, done.stderr
    swept = run_here("hybridprune.sweep", run, "--device", "cpu", "--output", members / "sweep")
    assert swept.returncode == 0, swept.stderr
    report = run_here("hybridprune.report", members, "--html", members / "a.html", "--format", "json")
    assert report.returncode == 0, report.stderr
    assert len(hybridprune.predict(hybridprune.load(run), torch.zeros(3, 3, 8, 8, dtype=torch.uint8))) == 3
    image = torch.zeros(1, 3, 8, 8)
    assert hybridprune.load(run).network(image, torch.zeros(1, 1)).logits.shape == (1, 10)
    onnx = members / "trunk.onnx"
    done = run_here("hybridprune.export", run, "--device", "cpu", "--onnx", onnx)
    assert done.returncode == 0 and "0 other decisions" in done.stdout, done.stderr
    told = json.loads((run / "deployed" / "deploy.json").read_text())["report"]
    assert told["members"][0]["trunk"]["macs_after"] == trunk
    assert told["validated"]["changed_decisions"] == 0 and onnx.is_file()
    module, _ = load_deployed(run / "deployed")
    assert module(image).shape == (1, 10)
    done = run_here("hybridprune.bench", run, "--device", "cpu", "--batch", "4", "--forms", "eager", "--rounds", "1")
    assert done.returncode == 0 and "| deployed" in done.stdout, done.stderr


@pytest.mark.full
def test_a_trunk_that_is_no_better_leaves_the_whole_members(members: Path, plain: Path) -> None:
    run = trained(members, "no_trunk", *RUIN, "--trunk", "1")
    assert not result_of(run)["training"]["kept"]
    net = hybridprune.load(run).network
    assert isinstance(net, Cascade) and not net.shares_trunk
    assert (run / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(members: Path) -> Path:
    """A run that nothing has interrupted."""
    return trained(members, "whole", *TRUNK)


def assert_as_undisturbed(run: Path, undisturbed: Path) -> None:
    assert weights(run) == weights(undisturbed)
    assert lines(run) == lines(undisturbed) == 5
    for key in ("training", "cascade", "target", "test"):
        assert result_of(run)[key] == result_of(undisturbed)[key]


@pytest.mark.full
@pytest.mark.parametrize(
    "moment",
    [
        *(pytest.param(each, marks=pytest.mark.exhaustive) for each in ("epoch 0", "spec.json")),
        "epoch 1",
        "result.json",
    ],
)
def test_it_goes_on_where_it_was_interrupted(
    moment: str, members: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each of these is written, at last the specification of the trunk that is kept."""
    append, write = RunFolder.append_metrics, RunFolder.write_json

    def append_or_stop(self: RunFolder, record: Any) -> None:
        if moment == f"epoch {record['epoch']}":
            raise KeyboardInterrupt
        append(self, record)

    def write_or_stop(self: RunFolder, name: str, record: Any) -> None:
        if name == moment and (name != "spec.json" or "trunks" in record["network"]):
            raise KeyboardInterrupt
        write(self, name, record)

    name = moment.replace(" ", "")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append_metrics", append_or_stop)
        patch.setattr(RunFolder, "write_json", write_or_stop)
        done = route(members, "--exp_name", name, *TRUNK)
        assert done.returncode == 130 and "--resume" in done.stderr, done.stderr
    assert_as_undisturbed(trained(members, name, *TRUNK, "--resume"), undisturbed)


@pytest.mark.full
def test_killed_anywhere_it_ends_as_if_nothing_had_happened(members: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = members / "killed" / NAME
    words = route_words(members, "--exp_name", "killed", *TRUNK, "--save_every", "0.0001")
    draw = random.Random(0)
    for number, moment in enumerate(moments(run)):
        process = start_cli("main_rl_prune.py", *words, *(["--resume"] if number else []), cwd=tmp_path)
        wait_for(moment, process)
        time.sleep(draw.uniform(0, 0.3))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate(timeout=600)
        assert "Traceback" not in errors, errors
        if (run / "result.json").exists():
            break
    else:
        assert run_here("main_rl_prune.py", *words, "--resume").returncode == 0
    assert_as_undisturbed(run, undisturbed)


@pytest.mark.full
def test_half_precision_and_frozen_statistics_but_for_those_of_features_that_are_new(members: Path) -> None:
    run = trained(members, "bf16", *LEARN, "--precision", "bf16", "--batchnorm", "frozen", "--trunk", "1")
    assert result_of(run)["precision"]["training"] == "bf16"
    last = load_file(run / "last.safetensors")
    small, large = (hybridprune.load(each).network.backbone.state_dict() for each in runs(members))
    assert torch.equal(last["members.0.bn.running_mean"], large["bn.running_mean"])
    assert torch.equal(last["members.1.backbone.blocks.0.bn1.running_var"], large["blocks.1.bn1.running_var"])
    ours, theirs = last["members.0.blocks.1.bn1.running_var"], small["blocks.1.bn1.running_var"]
    assert not torch.allclose(ours, theirs, rtol=0.05)


def test_a_dry_run_says_what_it_would_train(members: Path) -> None:
    before = contents(members)
    done = route(members, *LEARN, "--trunk", "1", "--exp_name", "dry", "--dry-run")
    assert done.returncode == 0 and "2 epochs of 10 steps for the members" in done.stdout, done.stderr
    assert "resnet-14, width 4, gate rnn from block 1 on" in done.stdout and contents(members) == before


@pytest.mark.parametrize(
    ("trunk", "words"),
    [
        ("3", ("--trunk 3: a trunk of 3 blocks, of a network that has 3",)),
        ("100", ("--trunk 100: a trunk of 100 blocks",)),
        ("2", ("--trunk 2: before its block 2", "features [8, 4, 4]", "has [4, 8, 8]", "choose a block")),
    ],
)
def test_a_trunk_that_cannot_be_shared_is_refused(trunk: str, words: tuple[str, ...], members: Path) -> None:
    assert_refused(route(members, *LEARN, "--trunk", trunk, "--exp_name", "refused"), *words)
    assert not (members / "refused").exists()


def test_a_budget_that_members_with_a_trunk_cannot_spend_is_refused(members: Path) -> None:
    done = route(members, *LEARN, "--trunk", "1", "--target_flops", "1.5", "--exp_name", "refused")
    assert_refused(done, "--target_flops 1.5")
    assert not (members / "refused").exists()
