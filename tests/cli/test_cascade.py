"""Stage 3 of a cascade, from finished runs, and what its run can be used for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

import hybridprune
from hybridprune.deployment import DeployedCascade, load_deployed, openvino
from hybridprune.models.cascade import Cascade
from tests.cli.tiny_runs import DIGITS, Result, assert_refused, contents, folder_of, run_here, stage
from tests.deployment.networks import assert_close
from tests.report.html.pages import Page

NAME = "digits-cascade-resnet8-w4-resnet14-w4-rl-seed0"
DATA = ("--dataset", "digits", "--resize", "8", "--max_train_samples", "200", "--device", "cpu")


@pytest.fixture(scope="module")
def members(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder with a cut ResNet-8, a ResNet-14, and a cascade of both at 0.7 of the larger one's FLOPs."""
    results = Path(shutil.copytree(finished, tmp_path_factory.mktemp("members") / "results"))
    deep = stage("sp", "--result_dir", results, "--depth", "14")
    assert deep.returncode == 0, deep.stderr
    joined = route(results, "--target_flops", "0.7")
    assert joined.returncode == 0, joined.stderr
    return results


def runs(results: Path) -> list[Path]:
    return [folder_of(results, "prune"), results / "default" / "digits-resnet14-w4-sp-seed0"]


def route(results: Path, *args: object, members: list[Path] | None = None) -> Result:
    named = ",".join(map(str, members or runs(results)[::-1]))  # in any order
    words = ("--routing", "cascade", "--members", named, "--result_dir", results)
    return run_here("main_rl_prune.py", *DATA, *words, *args)


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def test_the_run_says_what_it_joined_and_meets_its_budget(members: Path) -> None:
    small, large = map(result_of, runs(members))
    result = result_of(members / "default" / NAME)
    assert [m["run_id"] for m in result["members"]] == [small["run_id"], large["run_id"]]
    assert [m["macs"] for m in result["members"]] == [small["macs"]["backbone"], large["macs"]["backbone"]]
    assert result["parent"]["run_id"] == large["run_id"] and result["dense"] == large["dense"]
    assert result["macs"]["backbone"] == small["macs"]["backbone"] + large["macs"]["backbone"]
    target = result["target"]
    assert target["macs"] == 0.7 * large["dense"]["macs"] and target["met"]
    (rate,) = result["validation"]["routed"]["block_rates"]
    spent = result["validation"]["routed"]["expected_macs"]
    assert spent == pytest.approx(target["validation_macs"]) == pytest.approx(target["macs"], rel=0.02)
    gate = 3 + 5
    assert spent == small["macs"]["backbone"] + gate + rate * large["macs"]["backbone"]
    gain = result["cascade"]
    assert gain["alone"] == [each["validation"]["always_on"]["accuracy"] for each in (small, large)]
    assert gain["best"] == 0 and gain["ahead"]["mean"] == pytest.approx(gain["accuracy"] - gain["alone"][0])
    splits = [json.loads((run / "split.json").read_text()) for run in (*runs(members), members / "default" / NAME)]
    assert splits[0] == splits[1] == splits[2]


def test_the_network_is_its_members_with_their_weights(members: Path) -> None:
    small, large = (hybridprune.load(run).network.backbone for run in runs(members))
    joined = hybridprune.load(members / "default" / NAME)
    assert isinstance(joined.network, Cascade)
    images = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        for mine, theirs in zip(joined.network.members, (small, large), strict=True):
            torch.testing.assert_close(mine(images), theirs(images))
    found = hybridprune.predict(joined, torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    assert len(found) == 3 and {each.blocks_executed for each in found} <= {0, 1}


def test_it_is_evaluated_swept_and_reported_like_any_run(members: Path, tmp_path: Path) -> None:
    run = members / "default" / NAME
    done = run_here("hybridprune.evaluate", run, "--device", "cpu")
    result = result_of(run)
    assert done.returncode == 0 and f"accuracy {result['test']['routed']['accuracy']:.4f}" in done.stdout, done.stderr
    other = run_here("hybridprune.evaluate", run, "--device", "cpu", "--target_flops", "0.9", "--split", "validation")
    assert other.returncode == 0, other.stderr
    (share,) = re.findall(r"GFLOPs, ([\d.]+)% of dense", other.stdout)
    assert float(share) == pytest.approx(90, abs=1)
    swept = run_here("hybridprune.sweep", run, "--device", "cpu", "--output", tmp_path / "sweep")
    assert swept.returncode == 0, swept.stderr
    points = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [p["flops"] for p in points] == sorted((p["flops"] for p in points), reverse=True)
    swept = run_here("hybridprune.sweep", run, "--device", "cpu", "--split", "test")
    assert swept.returncode == 0, swept.stderr
    report = run_here("hybridprune.report", members, "--html", tmp_path / "a.html", "--format", "json")
    assert report.returncode == 0, report.stderr
    page = (tmp_path / "a.html").read_text()
    assert "cascade-resnet8-w4-resnet14-w4" in page and "members are runs of their own" in page
    text = Page(page).text
    assert "Which images go on" in text and "All 10 classes as a table" in text and "Stop at member 1" in text
    assert "measured it on the test images" in text and ", cascade from" in page


def test_what_takes_gated_blocks_only_refuses_it(members: Path) -> None:
    run = members / "default" / NAME
    before = contents(run)
    assert_refused(run_here("hybridprune.export", run, "--harden"), "--harden", str(run), "is a cascade")
    again = run_here("main_rl_prune.py", *DIGITS, "--checkpoint_file", run, "--result_dir", members)
    assert_refused(again, "--checkpoint_file", "network cascade, not resnet")
    assert contents(run) == before


@pytest.fixture
def own(members: Path, tmp_path: Path) -> Path:
    """A copy of the cascade's run, to write into."""
    return Path(shutil.copytree(members / "default" / NAME, tmp_path / NAME))


@pytest.mark.full
def test_it_is_timed_beside_its_dearest_member(own: Path, members: Path) -> None:
    done = run_here("hybridprune.bench", own, "--batch", "300", "--forms", "eager", "--rounds", "1", "--threads", "1")
    assert done.returncode == 0, done.stderr
    (table,) = json.loads((own / "bench.json").read_text())
    result, large = result_of(own), result_of(runs(members)[1])
    rows = {row["network"]: row for row in table["rows"]}
    assert list(rows) == ["dense", "rl", "dense deployed", "deployed"]
    assert rows["dense"]["macs"] == large["dense"]["macs"]
    # all test images, some of them twice
    assert rows["rl"]["macs"] == pytest.approx(result["test"]["routed"]["expected_macs"], rel=0.03)
    predicted = rows["dense"]["macs"] / rows["rl"]["macs"]
    assert rows["rl"]["predicted_speedup"] == rows["deployed"]["predicted_speedup"] == pytest.approx(predicted)
    report = run_here("hybridprune.report", own, "--format", "csv")
    assert report.returncode == 0 and "deployed_eager_b300" in report.stdout, report.stderr


@pytest.mark.exhaustive
@pytest.mark.full
def test_it_is_timed_in_engines_and_quantised(own: Path) -> None:
    words = ("--batch", "1", "4", "--forms", "onnx", "openvino", "--int8", "--rounds", "1", "--threads", "1")
    done = run_here("hybridprune.bench", own, *words)
    assert done.returncode == 0, done.stderr
    for table in json.loads((own / "bench.json").read_text()):
        arms = [(row["network"], row["form"]) for row in table["rows"]]
        assert arms == [
            *((network, form) for network in ("dense", "deployed") for form in ("onnx", "openvino")),
            *((network, form) for form in ("int8", "openvino_int8") for network in ("dense", "deployed")),
        ]
        accuracy = result_of(own)["test"]["routed"]["accuracy"]
        for row in (table["rows"][5], table["rows"][7]):
            assert row["accuracy"] == pytest.approx(accuracy, abs=0.05), row["form"]


@torch.no_grad()
def test_it_is_exported_and_loaded_again(own: Path) -> None:
    done = run_here("hybridprune.export", own, "--batch", "32")
    assert done.returncode == 0, done.stderr
    model = hybridprune.load(own)
    images = torch.randn(50, 3, 8, 8).to(memory_format=torch.channels_last)
    expected = model.network(images, mode="executed")
    module, spec = load_deployed(own / "deployed")
    assert isinstance(module, DeployedCascade) and spec == model.spec
    routed = module.route(images)
    assert torch.equal(routed.decisions, expected.decisions)
    assert_close(routed.logits, expected.logits)
    report = json.loads((own / "deployed" / "deploy.json").read_text())["report"]
    (rate,) = result_of(own)["validation"]["routed"]["block_rates"]
    assert report["rates"] == [rate] and report["validated"]["changed_decisions"] == 0
    assert [member["batch"] for member in report["members"]] == [32, round(32 * rate)]
    assert done.stdout.count("member ") == 2


@pytest.mark.full
@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.exhaustive), 16])
@torch.no_grad()
def test_it_is_exported_without_this_package(batch: int, own: Path, tmp_path: Path) -> None:
    onnx, xml, program = (tmp_path / f"net.{suffix}" for suffix in ("onnx", "xml", "pt2"))
    files = "--onnx", onnx, "--openvino", xml, "--program", program
    done = run_here("hybridprune.export", own, "--batch", batch, *files)
    assert done.returncode == 0 and done.stdout.count("0 other decisions") == 2, done.stderr
    model, images = hybridprune.load(own), torch.randn(2 * batch, 3, 8, 8)
    expected = model.network(images, mode="executed")
    runtime = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    about = json.loads(runtime.get_modelmeta().custom_metadata_map["hybridprune"])
    assert about["classes"] == list(model.classes)
    loaded = torch.export.load(program).module()
    read = openvino.core().read_model(xml)
    assert json.loads(read.get_rt_info("hybridprune").astype(str)) == about
    in_openvino = openvino.core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for some, rows in zip(images.split(batch), torch.arange(2 * batch).split(batch), strict=True):
        exported = [torch.from_numpy(each) for each in runtime.run(None, {"images": some.numpy()})]
        by_openvino = [torch.from_numpy(each) for each in in_openvino(some.numpy()).values()]
        for logits, decisions in (exported, by_openvino, loaded(some)):
            assert_close(logits, expected.logits[rows])
            assert torch.equal(decisions, expected.decisions[rows])


def test_a_dry_run_writes_nothing(members: Path) -> None:
    before = contents(members)
    done = route(members, "--target_flops", "0.8", "--exp_name", "dry", "--dry-run")
    assert done.returncode == 0 and "cascade of resnet-8" in done.stdout, done.stderr
    assert contents(members) == before


def test_the_same_command_again_shows_the_result(members: Path) -> None:
    again = route(members, "--target_flops", "0.7", "--resume")
    assert again.returncode == 0 and "points over the best single member" in again.stdout, again.stderr


def other_split(run: Path) -> None:
    record = json.loads((run / "split.json").read_text())
    record["validation"] = record["validation"][1:]
    (run / "split.json").write_text(json.dumps(record))


def other_scale(run: Path) -> None:
    record = json.loads((run / "spec.json").read_text())
    record["mean"] = [0.1, 0.1, 0.1]
    (run / "spec.json").write_text(json.dumps(record))


def subtask(run: Path) -> None:
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, "classes": ["3", "7"]}))


def other_result(run: Path) -> None:
    record = json.loads((run / "result.json").read_text())
    del record["macs"]["backbone"]
    (run / "result.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_split, ("its validation split", "train both alike")),
        (other_scale, ("its normalisation",)),
        (subtask, ("--members ", "knows classes 3,7, ", " all classes; prune both with the same --classes")),
        (other_result, ("result.json", "macs.backbone is missing")),
    ],
)
def test_members_that_see_other_images_are_refused(
    change: Any, words: tuple[str, ...], members: Path, tmp_path: Path
) -> None:
    results = Path(shutil.copytree(members, tmp_path / "results"))
    change(runs(results)[1])
    assert_refused(route(results, "--target_flops", "0.8", "--exp_name", "other"), *words)


def test_members_of_a_subtask_need_its_classes(members: Path, tmp_path: Path) -> None:
    results = Path(shutil.copytree(members, tmp_path / "results"))
    for run in runs(results):
        subtask(run)
    refused = route(results, "--target_flops", "0.8", "--exp_name", "other")
    assert_refused(refused, "--classes: ", "is of a subtask; give --classes 3,7")


def test_what_is_no_member_is_refused(members: Path, tmp_path: Path) -> None:
    small, large = runs(members)
    budget = ("--target_flops", "0.8", "--exp_name", "refused")
    assert_refused(route(members, *budget, members=[small, tmp_path / "gone"]), "gone", "no such run")
    assert_refused(route(members, *budget, members=[small, folder_of(members, "rl")]), "run of stage rl, not of sp or")
    assert_refused(route(members, *budget, members=[small, small]), "costs what", "leave one of them out")
    refused = route(members, "--target_flops", "0.05", "--exp_name", "refused", members=[small, large])
    assert_refused(refused, "--target_flops 0.05", "the cascade spends", "other --members")
    assert not (members / "refused").exists()
