"""The examples run as they say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

import hybridprune
from hybridprune.data import normalise
from hybridprune.errors import UserError
from hybridprune.report.records import read_runs
from hybridprune.report.rows import build_rows
from hybridprune.stages.common import load_images
from tests.cases import ROOT
from tests.cli.cases import folder_of, run_here, stage


def example(name: str) -> ModuleType:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.full
def test_somebody_elses_agent_is_a_row_beside_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("stable_baselines3", reason="the extra `agents` is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    agent = example("third_party_agent")
    results = tmp_path / "results"
    assert stage("sp", "--result_dir", results, "--epochs", "8").returncode == 0
    parent, out, again = folder_of(results, "sp"), results / "agent", tmp_path / "again"
    # FLOPs just dear enough for the agent to skip some blocks and run others.
    command = [str(parent), "--timesteps", "2000", "--alpha", "1.2", "--device", "cpu"]
    agent.main([*command, "--out", str(out)])
    assert f"finished: {out}" in capsys.readouterr().out

    result = json.loads((out / "result.json").read_text())
    routes, model = load_file(out / "routes.safetensors"), hybridprune.load(parent)
    net, decisions = model.network, routes["decisions"]
    assert 0 < float(decisions.mean()) < 1
    # What it wrote is what the network does on its routes, on all test images in their order.
    options = agent.DataOptions(dataset="digits", resize=8)
    test = load_images(options).test
    pixels = normalise(test.images, model.spec.mean, model.spec.std, torch.contiguous_format)
    routed = net(pixels, decisions, mode="executed")
    assert torch.equal(routes["labels"], test.labels)
    torch.testing.assert_close(routes["logits"], routed.logits.detach(), rtol=1e-4, atol=1e-4)
    found = result["test"]["routed"]
    assert found["accuracy"] == pytest.approx(float((routed.logits.argmax(1) == test.labels).double().mean()))
    # Two hidden layers of 64 see the pooled features and three numbers; they decide at each gate.
    cost, seen = hybridprune.count(net, 8), max(net.backbone.block_channels) + 3
    decide = net.num_gates * (seen * 64 + 64 * 64 + 64 * 2)
    spent = cost.expected_macs(decisions.double().mean(0).tolist()) - sum(cost.gate_macs) + decide
    assert found["expected_macs"] == pytest.approx(spent) and result["macs"]["gates"] == decide
    assert result["params"]["gates"] == decide // net.num_gates + 64 + 64 + 2

    rows = build_rows(read_runs(results))
    assert [row.name for row in rows] == ["without pruning", "dynamic only"]
    assert rows[1].lineage[0] == rows[0].lineage[0] and rows[1].stats["macs"].mean == pytest.approx(spent)
    # The command shows it too, and a later stage still finds its parent beside it.
    table = run_here("hybridprune.report", results)
    assert table.returncode == 0 and "dynamic only" in table.stdout
    assert stage("prune", "--result_dir", results, "--dry-run").returncode == 0

    agent.main([*command, "--out", str(again)])
    assert all(torch.equal(value, routes[name]) for name, value in load_file(again / "routes.safetensors").items())
    with pytest.raises(UserError, match=r"--out .*exists already"):
        agent.main([*command, "--out", str(out)])
    with pytest.raises(UserError, match="--timesteps 0"):
        agent.main([*command, "--timesteps", "0", "--out", str(tmp_path / "none")])
