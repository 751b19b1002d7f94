"""What to ship at a budget, from finished runs, and that the printed command makes what was promised."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hybridprune
from hybridprune.commands.finished_run import FinishedRun, Parser, add_batch_size
from hybridprune.commands.member_runs import MemberRun, member_runs
from hybridprune.commands.recommend_text import command, expected_ms, text
from hybridprune.commands.recommendation import Recommendation, recommend
from hybridprune.config.name_list import split_names
from hybridprune.engine.evaluate import evaluate
from hybridprune.models.cascade import Cascade
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.report.rows import build_rows
from hybridprune.report.speed import Setting, shown
from hybridprune.routing.choose_members import Networks
from hybridprune.routing.fit_cascade import fit
from hybridprune.stages.images import read_split
from hybridprune.store.run_folder import RunFolder
from hybridprune.store.validation_logits import FILE, ValidationLogits
from tests.cli.tiny_runs import DIGITS, Result, assert_refused, contents, folder_of, run_here, stage
from tests.report.run_folders import write_bench


@pytest.fixture(scope="module")
def trained(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder with a cut ResNet-8, a ResNet-8 and a ResNet-14; not to be changed."""
    results = Path(shutil.copytree(finished, tmp_path_factory.mktemp("trained") / "results"))
    deep = stage("sp", "--result_dir", results, "--depth", "14")
    assert deep.returncode == 0, deep.stderr
    return results


@pytest.fixture
def spoilt(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "results"))


def runs(results: Path) -> list[Path]:
    """Cheapest first."""
    return [
        *(folder_of(results, name) for name in ("prune", "sp")),
        results / "default" / "digits-resnet14-w4-sp-seed0",
    ]


def asked(results: Path, *args: object, target: object = 0.6) -> Result:
    return run_here("recommend", results, "--target_flops", target, *args)


def found_in(results: Path, target: float) -> tuple[list[MemberRun], Recommendation]:
    members = member_runs(results, None)
    return members, recommend(members, target)


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def said_by(run: Path) -> ValidationLogits:
    folder = RunFolder(run)
    found = ValidationLogits.read(folder, folder.read_spec())
    assert found is not None
    return found


def rewrite(run: Path, logits: Tensor) -> None:
    """Let the run have answered otherwise."""
    folder, before = RunFolder(run), said_by(run)
    after = ValidationLogits(logits, before.labels, before.ids)
    after.save(folder, folder.read_spec(), folder.result("model_sha256", str))


def make_a_cascade_pay(results: Path) -> None:
    """The cheapest network is sure where it is right, on two of three images; the dearest one is always right."""
    small, middle, large = runs(results)
    labels = said_by(small).labels
    order = torch.arange(len(labels))
    sureness = (order / len(order)).unsqueeze(1)
    right = (8 + sureness) * F.one_hot(labels, 10)
    unsure = (1 + sureness) * torch.linspace(0, 0.1, 10)
    rewrite(small, right.where((order % 3 > 0).unsqueeze(1), unsure))
    rewrite(middle, unsure)
    rewrite(large, right)


def test_stages_1_and_2_keep_what_their_networks_say_of_the_validation_images(trained: Path) -> None:
    for run in runs(trained):
        said, folder = said_by(run), RunFolder(run)
        assert torch.equal(said.ids, read_split(folder).validation)
        accuracy = float((said.logits.argmax(1) == said.labels).double().mean())
        assert accuracy == result_of(run)["validation"]["always_on"]["accuracy"]
        parser = Parser(None)
        add_batch_size(parser)
        read = FinishedRun.load(parser.parse_args([str(run), "--device", "cpu", "--bs", "500"]))
        member = evaluate(cast(GatedNetwork, read.net).backbone, read.batches("validation"), keep_logits=True)
        assert torch.equal(said.logits, member.logits) and torch.equal(said.labels, member.labels)
        assert (run / FILE).stat().st_mtime_ns < (run / "result.json").stat().st_mtime_ns  # which says: finished
    assert not (folder_of(trained, "rl") / FILE).exists()


def test_a_run_that_is_killed_before_its_result_writes_them_again(spoilt: Path) -> None:
    run = folder_of(spoilt, "sp")
    before = (run / FILE).read_bytes()
    (run / FILE).unlink()
    (run / "result.json").unlink()
    again = stage("sp", "--result_dir", spoilt, "--resume")
    assert again.returncode == 0, again.stderr
    assert (run / FILE).read_bytes() == before


@pytest.mark.full
@pytest.mark.parametrize(
    "target",
    [
        0.35,  # here the best pair may be without the dearest network, so the command gives FLOPs
        pytest.param(0.6, marks=pytest.mark.full),  # a share of the dearest network, which is in every triple
        pytest.param(2.0 * 70_001, marks=pytest.mark.exhaustive),  # FLOPs
        pytest.param(2.0 * 500_000, marks=pytest.mark.full),  # more than all members take on every image
    ],
)
def test_the_command_makes_what_is_promised(target: float, trained: Path, tmp_path: Path) -> None:
    members, found = found_in(trained, target)
    dense = max(result_of(run)["dense"]["macs"] for run in runs(trained))
    assert found.budget_macs == (target * dense if target <= 1 else target / 2)
    assert [len(cascade.group) for cascade in found.cascades] == [2, 3]
    for cascade in found.cascades:
        words = command(found, cascade, tmp_path, None)
        assert words[:2] == ["hybridprune", "route"]
        made = run_here("main_rl_prune.py", *words[2:], "--device", "cpu", "--exp_name", str(len(cascade.group)))
        assert made.returncode == 0, made.stderr
        (run,) = (tmp_path / str(len(cascade.group))).iterdir()
        result = result_of(run)
        assert [m["run_id"] for m in result["members"]] == [members[k].spec.run_id for k in cascade.group]
        assert result["target"]["macs"] == cascade.budget_macs == min(found.budget_macs, cascade.budget_macs)
        assert result["target"]["validation_macs"] == cascade.macs
        assert result["cascade"]["accuracy"] == float(cascade.right.double().mean())
        assert result["validation"]["routed"]["block_rates"] == list(cascade.rates[1:])
        networks = Networks(
            torch.stack([m.said.logits for m in members]),
            members[0].said.labels,
            [m.record.backbone_macs for m in members],
        )
        net = Cascade([nn.Identity() for _ in cascade.group], 10)
        said = networks.said(cascade.group)
        assert sum(result["macs"].values()) == float(said.macs[-1])
        fit(net, said, cascade.budget_macs)
        shipped = cast(Cascade, hybridprune.load(run).network)
        for name, value in net.state_dict().items():
            torch.testing.assert_close(shipped.state_dict()[name], value, rtol=0, atol=0)


def test_a_share_is_given_to_stage_3_as_it_reads_it(trained: Path) -> None:
    members, found = found_in(trained, 0.35)
    small, middle, large = (members[k].record for k in range(3))
    assert found.base.run.path == runs(trained)[2] and small.dense_macs == middle.dense_macs < large.dense_macs
    for cascade in found.cascades:
        words = command(found, cascade, Path("R"), "DATA")
        given = words[words.index("--target_flops") + 1]
        if 2 in cascade.group:
            assert given == "0.35"
        else:
            assert float(given) == 2 * found.budget_macs
        assert words[words.index("--members") + 1] == ",".join(str(members[k].run.path) for k in cascade.group)
        assert words[-8:] == ["--dataset", "digits", "--data_dir", "DATA", "--resize", "8", "--result_dir", "R"]


def test_the_command_names_the_images_as_their_run_did(spoilt: Path) -> None:
    runs(spoilt)[0].rename(spoilt / "X,prune.target_flops=0.5")  # as one of several budgets
    members, found = found_in(spoilt, 1.0)
    cascade = next(each for each in found.cascades if len(each.group) == 3)
    run = members[2].run.path
    config = json.loads((run / "config.json").read_text())
    more = {"dataset": "tree", "data_dir": "my data", "img_type": "any", "validation_from": "test"}
    (run / "config.json").write_text(json.dumps({**config, **more}))
    words = command(found, cascade, spoilt, None)
    assert split_names(words[words.index("--members") + 1]) == [str(member.run.path) for member in members]
    assert words[words.index("--target_flops") + 2 : -2] == [
        *("--data_dir", "my data", "--img_type", "any", "--resize", "8", "--validation_from", "test")
    ]


@pytest.mark.full
def test_it_says_all_static_where_no_cascade_is_ahead(trained: Path) -> None:
    before = contents(trained)
    done = asked(trained)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    _, found = found_in(trained, 0.6)
    if found.winner is found.alone:
        assert "All static: no cascade is ahead" in done.stdout
        assert done.stdout.splitlines()[-1] == str(found.members[found.alone.group[0]].run.path)
    assert "| one network |" in done.stdout and "| cascade of three | 1 (100%) -> 2 (" in done.stdout
    assert f"60.0% of those of {runs(trained)[2]} before its cut" in done.stdout
    assert contents(trained) == before  # and no image was opened


@pytest.mark.full
def test_it_gives_the_command_where_a_cascade_pays(spoilt: Path, tmp_path: Path) -> None:
    make_a_cascade_pay(spoilt)
    done = asked(spoilt, target=0.7)
    assert done.returncode == 0, done.stderr
    assert "| cascade of two | 1 (100%) -> 3 (41%) | 70.2 | 100.00 | +30.07 [+23" in done.stdout
    assert "Static and dynamic: a cascade of two is +30.07 [+23" in done.stdout
    words = shlex.split(done.stdout.splitlines()[-1])
    small, _, large = runs(spoilt)
    assert words == [
        *("hybridprune", "route", "--routing", "cascade", "--members", f"{small},{large}", "--target_flops", "0.7"),
        *("--dataset", "digits", "--resize", "8", "--result_dir", str(spoilt)),
    ]
    made = run_here("main_rl_prune.py", *words[2:], "--device", "cpu")
    assert made.returncode == 0, made.stderr


def test_a_cascade_that_spends_more_than_its_budget_does_not_win(spoilt: Path) -> None:
    make_a_cascade_pay(spoilt)
    _, found = found_in(spoilt, 0.7)
    pair, triple = found.cascades
    assert found.winner is pair
    dear = [dataclasses.replace(each, macs=1.05 * each.budget_macs) for each in (pair, triple)]
    assert dataclasses.replace(found, cascades=dear).winner is found.alone
    assert "Warning: the cascade of two takes 105.0% of the budget" in text(
        dataclasses.replace(found, cascades=dear), spoilt, None
    )


def test_a_tie_is_static(spoilt: Path) -> None:
    said = said_by(runs(spoilt)[0])
    for run in runs(spoilt):
        rewrite(run, said.logits)
    done = asked(spoilt)
    assert "+0.00 [+0.00, +0.00]" in done.stdout and "All static: no cascade is ahead" in done.stdout
    assert done.stdout.splitlines()[-1] == str(runs(spoilt)[0])


@pytest.mark.full
def test_times_are_those_of_the_bench(spoilt: Path) -> None:
    small, middle, large = runs(spoilt)
    write_bench(small, {("prune", "eager"): 2.0, ("deployed", "onnx"): 1.0}, batch=32)
    write_bench(large, {("dense", "eager"): 8.0, ("sp", "eager"): 9.0}, dense=8.0, batch=32)
    members, found = found_in(spoilt, 0.6)
    speeds = {k: shown(build_rows([member.record])[0]) for k, member in enumerate(members)}
    (eager,) = (setting for setting in speeds[2] if not setting.deployed)
    assert isinstance(eager, Setting) and eager.batch == 32
    pair = next(cascade for cascade in found.cascades if len(cascade.group) == 2)
    triple = next(cascade for cascade in found.cascades if len(cascade.group) == 3)
    assert expected_ms(triple, speeds, eager) is None  # that of the network in the middle is unknown
    if pair.group == (0, 2):
        assert expected_ms(pair, speeds, eager) == pytest.approx(2 + 8 * pair.rates[1])
    done = asked(spoilt)
    (row,) = (line for line in done.stdout.splitlines() if line.startswith(f"| 1 | {small}"))
    (dearest,) = (line for line in done.stdout.splitlines() if line.startswith(f"| 3 | {large}"))
    (unknown,) = (line for line in done.stdout.splitlines() if line.startswith(f"| 2 | {middle}"))
    assert " | 2 (" in row and " | 1 (" in row and " | 8 (" in dearest and unknown.endswith(" | - | - |")
    assert "Eager ms, batch 32" in done.stdout and "Times are median ms" in done.stdout
    assert "No time was measured" not in done.stdout


def test_runs_of_older_versions_are_named_and_can_be_evaluated(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = runs(spoilt)[1]
    before = said_by(old)
    (old / FILE).unlink()
    assert [member.run.path for member in member_runs(spoilt, None)] == [runs(spoilt)[0], runs(spoilt)[2]]
    said = f"left out: {old}: has no {FILE}, as runs of older versions have none; --evaluate makes it\n"
    assert capsys.readouterr().err == said
    done = asked(spoilt, "--evaluate", "--device", "cpu")
    assert done.returncode == 0 and done.stderr == f"written: {old / FILE}\n"
    assert "3 networks on 143 validation images" in done.stdout
    after = said_by(old)
    assert torch.equal(after.labels, before.labels) and torch.equal(after.ids, before.ids)
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-4, atol=1e-4)
    assert len(member_runs(spoilt, None)) == 3 and capsys.readouterr().err == ""


def test_evaluating_writes_through_no_link(spoilt: Path, tmp_path: Path) -> None:
    for run in runs(spoilt):
        (run / FILE).unlink()
        (run / FILE).symlink_to(tmp_path / "precious")
    done = asked(spoilt, "--evaluate", "--device", "cpu")
    assert done.returncode == 2 and f"left out: {runs(spoilt)[0] / FILE}: is a link" in done.stderr
    assert not (tmp_path / "precious").exists()


def test_data_that_was_moved_can_be_named(spoilt: Path, tmp_path: Path) -> None:
    run = runs(spoilt)[1]
    (run / FILE).unlink()
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "dataset": "tree", "data_dir": str(tmp_path / "gone")}))
    done = asked(run, "--evaluate", "--data_dir", tmp_path / "here")
    assert done.returncode == 2 and f"--data_dir {tmp_path / 'here'}" in done.stderr, done.stderr


def test_it_refuses_where_no_run_is_left(spoilt: Path, tmp_path: Path) -> None:
    for run in runs(spoilt):
        (run / FILE).unlink()
    done = asked(spoilt)
    assert done.returncode == 2 and done.stdout == ""
    *left_out, error = done.stderr.splitlines()
    assert len(left_out) == 3 and all(line.startswith("left out: ") for line in left_out)
    assert error == f"error: RESULTS {spoilt}: all 3 runs of stages 1 and 2 are left out, as said above"
    assert_refused(asked(tmp_path / "gone"), f"RESULTS {tmp_path / 'gone'}", "no such folder")
    (tmp_path / "empty").mkdir()
    assert_refused(asked(tmp_path / "empty"), "no finished run")
    only = shutil.copytree(folder_of(spoilt, "rl"), tmp_path / "only" / "rl")
    assert_refused(asked(only.parent), "no finished run of hybridprune train or prune")


def test_one_network_has_no_cascade(spoilt: Path) -> None:
    done = asked(runs(spoilt)[0], target=1)
    assert done.returncode == 0 and "All static: no cascade fits the budget" in done.stdout, done.stderr


def change_spec(run: Path, name: str, value: object) -> None:
    record = json.loads((run / "spec.json").read_text())
    record[name] = value
    (run / "spec.json").write_text(json.dumps(record))


def other_scale(run: Path) -> None:
    change_spec(run, "mean", [0.1, 0.1, 0.1])


def other_classes(run: Path) -> None:
    change_spec(run, "class_names", list("abcdefghij"))


def cropped(run: Path) -> None:
    change_spec(run, "centre_crop", True)


def other_size(run: Path) -> None:
    change_spec(run, "input_size", 16)


def other_split(run: Path) -> None:
    """The run was validated on other images, and says so."""
    record = json.loads((run / "split.json").read_text())
    said, folder = said_by(run), RunFolder(run)
    record["validation"] = record["validation"][1:]
    (run / "split.json").write_text(json.dumps(record))
    fewer = ValidationLogits(said.logits[1:], said.labels[1:], said.ids[1:])
    fewer.save(folder, folder.read_spec(), folder.result("model_sha256", str))


def other_labels(run: Path) -> None:
    said, folder = said_by(run), RunFolder(run)
    changed = ValidationLogits(said.logits, said.labels.flip(0), said.ids)
    changed.save(folder, folder.read_spec(), folder.result("model_sha256", str))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (other_scale, "normalisation"),
        (other_classes, "classes"),
        (cropped, "cropping"),
        (other_size, "data set"),
        (other_split, "validation split"),
        (other_labels, "labels"),
    ],
)
def test_runs_of_different_images_are_never_mixed(change: Any, what: str, spoilt: Path) -> None:
    small, _, large = runs(spoilt)
    change(large)
    done = asked(spoilt)
    assert_refused(done, f"RESULTS {spoilt}: the {what} of ", str(small.parent), "name a folder of runs")


def test_files_that_say_different_things_are_left_out(spoilt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs(spoilt)[2]
    record = json.loads((run / "split.json").read_text())
    record["validation"] = record["validation"][1:]
    (run / "split.json").write_text(json.dumps(record))
    assert len(member_runs(spoilt, None)) == 2
    assert f"left out: {run / FILE}: is of other images than split.json says" in capsys.readouterr().err
    (run / "spec.json").write_text("{}")
    assert len(member_runs(spoilt, None)) == 2
    assert f"left out: {run / 'spec.json'}: not a run's specification" in capsys.readouterr().err


def test_what_no_network_can_do_is_refused(trained: Path, spoilt: Path) -> None:
    least, dense = result_of(runs(trained)[0])["macs"]["backbone"], result_of(runs(trained)[2])["dense"]["macs"]
    words = ("--target_flops 0.01", f"takes {least / dense:.4f} of {2 * dense:,} FLOPs ({2 * least:,})", "prune one")
    assert_refused(asked(trained, target=0.01), *words)
    assert_refused(asked(trained, target=60), "60 is taken as 60 FLOPs, for 60 % give --target_flops 0.6")
    for target in (0, -1, "nan", "inf"):
        assert_refused(asked(trained, target=target), "--target_flops")
    assert_refused(asked(trained, target="half"), "--target_flops", "see --help")
    assert_refused(run_here("recommend", trained), "--target_flops", "see --help")
    assert_refused(asked(trained, "--batch_size", 0), "--batch_size 0: must be at least 1")
    assert_refused(asked(trained, "--network", "nowhere:net"), "--network nowhere:net")
    for run in runs(spoilt):
        said, folder = said_by(run), RunFolder(run)
        few = ValidationLogits(said.logits[:3], said.labels[:3], said.ids[:3])
        few.save(folder, folder.read_spec(), folder.result("model_sha256", str))
        record = json.loads((run / "split.json").read_text())
        (run / "split.json").write_text(json.dumps({**record, "validation": said.ids[:3].tolist()}))
    assert_refused(asked(spoilt), "3 validation images are too few to choose by")


def test_members_of_ones_own_are_named(trained: Path) -> None:
    assert_refused(
        run_here(
            "main_rl_prune.py",
            *(*DIGITS, "--routing", "cascade", "--members", "a,b", "--target_flops", "0.5", "--network", "nowhere:net"),
        ),
        "--network nowhere:net",
    )
