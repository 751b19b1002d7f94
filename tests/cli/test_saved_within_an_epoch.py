"""A run that is killed after a save in the middle of an epoch ends with the bits of an undisturbed run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hybridprune.store.run_folder import RunFolder
from tests.cli.tiny_runs import ROOT, SCRIPTS, run_here

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("few_sweeps")]
DATA = ("--dataset", "digits", "--resize", "8", "--max_train_samples", "40", "--bs", "8", "--device", "cpu")
RESNET = ("--network", "resnet", "--depth", "8", "--width", "4")
SHAKEN = ("--network", "pyramidnet", "--depth", "8", "--width", "4", "--pyramid_alpha", "6", "--shakedrop", "0.5")
TWO = ("--epochs", "2", "--lr", "0.05")
CUT = (
    *("--config_path", str(ROOT / "config.json"), "--target_flops", "0.6", "--curvature_images", "20"),
    *("--moment_images", "20", "--refit_images", "0", "--epochs_start", "2", "--epochs_end", "2"),
)
SEARCH = ("--bcnet_population", "4", "--bcnet_generations", "2")
ROUTED = (*TWO, "--target_flops", "0.55", "--rl_warmup", "0", "--price_step", "0.1")
MEMORY = ("--flip_from", "sampled", "--entropy_bonus", "0.1", "--rate_bound", "0.2")
CASES = {
    "noise": ("sp", RESNET, (*TWO, "--gate_noise", "1", "--alpha", "1"), 0),
    "shakedrop": ("sp", SHAKEN, TWO, 0),
    "fine-tuning": ("prune", RESNET, (*CUT, "--kd_weight", "0.3"), 0),
    "growing L2": ("prune", RESNET, (*CUT, "--method", "greg-2", "--sparse_epochs", "2", "--greg_interval", "3"), 0),
    "masks": ("prune", RESNET, (*CUT, "--method", "nuspm", "--sparse_epochs", "2", "--nuclear_interval", "3"), 0),
    "widths": ("prune", RESNET, (*CUT, "--method", "bcnet", "--sparse_epochs", "2", *SEARCH), 0),
    "after masks": ("prune", RESNET, (*CUT, "--method", "nuspm", "--sparse_epochs", "1"), 1),
    "counterfactual": ("rl", RESNET, ROUTED, 0),
    "counterfactual, sampled": ("rl", RESNET, (*ROUTED, *MEMORY), 0),
    "moving average": ("rl", RESNET, (*ROUTED, "--baseline", "moving_average"), 0),
    "self-critical, BatchNorm trained": (
        "rl", RESNET, (*ROUTED, "--baseline", "self_critical", "--batchnorm", "trained"), 0,
    ),
    "gumbel": ("rl", RESNET, (*ROUTED, "--estimator", "gumbel"), 0),
    "gates alone": ("rl", RESNET, (*ROUTED, "--train", "gates"), 0),
}  # fmt: skip
EXHAUSTIVE = {"growing L2"}
"""Cases that go through what "masks" goes through, and take ten seconds."""


class Killed(BaseException):
    """Stands for a process that dies."""


def outcome(run: Path) -> dict[str, Any]:
    names = ("selected.safetensors", "last.safetensors", "model.safetensors")
    result = json.loads((run / "result.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in (result, *lines):
        record["seconds"] = record["run_id"] = None
    result["config"].update(result_dir=None, save_every=None)
    return {"result": result, "metrics": lines, **{name: (run / name).read_bytes() for name in names}}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.exhaustive] if case in EXHAUSTIVE else []) for case in CASES]
)
def test_killed_after_a_save_within_an_epoch(case: str, finished: Path, tmp_path: Path) -> None:
    name, network, own, phase = CASES[case]
    parents = {"prune": ("sp", finished), "rl": ("prune", finished)}
    parent = ()
    if name in parents:
        stage, results = parents[name]
        parent = ("--checkpoint_file", next((results / "default").glob(f"*-{stage}-seed0")))

    def run(results: str, *flags: str) -> Path:
        done = run_here(SCRIPTS[name], *DATA, *network, *own, *parent, "--result_dir", tmp_path / results, *flags)
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / results / "default").iterdir()
        return folder

    whole = outcome(run("whole", "--save_every", "0"))
    save = RunFolder.save_state

    def dying(self: RunFolder, state: Mapping[str, Any]) -> None:
        save(self, state)
        place = state["progress"]["phase"], state["progress"]["epoch"], state["progress"]["step"]
        if place == (phase, 0 if phase else 1, 3):
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunFolder, "save_state", dying)
        run("killed", "--save_every", "1e-9")
    assert outcome(run("killed", "--resume")) == whole
