"""Stage 2 with every method and every key, alone and together, and by several processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import hybridprune
from hybridprune.config.methods import METHOD_NAMES
from tests.cli.tiny_runs import COMMANDS, DIGITS, OWN, SCRIPTS, assert_refused, contents, folder_of, stage
from tests.process_groups import together

pytestmark = pytest.mark.usefixtures("few_sweeps")
WIDE = ("--width", "8")
SHORT = (
    *("--epochs_start", "1", "--epochs_end", "1", "--refit_images", "64", "--sparse_epochs", "1"),
    *("--bcnet_population", "4", "--bcnet_generations", "2"),
)
KEYS = [
    ("--fisher_type", "exp"),
    ("--sua",),
    ("--use_full_cov_a",),
    ("--use_bias",),
    ("--ma", "0.9"),
    ("--normalize",),
    ("--allow_increase",),
    ("--rank_multiple", "4"),
    ("--separable", "all"),
    ("--separable", "narrow", "--rank_multiple", "2", "--max_iter", "2", "--back_ratio", "0.3", "--fix_rotation"),
    ("--regularization", "0.001"),
    ("--decomp_method", "tucker"),
    ("--allocation", "importance"),
    ("--allocation", "importance_per_flop"),
    ("--target_params", "0.5"),
    ("--exclude", "backbone.conv,backbone.blocks.2.*"),
    ("--prune_ratio_limit", "0.6"),
    ("--fix_rotation",),
    ("--kd_weight", "0.5", "--kd_temperature", "2"),
    ("--max_iter", "2", "--back_ratio", "0.3", "--pool_momentum", "0.5", "--interpolation"),
    ("--method", "eigendamage", "--correct_eigenvalues"),
    ("--method", "eigendamage", "--correct_eigenvalues", "--use_bias", "--decomp_method", "tucker"),
    ("--method", "l1", "--use_out_dependencies", "--allocation", "importance_per_flop"),
    ("--method", "bn-scale", "--use_out_dependencies", "--allocation", "adapruner"),
    ("--method", "adapruner", "--use_out_dependencies", "--round_to", "2", "--sparse_start", "scratch"),
    (
        *("--method", "peel", "--use_out_dependencies", "--peel_backbone", "global-gamma", "--peel_pool", "0.5"),
        *("--round_to", "2", "--cut_weights", "scratch"),
    ),
    ("--method", "kron-obs", "--use_out_dependencies", "--max_iter", "2", "--back_ratio", "0.5"),
    (
        *("--fisher_type", "exp", "--use_full_cov_a", "--use_bias", "--ma", "0.5", "--normalize", "--allow_increase"),
        *("--decomp_method", "tucker", "--target_params", "0.7", "--exclude", "backbone.conv", "--fix_rotation"),
        *("--kd_weight", "0.5", "--max_iter", "2", "--back_ratio", "0.3", "--interpolation"),
    ),
]


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result folder with a finished stage 1 of width 8."""
    results = tmp_path_factory.mktemp("parent") / "results"
    done = stage("sp", "--result_dir", results, *WIDE)
    assert done.returncode == 0, done.stderr
    return results


def pruned(parent: Path, tmp_path: Path, *flags: str) -> tuple[Path, dict[str, Any]]:
    where = ("--checkpoint_file", run_of(parent, "sp"), "--result_dir", tmp_path / "pruned")
    done = stage("prune", *WIDE, *SHORT, *where, *flags)
    assert done.returncode == 0, done.stderr
    run = run_of(tmp_path / "pruned", "prune")
    return run, json.loads((run / "result.json").read_text())


def run_of(results: Path, name: str) -> Path:
    return results / "default" / folder_of(results, name).name.replace("w4", "w8")


def assert_sound(run: Path, result: dict[str, Any], share: float) -> None:
    """The budget is kept, and what was saved is what was measured."""
    assert result["macs"]["backbone"] <= share * result["dense"]["macs"]
    cost = hybridprune.count(hybridprune.load(run).network, 8)
    assert (cost.backbone_macs, cost.backbone_params) == (result["macs"]["backbone"], result["params"]["backbone"])
    assert 0 < result["test"]["always_on"]["accuracy"] <= 1


@pytest.mark.full
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_every_method_hits_the_budget(method: str, parent: Path, tmp_path: Path) -> None:
    run, result = pruned(parent, tmp_path, "--method", method)
    assert_sound(run, result, 0.6)
    assert result["macs"]["backbone"] > 0.55 * result["dense"]["macs"]
    assert result["method"] == method


@pytest.mark.full
@pytest.mark.parametrize("flags", KEYS, ids=" ".join)
def test_every_key_works_alone_and_together(flags: tuple[str, ...], parent: Path, tmp_path: Path) -> None:
    run, result = pruned(parent, tmp_path, *flags)
    assert_sound(run, result, 0.6)
    if "--target_params" in flags:
        share = float(flags[flags.index("--target_params") + 1])
        assert result["params"]["backbone"] <= share * result["dense"]["params"]
    edited = {edit["layer"] for edit in json.loads((run / "spec.json").read_text())["network"]["edits"]}
    assert edited and not any(name.startswith("gate") for name in edited if "--use_out_dependencies" not in flags)
    if "--exclude" in flags:
        assert "backbone.conv" not in edited


@pytest.mark.full
def test_the_last_epoch_is_kept_where_that_is_asked_for(parent: Path, tmp_path: Path) -> None:
    """At such a rate training ruins what the cut left, so that the best epoch is the cut alone."""
    flags = ("--lr", "3", "--epochs_start", "2", "--epochs_end", "2")
    for select, epoch in (("best", 0), ("last", 2)):
        run, result = pruned(parent, tmp_path / select, "--select", select, *flags)
        assert result["selected_epoch"] == epoch
        kept, last = ((run / f"{name}.safetensors").read_bytes() for name in ("model", "last"))
        assert (kept == last) == (select == "last")


@pytest.mark.full
def test_rotations_that_are_fixed_do_not_move(parent: Path, tmp_path: Path) -> None:
    def rotations(name: str, *flags: str) -> dict[str, Any]:
        run, _ = pruned(parent, tmp_path / name, "--separable", "none", "--refit_images", "0", *flags)
        # The last epoch's weights: the best on validation might be those before training.
        network = hybridprune.load(run).network
        from safetensors.torch import load_file

        network.load_state_dict(load_file(run / "last.safetensors"))
        return {n: p.detach() for n, p in network.named_parameters() if ".rotate_" in n}

    none = ("--epochs_start", "0", "--epochs_end", "0")
    cut, fixed, free = rotations("cut", *none), rotations("fixed", "--fix_rotation"), rotations("free")
    assert cut and all(fixed[name].equal(cut[name]) for name in cut)
    assert not any(free[name].equal(cut[name]) for name in cut)


def test_a_budget_below_the_floor_leaves_nothing_behind(finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    refused = stage(
        "prune", "--checkpoint_file", folder_of(finished, "sp"), "--result_dir", tmp_path, "--target_flops", "0.001"
    )
    assert_refused(refused, "--target_flops 0.001", "the floor is")
    assert contents(finished) == before and not folder_of(tmp_path, "prune").exists()


def test_a_channel_method_cannot_allocate_ranks(finished: Path, tmp_path: Path) -> None:
    flags = ("--method", "l1", "--allocation", "rate_distortion", "--result_dir", tmp_path)
    assert_refused(stage("prune", "--checkpoint_file", folder_of(finished, "sp"), *flags), "--allocation rate_distort")
    assert not folder_of(tmp_path, "prune").exists()


@pytest.mark.full
def test_two_processes_make_the_plan_of_one(parent: Path, tmp_path: Path) -> None:
    # Without training, which would tell BatchNorm of half a batch from that of a whole one.
    untrained = ("--epochs_start", "0", "--epochs_end", "0")
    flags = ("--max_iter", "2", "--method", "eigendamage", "--correct_eigenvalues", *untrained)
    alone, _ = pruned(parent, tmp_path, *flags)
    where = ("--checkpoint_file", str(run_of(parent, "sp")), "--result_dir", str(tmp_path / "two"), "--pruner_id", "1")
    words = [*DIGITS, *OWN["prune"], *WIDE, *SHORT, *where, *flags]
    ended = together(tmp_path, lambda: COMMANDS[SCRIPTS["prune"]](words))
    assert [code for code, *_ in ended] == [0, 0], ended[0][3] + ended[1][3]
    two_run = run_of(tmp_path / "two", "prune")
    one, two = (json.loads((run / "spec.json").read_text())["network"]["edits"] for run in (alone, two_run))
    assert one == two and one
    results = [json.loads((run / "result.json").read_text())["test"]["always_on"] for run in (alone, two_run)]
    assert results[0]["loss"] == pytest.approx(results[1]["loss"], rel=1e-4)
