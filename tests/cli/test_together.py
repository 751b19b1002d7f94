"""The three stages with two processes: the run of one that works on the same two shares, and one message on errors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hybridprune.data import Batch, TrainBatches
from hybridprune.models.factored import FactoredConv2d, form
from hybridprune.models.routed import Routed
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.models.spec import NetworkSpec
from hybridprune.processes import rank
from tests import ROOT
from tests.cli.tiny_runs import COMMANDS, DIGITS, OWN, SCRIPTS, folder_of, stage
from tests.process_groups import FORWARD, on_shards, together

pytestmark = pytest.mark.usefixtures("few_sweeps")
PARENT = {"prune": "sp", "rl": "prune"}
MORE: dict[str, tuple[str, ...]] = {
    "sp": ("--gate_noise", "1", "--ema_decay", "0.8"),
    "prune": (
        "--max_iter",
        "2",
        "--back_ratio",
        "0.3",
        "--kd_weight",
        "0.3",
        "--epochs_start",
        "1",
        "--epochs_end",
        "1",
    ),
    "rl": ("--baseline", "moving_average", "--target_flops", "0.55", "--rl_warmup", "0", "--rate_bound", "0.2"),
}


def arguments(name: str, results: Path, exp_name: str, *more: str) -> list[str]:
    """A tiny run with everything that processes have to agree on; 21 images a step are no even shares."""
    parent = ("--checkpoint_file", str(folder_of(results, PARENT[name]))) if name in PARENT else ()
    where = ("--result_dir", str(results), "--exp_name", exp_name, "--bs", "21")
    return [*DIGITS, *OWN[name], *parent, *where, *MORE[name], *more]


def both(name: str, args: list[str], folder: Path) -> list[tuple[int, Any, str, str]]:
    return together(folder, lambda: COMMANDS[SCRIPTS[name]](args))


def effective(file: Path, network: dict[str, Any]) -> dict[str, Tensor]:
    """The weights in a file, those of separable layers multiplied out: their factors are badly conditioned."""
    state = load_file(file)
    net = NetworkSpec.from_json(network).build()
    net.load_state_dict(state)
    for name, layer in net.named_modules():
        if isinstance(layer, FactoredConv2d) and form(layer).separable:
            for side in ("rotate_out", "core", "rotate_in"):
                del state[f"{name}.{side}.weight"]
            state[name] = layer.product(torch.float64).detach()
    return state


def assert_same_runs(one: Path, other: Path) -> None:
    """The same plan, and weights and figures that differ by rounding only."""
    specs = [json.loads((run / "spec.json").read_text())["network"] for run in (one, other)]
    assert specs[0] == specs[1]
    for name in ("model.safetensors", "last.safetensors"):
        states = [effective(one / name, specs[0]), effective(other / name, specs[1])]
        # Least squares of the refit pass the rounding on, a few times larger.
        torch.testing.assert_close(*states, rtol=1e-4, atol=1e-3 if "-prune-" in one.name else 1e-4)
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (one, other)]
    assert len(lines[0]) == len(lines[1])
    for here, there in zip(*(map(json.loads, each) for each in lines), strict=True):
        del here["seconds"], there["seconds"]
        assert here == pytest.approx(there, rel=1e-3, abs=1e-3)
    tests = [json.loads((run / "result.json").read_text())["test"]["routed"] for run in (one, other)]
    for figure, value in tests[0].items():
        assert value == pytest.approx(tests[1][figure], rel=1e-3, abs=2e-3), figure


@contextlib.contextmanager
def shares_of_two() -> Iterator[None]:
    """Inside, training passes are those of the oracle."""

    def sharded(self: GatedNetwork, images: Tensor, *args: Any, **options: Any) -> Routed:
        if not self.training:
            return FORWARD(self, images, *args, **options)
        return on_shards(self)(images, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GatedNetwork, "forward", sharded)
        yield


SLOW = pytest.mark.full


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sp", ()),
        pytest.param("prune", (), marks=SLOW),
        pytest.param("prune", ("--pruner_id", "1"), marks=(SLOW, pytest.mark.exhaustive)),
        pytest.param("rl", ("--batchnorm", "trained"), marks=SLOW),
        pytest.param("rl", ("--gate_start", "subset", "--baseline", "counterfactual"), marks=SLOW),
        pytest.param("rl", ("--estimator", "gumbel", "--batchnorm", "trained"), marks=SLOW),
    ],
)
def test_two_processes_make_the_run_of_one_that_runs_their_shares(
    name: str, more: tuple[str, ...], results: Path, tmp_path: Path
) -> None:
    with shares_of_two():
        done = stage(name, *arguments(name, results, "one", *more))
    assert done.returncode == 0, done.stderr
    ended = both(name, arguments(name, results, "two", *more), tmp_path)
    assert [code for code, *_ in ended] == [0, 0], ended[0][3] + ended[1][3]
    assert ended[0][2].startswith("finished: ") and (ended[1][2], ended[1][3]) == ("", "")
    runs = [folder_of(results, name, exp_name) for exp_name in ("one", "two")]
    assert_same_runs(*runs)
    assert [json.loads((run / "result.json").read_text())["processes"] for run in runs] == [1, 2]


@SLOW
@pytest.mark.parametrize(
    ("baseline", "signum"), [("moving_average", signal.SIGINT), ("counterfactual", signal.SIGTERM)]
)
def test_a_run_of_two_goes_on_with_one(baseline: str, signum: int, results: Path, tmp_path: Path) -> None:
    more = ("--baseline", baseline)
    assert [code for code, *_ in both("rl", arguments("rl", results, "whole", *more), tmp_path)] == [0, 0]

    def interrupted() -> None:
        whole = TrainBatches.epoch

        def with_signal(self: TrainBatches, epoch: int, start: int = 0) -> Iterator[Batch]:
            for step, batch in enumerate(whole(self, epoch, start), start):
                if (epoch, step, rank()) == (1, 3, 1):
                    signal.raise_signal(signum)
                yield batch

        TrainBatches.epoch = with_signal  # in this process only
        COMMANDS[SCRIPTS["rl"]](arguments("rl", results, "cut", *more, "--save_every", "1e-9"))

    ended = together(tmp_path, interrupted)
    assert [code for code, *_ in ended] == [128 + signum] * 2
    assert "".join(err for *_, err in ended).count("interrupted: ") == 1
    done = stage("rl", *arguments("rl", results, "cut", *more, "--resume"))
    assert done.returncode == 0, done.stderr
    assert_same_runs(*(folder_of(results, "rl", exp_name) for exp_name in ("cut", "whole")))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--lr", "fast"), "--lr"),
        (("--bs", "3"), "--bs 3: a batch of 3 images is too small for 2 processes"),
        (("--sync_batchnorm",), "--sync_batchnorm: works on GPUs only"),
        (("--result_dir", "/proc/nowhere"), "--result_dir"),  # the first process alone finds out
    ],
)
def test_a_mistake_ends_both_with_one_message(args: tuple[str, ...], words: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    ended = both("sp", [*DIGITS, *OWN["sp"], "--result_dir", str(results), *args], tmp_path)
    assert [code for code, *_ in ended] == [2, 2]
    said = "".join(err for *_, err in ended)
    assert said.startswith("error: ") and words in said and len(said.splitlines()) == 1
    assert not results.exists()


@pytest.mark.exhaustive
@SLOW
def test_torchrun_starts_a_stage(tmp_path: Path) -> None:
    def torchrun(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "main_sp.py"]
        return subprocess.run(
            [*command, *DIGITS, *OWN["sp"], "--result_dir", str(tmp_path / "results"), *args],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / ".cache")},
            capture_output=True,
            text=True,
            timeout=600,
        )

    refused = torchrun("--momentum", "2")
    assert refused.returncode != 0 and refused.stderr.count("error: --momentum 2") == 1
    # Torchrun's own account: it may end the one (SIGTERM) while that is still leaving after the other.
    codes = re.findall(r"exitcode +: (-?\d+) ", refused.stderr)
    assert len(codes) == 2 and "2" in codes and set(codes) <= {"2", "-15"}, refused.stderr
    assert not (tmp_path / "results").exists()
    done = torchrun()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished: ") == 1
    run = folder_of(tmp_path / "results", "sp")
    assert json.loads((run / "result.json").read_text())["processes"] == 2
