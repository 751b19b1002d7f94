"""The bench command: real runs, and its arithmetic by hand."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hybridprune.commands.bench import FILE, _forms
from hybridprune.commands.bench_arms import _Executed, memory, quantised_in
from hybridprune.commands.bench_rows import markdown, rows
from hybridprune.commands.bench_sentence import sentence, warning
from hybridprune.commands.finished_run import FinishedRun
from hybridprune.deployment.openvino import TELEMETRY
from hybridprune.errors import UserError
from hybridprune.measure.latency import Latency
from hybridprune.report import collect
from hybridprune.report.speed import shown
from tests.cli.tiny_runs import folder_of, run_here

ONCE = ("--rounds", "1", "--threads", "1")


def latency(median: float) -> Latency:
    return Latency(median, median / 2, median * 2, 3)


def test_speed_ups_are_over_the_dense_network_in_the_same_form() -> None:
    found = {
        "dense/eager": latency(10.0),
        "rl/eager": latency(5.0),
        "dense/onnx": latency(6.0),
        "deployed/onnx": latency(2.0),
        "deployed/int8": latency(1.5),
        "deployed/compiled": latency(4.0),
        "dense/openvino": latency(8.0),
        "deployed/openvino_int8": latency(1.0),
    }
    macs = {"dense": (1000.0, 1000.0), "rl": (250.0, 250.0), "deployed": (400.0, 250.0)}  # two layers recomposed
    table = rows(found, macs, 32, {"deployed/int8": {"weight_bytes": 2**21, "accuracy": 0.5}})
    assert [row["realised_speedup"] for row in table] == [1, 2, 1, 3, 4, None, 1, 8]
    assert [row["predicted_speedup"] for row in table] == [1, 4, 1, 4, 4, 4, 1, 4]
    assert [row["macs"] for row in table] == [1000, 250, 1000, 400, 400, 400, 1000, 400]
    assert [row["images_per_second"] for row in table][:2] == [3200, 6400]
    shown = markdown({"batch": 32, "device": "cpu", "threads": 2, "rows": table})
    assert "| rl | eager | 5.000 (2.500 to 10.000) | 6400 | 4.00 | 2.00 | 0.50 |  |  |  |" in shown
    assert "| deployed | int8 | 1.500 (0.750 to 3.000) | 21333 | 4.00 | 4.00 | 1.00 | 2.000 |  | 50.00% |" in shown


class Copies(_Executed):
    """As many copies of the images as their first value says: a network that some images need more of than others."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.repeat(int(images.flatten()[0]), 1)


def test_memory_is_that_of_the_batch_that_needs_the_most() -> None:
    batches = [torch.full((2, 5), float(copies)) for copies in (1, 3, 2)]
    assert memory(Copies(), batches) == {"weight_bytes": 0, "activation_bytes": 3 * 2 * 5 * 4}
    assert memory(nn.Linear(5, 4), batches) == {"weight_bytes": 4 * 24, "activation_bytes": 2 * 4 * 4}


def timed(batch: int, **times: float) -> dict[str, Any]:
    rows = [
        {"network": n.replace("_", " "), "form": f, "median_ms": t}
        for k, t in times.items()
        for n, f in (k.split("__"),)
    ]
    return {"batch": batch, "device": "cpu", "threads": 2, "rows": rows}


def test_the_sentence_compares_the_fastest_of_each() -> None:
    """Not int8, whose accuracy is another one; the dense network in its own best form."""
    one = timed(1, dense__eager=4.0, dense_deployed__eager=3.0, deployed__eager=2.0, deployed__int8=0.5, rl__eager=1.0)
    one["rows"] += timed(1, deployed__openvino_int8=0.4)["rows"]
    other = timed(32, dense__eager=9.0, dense__onnx=6.0, deployed__eager=4.0, deployed__onnx=5.0)
    assert sentence([one, other], 0.7016, 0.6953) == (
        "Deployed, its speed over that of the dense network is 1.50 x at batch 1 (eager), 1.50 x at batch 32 (eager; "
        "dense: onnx) on this machine (cpu, 2 threads); accuracy 70.16% -> 69.53%."
    )


def test_gates_that_take_more_time_than_they_save_are_told() -> None:
    pays = timed(32, dense__eager=9.0, prune__eager=5.0, prune__onnx=4.5, rl__eager=4.2, deployed__eager=4.0)
    costs = timed(1, dense__eager=8.0, dense__onnx=6.0, prune__eager=5.0, prune__onnx=2.5, rl__eager=4.0)
    costs["rows"] += timed(1, deployed__eager=3.5, deployed__onnx=3.0, deployed__int8=1.0, prune__int8=0.1)["rows"]
    assert warning([pays, costs]) == "Without gates the network is faster: 2.40 x at batch 1 (onnx)."
    assert warning([pays]) is None
    static = {**costs, "rows": [row for row in costs["rows"] if row["network"] != "rl"]}
    assert warning([static]) is None  # deployed or not, it has no gates


@pytest.mark.parametrize(
    ("stage", "networks"),
    [
        pytest.param("sp", ["dense", "sp", "dense deployed", "deployed"], marks=pytest.mark.full),
        pytest.param("prune", ["dense", "prune", "dense deployed", "deployed"], marks=pytest.mark.full),
        ("rl", ["dense", "prune", "rl", "dense deployed", "deployed"]),
    ],
)
def test_a_run_is_timed_beside_its_ancestors(stage: str, networks: list[str], results: Path) -> None:
    run = folder_of(results, stage)
    done = run_here("hybridprune.bench", run, "--batch", "3", "--forms", "eager", *ONCE)
    assert done.returncode == 0, done.stderr
    (table,) = json.loads((run / FILE).read_text())
    assert [row["network"] for row in table["rows"]] == networks
    assert (table["batch"], table["device"], table["threads"]) == (3, "cpu", 1)
    assert done.stdout.count("\n| ") == 1 + 1 + len(networks)
    accuracies = [json.loads((each / "result.json").read_text())["test"] for each in (folder_of(results, "sp"), run)]
    dense, own = accuracies[0]["always_on"]["accuracy"], accuracies[1]["always_on" if stage == "prune" else "routed"]
    assert done.stdout.startswith("Deployed, its speed over that of the dense network is ")
    assert done.stdout.splitlines()[0].endswith(f"accuracy {dense:.2%} -> {own['accuracy']:.2%}.")
    memory = {row["network"]: (row["weight_bytes"], row["activation_bytes"]) for row in table["rows"]}
    assert all(weights > 0 and activations > 3 * 1024 for weights, activations in memory.values())
    (row,) = [row for row in collect(results) if row.lineage[-1][0] == stage]
    reported = {setting.deployed: speed for setting, speed in shown(row).items()}
    assert set(reported) == {False, True} and all(speed.batch == 3 for speed in reported.values())
    by_name = {row["network"]: row for row in table["rows"]}
    result = json.loads((run / "result.json").read_text())
    assert by_name["dense"]["macs"] == by_name["dense deployed"]["macs"] == result["dense"]["macs"]
    assert all(row["median_ms"] > 0 for row in table["rows"])
    if stage == "prune":
        assert by_name["prune"]["macs"] == result["macs"]["backbone"]
        assert by_name["prune"]["predicted_speedup"] == pytest.approx(1 / 0.6, rel=0.2)
    assert by_name["dense deployed"]["predicted_speedup"] == 1
    assert by_name["deployed"]["predicted_speedup"] == by_name[stage]["predicted_speedup"]


@pytest.mark.full
def test_expected_macs_are_those_of_the_images_that_are_timed(results: Path) -> None:
    run = folder_of(results, "rl")
    done = run_here("hybridprune.bench", run, "--batch", "400", "--forms", "eager", *ONCE)
    assert done.returncode == 0, done.stderr
    (table,) = json.loads((run / FILE).read_text())
    result = json.loads((run / "result.json").read_text())
    (row,) = (row for row in table["rows"] if row["network"] == "rl")
    # All test images, some of them twice.
    assert row["macs"] == pytest.approx(result["test"]["routed"]["expected_macs"], rel=0.02)


@pytest.mark.full
def test_engines_and_int8(results: Path) -> None:
    run = folder_of(results, "rl")
    done = run_here("hybridprune.bench", run, "--batch", "4", "--forms", "onnx", "openvino", "--int8", *ONCE)
    assert done.returncode == 0, done.stderr
    (table,) = json.loads((run / FILE).read_text())
    rows = {(row["network"], row["form"]): row for row in table["rows"]}
    fp32 = [(network, form) for network in ("dense", "prune", "deployed") for form in ("onnx", "openvino")]
    int8 = [(network, form) for form in ("int8", "openvino_int8") for network in ("dense", "deployed")]
    assert list(rows) == fp32 + int8
    accuracy = {
        "deployed": json.loads((run / "result.json").read_text())["test"]["routed"]["accuracy"],
        "dense": json.loads((folder_of(results, "sp") / "result.json").read_text())["test"]["always_on"]["accuracy"],
    }
    for network, form in int8:
        assert rows[network, form]["accuracy"] == pytest.approx(accuracy[network], abs=0.05), (network, form)
        assert rows[network, form]["weight_bytes"] > 1000
    assert "nncf" not in done.stdout.lower() and TELEMETRY not in sys.modules


@pytest.mark.parametrize(
    ("flags", "word"),
    [(("--batch", "0"), "--batch 0"), (("--threads", "0"), "--threads 0"), (("--rounds", "0"), "--rounds 0")],
)
def test_what_cannot_be_timed(flags: tuple[str, ...], word: str, results: Path) -> None:
    done = run_here("hybridprune.bench", folder_of(results, "rl"), *flags)
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr


def test_engines_for_cpus_are_not_timed_beside_a_gpu() -> None:
    cuda = torch.device("cuda")
    assert _forms(None, False, cuda) == ("eager",)
    assert _forms(None, False, torch.device("cpu")) == ("eager", "onnx", "openvino")
    assert _forms(["compiled"], False, cuda) == ("compiled",)
    asked = ["eager", "onnx"], False, "--forms onnx"
    for given, int8, flag in (asked, (["openvino"], False, "--forms openvino"), (None, True, "--int8")):
        with pytest.raises(UserError, match=f"^{flag}: .* on CPUs only, not on cuda; .*--device cpu"):
            _forms(given, int8, cuda)


def test_a_form_that_nobody_asked_for_is_skipped_where_it_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert _forms(None, False, torch.device("cpu")) == ("eager",)
    told = (
        "skipped onnx: needs onnx and onnxscript and onnxruntime; pip install 'hybridprune[deploy]'\n"
        "skipped openvino: needs onnx and onnxscript and openvino; pip install 'hybridprune[deploy]'\n"
    )
    assert capsys.readouterr() == ("", told)
    for given, int8, flag in ((["eager", "onnx"], False, "--forms onnx"), (None, True, "--int8")):
        with pytest.raises(UserError, match=f"^{flag}: needs onnx and"):
            _forms(given, int8, torch.device("cpu"))


def test_int8_is_for_the_engines_of_the_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantised_in(("eager", "openvino")) == ("openvino",) and quantised_in(("eager",)) == ("onnx",)
    assert quantised_in(("eager", "onnx", "openvino")) == ("onnx", "openvino")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "nncf" else there(name))
    assert _forms(["onnx"], True, torch.device("cpu")) == ("onnx",)
    with pytest.raises(UserError, match=r"^--int8: needs nncf; pip install 'hybridprune\[deploy\]'$"):
        _forms(["openvino"], True, torch.device("cpu"))


def test_weights_lie_as_the_images_do(results: Path) -> None:
    arguments = Namespace(
        run=folder_of(results, "rl"),
        device="cpu",
        network=None,
        data_dir=None,
        cache_dir=None,
        download=False,
        batch_size=4,
    )
    run = FinishedRun.load(arguments)
    kernels = [p for p in run.net.parameters() if p.ndim == 4 and min(p.shape[1], p.shape[2]) > 1]
    assert kernels and all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    assert next(iter(run.batches("test"))).images.is_contiguous(memory_format=torch.channels_last)


def test_a_lost_ancestor_is_named(results: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(folder_of(results, "rl"), tmp_path / "run"))
    result = json.loads((run / "result.json").read_text())
    result["parent"]["path"] = str(tmp_path / "gone")
    (run / "result.json").write_text(json.dumps(result))
    done = run_here("hybridprune.bench", run, *ONCE)
    assert done.returncode == 2 and "gone" in done.stderr and "restore it" in done.stderr
    assert not (run / FILE).exists()
