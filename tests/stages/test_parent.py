"""Which run stages 2 and 3 start from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from hybridprune.config import ParentOptions, PruneConfig, RlConfig, RunOptions
from hybridprune.errors import UserError
from hybridprune.stages.parent import Parent
from hybridprune.store.run_folder import RunSpec
from tests.store.run_folders import FACTORED, SPEC, make_run


@pytest.mark.parametrize(
    ("config", "stage", "spec"), [(PruneConfig(), "sp", SPEC), (RlConfig(), "prune", FACTORED)], ids=["2", "3"]
)
def test_it_is_the_one_of_the_same_seed_or_the_one_that_is_named(
    config: PruneConfig | RlConfig, stage: str, spec: RunSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(tmp_path / f"seed{seed}", spec, seed=seed) for seed in (0, 1)]

    def parent(seed: int, named: Path | None) -> Path:
        changed = dataclasses.replace(
            config,
            run=RunOptions(result_dir=str(tmp_path), seed=seed),
            parent=ParentOptions(None if named is None else str(named)),
        )
        found = Parent.load(changed, SPEC, stage, ())
        assert f"parent run: {found.run.path}" in capsys.readouterr().err
        return found.run.path

    assert [parent(seed, None) for seed in (0, 1)] == [run.path for run in runs]
    assert parent(0, runs[1].path) == runs[1].path


@pytest.mark.parametrize("name", ["dense.macs", "dense.params", "group", "model_sha256"])
def test_what_the_end_of_a_stage_needs_of_it_is_checked_at_its_beginning(name: str, tmp_path: Path) -> None:
    file = make_run(tmp_path / "run", SPEC, seed=0).path / "result.json"
    record = json.loads(file.read_text())
    outer, _, inner = name.rpartition(".")
    del (record[outer] if outer else record)[inner]
    file.write_text(json.dumps(record))
    config = dataclasses.replace(PruneConfig(), parent=ParentOptions(str(file.parent)))
    with pytest.raises(UserError, match=r"result\.json: .* is missing|not the file that result\.json describes"):
        Parent.load(config, SPEC, "sp", ())
