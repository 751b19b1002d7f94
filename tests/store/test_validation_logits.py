"""The stored logits of a run: they are read as they were written, and nothing else is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hybridprune.errors import UserError
from hybridprune.store.run_folder import RunFolder
from hybridprune.store.validation_logits import FILE, ValidationLogits
from tests.store.run_folders import SPEC, make_run

SAID = ValidationLogits(torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0]), torch.tensor([1, 4, 5, 8, 9]))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = make_run(tmp_path / "run")
    SAID.save(made, SPEC, made.result("model_sha256", str))
    return made


def test_they_are_read_as_they_were_written(run: RunFolder) -> None:
    found = ValidationLogits.read(run, SPEC)
    assert found is not None
    assert all(torch.equal(a, b) for a, b in zip(vars(found).values(), vars(SAID).values(), strict=True))


def test_a_run_without_them_has_none_and_a_process_that_only_reads_writes_none(run: RunFolder) -> None:
    (run.path / FILE).unlink()
    SAID.save(RunFolder(run.path, writes=False), SPEC, "any")
    assert ValidationLogits.read(run, SPEC) is None and not (run.path / FILE).exists()


@pytest.mark.parametrize("field", ["run_id", "dataset_digest"])
def test_those_of_another_run_are_refused(field: str, run: RunFolder) -> None:
    with pytest.raises(UserError, match=rf"^{re.escape(str(run.path / FILE))}: is not of the network in"):
        ValidationLogits.read(run, dataclasses.replace(SPEC, **{field: "other"}))


def test_those_of_other_weights_are_refused(run: RunFolder) -> None:
    run.write_json("result.json", {**run.read_json("result.json"), "model_sha256": "other"})
    with pytest.raises(UserError, match="is not of the network in"):
        ValidationLogits.read(run, SPEC)


CHANGES: dict[str, dict[str, Tensor]] = {
    "half precision": {"logits": SAID.logits.half()},
    "fewer images": {"logits": SAID.logits[:4]},
    "other classes": {"logits": torch.randn(5, 4)},
    "fewer ids": {"ids": SAID.ids[:4]},
    "ids in disorder": {"ids": SAID.ids.flip(0)},
    "labels of another shape": {"labels": SAID.labels[:, None], "ids": SAID.ids[:, None]},
    "a label too many": {"labels": SAID.labels + 1},
    "a label below 0": {"labels": SAID.labels - 1},
    "one image": {"logits": SAID.logits[:1], "labels": SAID.labels[:1], "ids": SAID.ids[:1]},
    "a number": {"labels": torch.tensor(0), "ids": torch.tensor(0)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_tensors_that_do_not_fit_are_refused(change: str, run: RunFolder) -> None:
    rewrite(run, CHANGES[change])
    with pytest.raises(UserError, match=r"not the logits of 3 classes, labels and image ids; remove it$"):
        ValidationLogits.read(run, SPEC)


def test_logits_that_are_not_finite_are_refused(run: RunFolder) -> None:
    rewrite(run, {"logits": SAID.logits.where(SAID.logits < SAID.logits.max(), torch.inf)})
    with pytest.raises(UserError, match="not finite, so the network is no member of a cascade"):
        ValidationLogits.read(run, SPEC)


def test_a_torn_file_and_one_with_other_tensors_are_refused(run: RunFolder) -> None:
    path = run.path / FILE
    content = path.read_bytes()
    save_file({"logits": SAID.logits}, path)
    with pytest.raises(UserError, match="truncated or not a run's validation logits"):
        ValidationLogits.read(run, SPEC)
    path.write_bytes(content[:-7])
    with pytest.raises(UserError, match="truncated or not a run's validation logits"):
        ValidationLogits.read(run, SPEC)


def rewrite(run: RunFolder, change: dict[str, Tensor]) -> None:
    """Other tensors below the same header."""
    path = run.path / FILE
    with safe_open(path, framework="pt") as file:
        origin = file.metadata()
    save_file({**load_file(path), **{name: value.contiguous() for name, value in change.items()}}, path, origin)
