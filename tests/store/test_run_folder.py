"""What a run folder gives back, and what it refuses."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hybridprune.errors import UserError
from hybridprune.store.run_folder import RunFolder, RunSpec
from hybridprune.store.weights import load_tensors, load_weights, read_tensors
from tests.networks_and_images import random_images, random_net
from tests.processes import file_size_limit
from tests.store.run_folders import EDITS, FACTORED, SPEC, make_run

# --- specification ---


@pytest.mark.parametrize("spec", [SPEC, FACTORED], ids=["dense", "factored"])
def test_specification_round_trip(spec: RunSpec, tmp_path: Path) -> None:
    assert make_run(tmp_path / "run", spec).read_spec() == spec


def test_specification_of_another_format_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.write_json("spec.json", {**SPEC.to_json(), "format": 2})
    with pytest.raises(UserError, match=r"spec\.json: not a run's specification \(format 2, this version reads 1\)"):
        run.read_spec()


@pytest.mark.parametrize("key", sorted(SPEC.to_json().keys() - {"centre_crop"}))  # younger than other runs
def test_incomplete_specification_is_refused(key: str, tmp_path: Path) -> None:
    record = SPEC.to_json()
    del record[key]
    run = make_run(tmp_path / "run")
    run.write_json("spec.json", record)
    with pytest.raises(UserError, match=rf"spec\.json: not a run's specification \('?{key}\b"):
        run.read_spec()


@pytest.mark.parametrize(
    ("text", "message"), [("{", "missing or broken"), ("[1]", "must hold a JSON object"), (None, "missing or broken")]
)
def test_broken_json_is_named(text: str | None, message: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run.path / "spec.json").unlink() if text is None else (run.path / "spec.json").write_text(text)
    with pytest.raises(UserError, match=rf"spec\.json: {message}"):
        run.read_spec()


# --- weights ---


@pytest.mark.parametrize("spec", [SPEC, FACTORED], ids=["dense", "factored"])
@torch.no_grad()
def test_network_round_trip(spec: RunSpec, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", spec)
    net, loaded = run.load_network()
    original = random_net(8, 2, 3, spec.network.edits)
    images = random_images(4)
    assert loaded == spec
    assert torch.equal(net.eval()(images).logits, original(images).logits)


def test_channels_last_weights_are_saved(tmp_path: Path) -> None:
    run, net = RunFolder(tmp_path), random_net(8, 2, 3)
    plain = {name: value.clone() for name, value in net.state_dict().items()}
    run.save_weights("last.safetensors", net.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    saved = load_file(tmp_path / "last.safetensors")
    assert saved.keys() == plain.keys() and all(torch.equal(saved[name], plain[name]) for name in plain)


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", finished=False)
    assert not run.finished
    with pytest.raises(UserError, match="this run is not finished; run its stage again with --resume"):
        run.load_network()


def test_missing_weights(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.model_file.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        run.load_network()


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights(kept: int, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.model_file.write_bytes(run.model_file.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"model\.safetensors: truncated or not a safetensors file"):
        run.load_network()


def test_one_altered_bit(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    content = bytearray(run.model_file.read_bytes())
    content[-1] ^= 1
    run.model_file.write_bytes(content)
    with pytest.raises(UserError, match=r"is not the file that result\.json describes"):
        run.load_network()


def test_weights_of_another_architecture(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run.save_weights("model.safetensors", random_net(8, 4, 3))
    with pytest.raises(UserError, match=r"another architecture: \S+ is \[.*\], the network has \[.*\]"):
        run.load_network()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("backbone.conv.weight"), r"backbone\.conv\.weight is nothing, the network has \[2, 3, 3, 3\]"),
        (lambda t: t.update(extra=torch.ones(2)), r"extra is \[2\], the network has nothing"),
        (lambda t: t.update({"backbone.bn.bias": torch.ones(3)}), r"bn\.bias is \[3\], the network has \[2\]"),
    ],
)
def test_the_first_difference_is_named_and_nothing_is_loaded(change: Any, message: str, tmp_path: Path) -> None:
    net = random_net(8, 2, 3)
    tensors = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    change(tensors)
    before = net.backbone.classifier.weight.clone()
    with pytest.raises(UserError, match=message):
        load_tensors(net, tensors, tmp_path)
    assert torch.equal(net.backbone.classifier.weight, before)


def test_dense_weights_do_not_fit_the_factored_network(tmp_path: Path) -> None:
    save_file(random_net(8, 2, 3).state_dict(), tmp_path / "dense.safetensors")
    with pytest.raises(UserError, match="another architecture"):
        load_weights(random_net(8, 2, 3, EDITS), tmp_path / "dense.safetensors")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_tensors(tmp_path)


# --- training state ---


class Malice:
    """Unpickling it runs a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_state_round_trip(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.load_state() is None
    run.save_state({"progress": {"epoch": 3, "best_score": -float("inf")}, "network": {"w": torch.arange(3)}})
    state = run.load_state()
    assert state is not None and state["progress"] == {"epoch": 3, "best_score": -float("inf")}
    assert torch.equal(state["network"]["w"], torch.arange(3))


def test_state_is_loaded_without_executing_code(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save(Malice(trap), tmp_path / "train_state.pt")
    with pytest.raises(UserError, match=r"train_state\.pt: cannot be read"):
        RunFolder(tmp_path).load_state()
    assert not trap.exists()
    pickle.loads(pickle.dumps(Malice(trap)))
    assert trap.exists(), "the trap itself does not work"


def test_truncated_state(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.save_state({"network": {"w": torch.arange(1000)}})
    path = tmp_path / "train_state.pt"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"train_state\.pt: cannot be read; delete it"):
        run.load_state()


def test_state_of_a_failed_save_is_the_old_one(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.save_state({"epoch": 1})
    with pytest.raises(Exception, match="pickle"):
        run.save_state({"epoch": 2, "bad": lambda: None})
    assert run.load_state() == {"epoch": 1} and len(list(tmp_path.iterdir())) == 1


# --- metrics ---


def metrics(run: RunFolder) -> list[tuple[int, int]]:
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [(record["phase"], record["epoch"]) for record in map(json.loads, lines)]


@pytest.mark.parametrize(
    ("phase", "epoch", "kept"),
    [
        (0, -1, []),
        (0, 1, [(0, 0), (0, 1)]),
        (1, -1, [(0, 0), (0, 1), (0, 2)]),
        (1, 0, [(0, 0), (0, 1), (0, 2), (1, 0)]),
        (2, 0, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]),
    ],
)
def test_rewinding_drops_later_lines(phase: int, epoch: int, kept: list[tuple[int, int]], tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for p, e in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]:
        run.append_metrics({"phase": p, "epoch": e, "loss": 0.5})
    run.rewind_metrics(phase, epoch)
    assert metrics(run) == kept


@pytest.mark.parametrize("torn", ['{"phase": 0, "ep', '{"phase": 0, "epoch": 1', "{", '{"phase": 0, "epoch": 1}'])
def test_a_torn_last_line_is_dropped(torn: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.append_metrics({"phase": 0, "epoch": 0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    run.rewind_metrics(0, 0)
    run.append_metrics({"phase": 0, "epoch": 1})
    assert metrics(run) == [(0, 0), (0, 1)]


@pytest.mark.parametrize("end", ['{"phase": 0, "epo', '3\n{"phase": 0, "epoch": 1}\n', '{"phase": 0}}\n', "\udcff"])
def test_records_up_to_a_torn_line_are_read_and_kept_to_the_byte(end: str, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.read_metrics() == []
    whole = [{"phase": 0, "epoch": 0, "loss": 1 / 3, "lr": 1e-05}, {"phase": 0, "epoch": 1, "loss": None, "ü": "ß"}]
    for record in whole:
        run.append_metrics({**record, "loss": record["loss"] or math.inf})
    path = tmp_path / "metrics.jsonl"
    written = path.read_bytes()
    path.write_bytes(written + end.encode(errors="surrogateescape"))
    assert run.read_metrics() == whole
    run.rewind_metrics(0, 1)
    assert path.read_bytes() == written


def test_rewinding_before_the_first_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.rewind_metrics(0, -1)
    assert metrics(run) == []


def test_specification_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC.stage = "rl"  # type: ignore[misc]


# --- parents ---


def finished(path: Path, run_id: str, parent: dict[str, Any] | None) -> RunFolder:
    run = make_run(path)
    run.write_json("result.json", {"run_id": run_id, "parent": parent})
    return run


def test_the_parent_is_found_where_it_lay_and_beside_a_run_that_was_moved(tmp_path: Path) -> None:
    eldest = finished(tmp_path / "results" / "first", "1", None)
    child = finished(tmp_path / "results" / "second", "2", {"path": str(eldest.path), "run_id": "1"})
    assert eldest.parent() is None
    assert child.parent() == eldest
    assert [run.path for run in child.lineage()] == [child.path, eldest.path]
    moved = (tmp_path / "results").rename(tmp_path / "elsewhere")
    found = RunFolder(moved / "second").parent()
    assert found is not None and found.path.samefile(moved / "first")


def test_another_run_in_the_parents_place_is_not_taken_for_it(tmp_path: Path) -> None:
    finished(tmp_path / "first", "3", None)
    child = finished(tmp_path / "second", "2", {"path": str(tmp_path / "first"), "run_id": "1"})
    with pytest.raises(UserError, match=r"first: the parent of .*second is gone; restore it there or beside second"):
        child.parent()


# --- a full disk ---


@pytest.mark.parametrize("what", ["state", "weights", "json", "metrics"])
def test_what_cannot_be_written_is_the_systems_error_and_leaves_what_was_there(what: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    net, record = random_net(8, 8, 3), {"phase": 0, "epoch": 0, "text": "x" * 5000}
    write = {
        "state": lambda: run.save_state({"network": net.state_dict()}),
        "weights": lambda: run.save_weights("model.safetensors", net),
        "json": lambda: run.write_json("spec.json", record),
        "metrics": lambda: run.append_metrics(record),
    }[what]
    run.save_state({"epoch": 1})
    run.append_metrics({"phase": 0, "epoch": 0})
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with file_size_limit(3000), pytest.raises(OSError) as raised:
        write()
    assert raised.value.errno == errno.EFBIG and raised.value.filename.startswith(f"{run.path}/")
    after = {path.name: path.read_bytes() for path in run.path.iterdir()}
    assert len(run.read_metrics()) == 1  # a line may be torn
    assert after == before or (what == "metrics" and after["metrics.jsonl"].startswith(before["metrics.jsonl"]))


def test_a_pruned_module_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text('{"edits": [], "dense_macs": 3}')
    with pytest.raises(UserError, match=r"^.*: holds what hybridprune\.save wrote, no run; hybridprune\.restore"):
        RunFolder.named(tmp_path).load_network()
