"""Exports overwrite nothing that is not an export, and what was spoilt afterwards is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from hybridprune.commands import export
from hybridprune.deployment import load_deployed
from hybridprune.errors import UserError
from tests.cli.tiny_runs import assert_refused, contents, folder_of, run_here


@pytest.mark.parametrize(
    ("flag", "place", "words"),
    [
        ("--output", ".", ("--output", "holds a run")),
        ("--output", "../digits-resnet8-w4-sp-seed0", ("--output", "holds a run")),
        ("--onnx", "model.safetensors", ("--onnx", "ends in .onnx")),
        ("--openvino", "config.json", ("--openvino", "ends in .xml")),
        ("--program", "train_state.pt", ("--program", "ends in .pt2")),
    ],
)
def test_no_run_is_overwritten(flag: str, place: str, words: tuple[str, ...], results: Path) -> None:
    run = folder_of(results, "rl")
    before = contents(results)
    assert_refused(run_here("hybridprune.export", run, flag, run / place), *words)
    assert contents(results) == before


def test_a_file_of_something_else_beside_the_named_one_stays(results: Path, tmp_path: Path) -> None:
    (tmp_path / "train.bin").write_bytes(b"images")
    refused = run_here("hybridprune.export", folder_of(results, "rl"), "--openvino", tmp_path / "train.xml")
    assert_refused(refused, "--openvino", "train.bin, which is there without it; name another file")
    assert not (tmp_path / "train.xml").exists() and (tmp_path / "train.bin").read_bytes() == b"images"


@pytest.mark.parametrize("other", ["net.pt2", "sub/../net.pt2", "link/net.pt2", "linked.pt2"])
def test_two_models_in_one_file_are_refused_however_it_is_spelt(other: str, results: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "linked.pt2").symlink_to("net.pt2")
    files = "--program", tmp_path / "net.pt2", "--aotinductor", tmp_path / other
    refused = run_here("hybridprune.export", folder_of(results, "rl"), *files)
    assert_refused(refused, f"--aotinductor {tmp_path / other}", "is the file of --program; name another one")
    export._check_apart({"program": tmp_path / "net.pt2", "aotinductor": tmp_path / "sub" / "net.pt2"})


@pytest.mark.parametrize("failing", [0, 1])
def test_a_model_is_never_beside_the_weights_of_another(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xml, weights = tmp_path / "net.xml", tmp_path / "net.bin"
    export._write({xml: b"old", weights: b"old"})
    real, calls = export.write_bytes, iter(range(2))

    def write(path: Path, content: bytes) -> None:
        if next(calls) == failing:
            raise OSError(28, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(export, "write_bytes", write)
    with pytest.raises(OSError, match="No space left"):
        export._write({xml: b"new", weights: b"new"})
    assert not xml.exists()


@pytest.fixture(scope="module")
def deploy_json(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of an exported network beside its weights."""
    folder = tmp_path_factory.mktemp("exported") / "net"
    done = run_here("hybridprune.export", folder_of(finished, "prune"), "--output", folder)
    assert done.returncode == 0, done.stderr
    return folder / "deploy.json"


def one_block_more(record: dict[str, Any]) -> None:
    record["report"]["steps"].append({"action": "skip", "gate": "none"})


def unknown_action(record: dict[str, Any]) -> None:
    record["report"]["steps"][1]["action"] = "fly"


def unknown_form(record: dict[str, Any]) -> None:
    next(iter(record["report"]["forms"].values()))["chosen"] = "odd"


def misfit(record: dict[str, Any]) -> None:
    record["report"]["folded"]["backbone.bn"] = "backbone.classifier"


def wider(record: dict[str, Any]) -> None:
    record["run"]["network"]["width"] = 8


@pytest.mark.full
@pytest.mark.parametrize("spoil", [one_block_more, unknown_action, unknown_form, misfit, wider])
def test_a_spoilt_record_is_refused(spoil: Callable[[dict[str, Any]], None], deploy_json: Path) -> None:
    whole = deploy_json.read_text()
    load_deployed(deploy_json.parent)
    record = json.loads(whole)
    spoil(record)
    deploy_json.write_text(json.dumps(record))
    try:
        with pytest.raises(UserError, match=r"deploy\.json|model\.safetensors"):
            load_deployed(deploy_json.parent)
    finally:
        deploy_json.write_text(whole)


def test_weights_of_another_export_are_refused(deploy_json: Path) -> None:
    weights = deploy_json.with_name("model.safetensors")
    whole = weights.read_bytes()
    tensors = load_file(weights)
    save_file({name: 2 * value for name, value in tensors.items()}, weights)
    try:
        with pytest.raises(UserError, match=r"model\.safetensors.*export the run again"):
            load_deployed(deploy_json.parent)
    finally:
        weights.write_bytes(whole)
